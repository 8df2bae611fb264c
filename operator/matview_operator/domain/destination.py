"""Where the operator may connect to: whoever writes a Secret names a host, but the operator's own surroundings are not
his to reach.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_TRANSLATED = ip_network("64:ff9b::/96")
"""What a gateway makes an IPv4 address of (RFC 6052)."""

_KINDS: tuple[tuple[str, tuple[Network, ...]], ...] = (
    ("a loopback address, the operator's own host", (ip_network("127.0.0.0/8"), ip_network("::1/128"))),
    ("a link-local address, where clouds keep credentials", (ip_network("169.254.0.0/16"), ip_network("fe80::/10"))),
    (
        "an address at which a cloud keeps credentials",
        tuple(map(ip_network, ("100.100.100.200/32", "168.63.129.16/32", "fd00:ec2::254/128", "fd20:ce::254/128"))),
    ),
    ("no host's address", (ip_network("0.0.0.0/8"), ip_network("::/128"), ip_network("255.255.255.255/32"))),
    ("a multicast address", (ip_network("224.0.0.0/4"), ip_network("ff00::/8"))),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destinations:
    """What is refused, and what of it the operator's administrator allows again. Made by `read`."""

    names: frozenset[str] = frozenset()
    """In lower case; one that begins with `*.` is for every name below."""
    networks: tuple[Network, ...] = ()
    api_server: frozenset[Address] = frozenset()

    @classmethod
    def read(cls, allowed: Iterable[str], *, api_server: Iterable[str] = ()) -> Destinations:
        """Read host names, addresses and networks that are allowed. Raises ValueError that says what may be written.

        `api_server` are the addresses of Kubernetes' own.
        """
        names: set[str] = set()
        networks: list[Network] = []
        for item in allowed:
            name = item.lower().removesuffix(".")
            try:
                networks.append(ip_network(item, strict=False))
            except ValueError:
                if "/" in item or not _NAME.fullmatch(name):
                    raise ValueError(
                        f"'{item}' is neither a host name (db.example or *.example) nor an address nor a network "
                        "(as 127.0.0.0/8)"
                    ) from None
                names.add(name)
        return cls(names=frozenset(names), networks=tuple(networks), api_server=frozenset(map(ip_address, api_server)))

    def refusal(self, host: str, address: str) -> str | None:
        """Why there is no connecting to this address, which `host` led to; None if there is.

        The words fit after "The host leads to".
        """
        if self._is_allowed_name(host.lower().removesuffix(".")):
            return None
        forms = list(_forms(ip_address(address)))
        if any(form in network for form in forms for network in self.networks):
            return None
        for words, networks in _KINDS:
            if any(form in network for form in forms for network in networks):
                return words
        return None if self.api_server.isdisjoint(forms) else "the Kubernetes API server's address"

    def _is_allowed_name(self, host: str) -> bool:
        labels = host.split(".")
        above = (f"*.{'.'.join(labels[level:])}" for level in range(1, len(labels)))
        return host in self.names or not self.names.isdisjoint(above)


def _forms(address: Address) -> Iterator[Address]:
    """The address, and the IPv4 address that it stands for."""
    yield address
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _TRANSLATED:
            inner = IPv4Address(address.packed[-4:])
        if inner is not None:
            yield inner
