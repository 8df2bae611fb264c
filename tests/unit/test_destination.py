"""What the operator does not connect to, unless its administrator says so."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.aio import client

from matview_operator.adapters.kube.client import api_addresses
from matview_operator.domain.destination import Destinations

REFUSED = {
    "127.0.0.1": "loopback",
    "127.255.1.9": "loopback",
    "::1": "loopback",
    "::ffff:127.0.0.1": "loopback",
    "2002:7f00:1::": "loopback",
    "64:ff9b::7f00:1": "loopback",
    "169.254.169.254": "link-local",
    "::ffff:169.254.169.254": "link-local",
    "64:ff9b::a9fe:a9fe": "link-local",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "febf::1": "link-local",
    "100.100.100.200": "credentials",
    "168.63.129.16": "credentials",
    "fd00:ec2::254": "credentials",
    "0.0.0.0": "no host",  # noqa: S104 - nobody listens here
    "0.1.2.3": "no host",
    "::": "no host",
    "255.255.255.255": "no host",
    "224.0.0.1": "multicast",
    "239.1.2.3": "multicast",
    "ff02::1": "multicast",
    "10.96.0.1": "API server",
    "::ffff:10.96.0.1": "API server",
    "fd00::1": "API server",
}
API_SERVER = ["10.96.0.1", "fd00::1"]


@pytest.mark.parametrize(("address", "words"), REFUSED.items())
def test_the_operators_own_surroundings_are_refused_by_default(address: str, words: str) -> None:
    refusal = Destinations.read([], api_server=API_SERVER).refusal("db.example", address)
    assert refusal is not None
    assert words in refusal


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "10.96.0.2", "192.168.1.1", "172.16.0.1", "8.8.8.8", "100.64.0.1", "fd00::2", "2001:db8::1"]
)
def test_databases_are_reached_wherever_else_they_are(address: str) -> None:
    assert Destinations.read([], api_server=API_SERVER).refusal("db.example", address) is None


@pytest.mark.parametrize("address", REFUSED)
def test_what_is_allowed_by_address_or_network_is_not_refused(address: str) -> None:
    bare = address.partition("%")[0]
    network = f"{bare}/{8 if '.' in bare and ':' not in bare else 16}"
    for allowed in (bare, network, f" {bare}".strip()):
        assert Destinations.read([allowed], api_server=API_SERVER).refusal("db.example", address) is None


def test_an_allowed_ipv4_network_holds_its_addresses_in_ipv6() -> None:
    destinations = Destinations.read(["127.0.0.0/8"])
    assert destinations.refusal("h", "::ffff:127.0.0.1") is None
    assert destinations.refusal("h", "::1") is not None
    assert destinations.refusal("h", "169.254.0.1") is not None


@pytest.mark.parametrize(
    ("allowed", "host", "permitted"),
    [
        ("db.example", "db.example", True),
        ("db.example", "DB.Example.", True),
        ("DB.example.", "db.example", True),
        ("db.example", "x.db.example", False),
        ("db.example", "db.example.evil", False),
        ("*.example", "db.example", True),
        ("*.example", "a.b.example", True),
        ("*.example", "example", False),
        ("*.example", "evilexample", False),
        ("*.example", "db.example.evil", False),
        ("localhost", "127.0.0.1", False),
    ],
)
def test_a_name_is_allowed_as_the_secret_writes_it(allowed: str, host: str, permitted: bool) -> None:  # noqa: FBT001 - a table
    assert (Destinations.read([allowed]).refusal(host, "127.0.0.1") is None) is permitted


@pytest.mark.parametrize(
    "item", ["", "*", "*.", "*example", "a.*.b", "a b", "postgresql://h", "h:5432", "10.0.0.0/33", "[::1]", "a/b", ".a"]
)
def test_what_is_no_host_is_refused_with_what_may_be_written(item: str) -> None:
    with pytest.raises(ValueError, match=r"neither a host name \(db\.example or \*\.example\)"):
        Destinations.read([item])


@given(st.ip_addresses(v=4))
def test_an_address_is_judged_alike_in_whatever_it_is_wrapped(address: IPv4Address) -> None:
    destinations = Destinations.read([], api_server=API_SERVER)
    plain = destinations.refusal("db.example", str(address))
    for wrapped in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert destinations.refusal("db.example", wrapped) == plain
    if address.is_global and not address.is_multicast and str(address) != "168.63.129.16":
        assert plain is None


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("https://10.96.0.1:443", ["10.96.0.1"]),
        ("https://[fd00::1]:6443", ["fd00::1"]),
        ("https://10.96.0.1/k8s/clusters/c", ["10.96.0.1"]),
        ("https://nowhere.invalid:6443", []),
    ],
)
async def test_the_api_servers_addresses_are_those_that_we_speak_to(url: str, addresses: list[str]) -> None:
    configuration = client.Configuration()
    configuration.host = url
    assert await api_addresses(configuration) == addresses
