"""Requests of the command line and the Python functions: what is refused, and what the ledger knows them by."""

from __future__ import annotations

import math
from typing import Any

import pytest

from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently
from matview_operator.domain.errors import InvalidRequest
from matview_operator.domain.request import Request
from matview_operator.domain.view import ViewName

VIEW = ViewName("public", "mv")


def a_request(**fields: Any) -> Request:
    defaults: dict[str, Any] = {
        "tenant_id": None,
        "isolation": Isolation.SHARED,
        "concurrently": Concurrently.IF_POSSIBLE,
        "timeout_seconds": 10,
        "correlation_id": "c",
        "token": "t",
    }
    return Request(**defaults | fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tenant_id": "GLOBAL"}, "GLOBAL stands for no tenant"),
        ({"tenant_id": ""}, "tenant id must have 1 to 63"),
        ({"tenant_id": "a" * 64}, "tenant id must have 1 to 63 characters, not 64"),
        ({"tenant_id": "a\nb"}, "tenant id must hold printable"),
        ({"tenant_id": "a\0"}, "tenant id must hold printable"),
        ({"tenant_id": "\udc80"}, "tenant id must hold printable"),
        ({"isolation": Isolation.TENANT}, "needs a tenant id"),
        ({"correlation_id": ""}, "correlation id must have 1 to 128"),
        ({"correlation_id": "c" * 129}, "correlation id must have 1 to 128"),
        ({"correlation_id": "\x1b[2J"}, "correlation id must hold printable"),
        ({"search_path": ("app", "pg_temp")}, r"search path\[1\]: name schemas of yours"),
        ({"timeout_seconds": 0}, "timeout"),
        ({"timeout_seconds": -1}, "timeout"),
        ({"timeout_seconds": 86_401}, "timeout"),
        ({"timeout_seconds": math.nan}, "timeout"),
        ({"timeout_seconds": math.inf}, "timeout"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        a_request(**fields)


def test_the_ledger_tells_requests_by_token_isolation_and_lock_token() -> None:
    def key(**fields: Any) -> tuple[object, object]:
        run = a_request(**fields).run(VIEW)
        return run.policy_uid, run.slot_id

    tenant = {"isolation": Isolation.TENANT, "tenant_id": "a"}
    keys = [
        key(),
        key(token="other"),
        key(**tenant),
        key(isolation=Isolation.TENANT, tenant_id="b"),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == key()
    # Under Shared everybody's work is the same, whatever tenant it is labelled with.
    assert key(tenant_id="a") == key()
    assert key()[1] == "request:t"


def test_a_request_is_never_covered_by_an_earlier_run() -> None:
    assert a_request().run(VIEW).due_at is None
