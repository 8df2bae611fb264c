"""GATE-2B and H-B0542-REM-2: two independent int32 keys that everybody derives alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.refreshes import a_run

from matview_operator import lock_keys
from matview_operator.api.policy import Isolation
from matview_operator.domain.view import ViewName

VIEW_KEYS = {
    "mv_allocation_summary": -198041244,
    "mv_channel_performance": -403198515,
    "mv_daily_revenue_summary": 1694992915,
    "mv_realtime_revenue": 1673308721,
    "mv_reconciliation_status": -1517786109,
}
TENANT_KEYS = {
    None: -2014051537,
    "11111111-1111-1111-1111-111111111111": 1374088925,
    "123e4567-e89b-12d3-a456-426614174000": 331071706,
}


@pytest.mark.parametrize(("view", "key"), VIEW_KEYS.items())
def test_gate_2b_golden_view_keys(view: str, key: int) -> None:
    assert lock_keys(view).view_key == key
    assert lock_keys(f"public.{view}").view_key == key


@pytest.mark.parametrize(("tenant", "key"), TENANT_KEYS.items())
def test_gate_2b_golden_tenant_keys(tenant: str | None, key: int) -> None:
    assert lock_keys("mv", tenant).tenant_key == key


def test_gate_2b_no_tenant_is_global() -> None:
    assert lock_keys("mv") == lock_keys("mv", None) == lock_keys("mv", "GLOBAL")


def test_gate_2b_same_view_same_key_other_tenant_other_key() -> None:
    one, other = lock_keys("mv", "a"), lock_keys("mv", "b")
    assert one.view_key == other.view_key
    assert one.tenant_key != other.tenant_key


@given(st.text(max_size=80), st.none() | st.text(max_size=80))
def test_rem_2_keys_are_int32_and_independent(view: str, tenant: str | None) -> None:
    keys = lock_keys(view, tenant)
    assert all(-(2**31) <= key < 2**31 for key in keys)
    assert keys.view_key == lock_keys(view, "another").view_key
    assert keys.tenant_key == lock_keys("another", tenant).tenant_key
    assert str(keys) == f"view_key={keys.view_key},tenant_key={keys.tenant_key}"


@pytest.mark.parametrize("schema", ["public", "finance"])
def test_a_run_takes_the_published_keys(schema: str) -> None:
    view = ViewName(schema, "mv")
    raw = "mv" if schema == "public" else "finance.mv"
    assert a_run(view, tenant_id="a", isolation=Isolation.TENANT).lock_keys == lock_keys(raw, "a")
    # Under Shared the tenant is a label: the view is everybody's.
    assert a_run(view, tenant_id="a").lock_keys == lock_keys(raw)
