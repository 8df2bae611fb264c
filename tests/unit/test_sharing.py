"""Who may name one view of one MatviewDatabase: no tenant loses rows."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.ports import EPOCH
from tests.unit.world import policy_spec

from matview_operator.api.outcome import RefreshReason
from matview_operator.api.policy import MatviewRefreshPolicySpec
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.errors import Problem
from matview_operator.engine.ports import Key, ObjectRef
from matview_operator.engine.registry import Policy, Registry

SHARED: dict[str, Any] = {}


def tenant(name: str) -> dict[str, Any]:
    return {"isolation": "Tenant", "tenantId": name}


def policy(name: str, *, views: str = "mv", namespace: str = "analytics", **fields: Any) -> Policy:
    spec = policy_spec(name, views=[{"name": view} for view in views.split()], **fields)
    return Policy(
        ref=ObjectRef(
            kind="MatviewRefreshPolicy",
            key=Key(namespace, name),
            uid=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{namespace}/{name}")),
        ),
        generation=1,
        created_at=EPOCH,
        spec=MatviewRefreshPolicySpec.model_validate(spec),
        status=MatviewRefreshPolicyStatus(),
        taken_until=EPOCH,
    )


def problems(*policies: Policy) -> list[Problem | None]:
    registry = Registry()
    for each in policies:
        registry.add_policy(each)
    return [registry.sharing_problem(each) for each in policies]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (tenant("a"), tenant("b")),
        (tenant("a"), SHARED),
        (tenant("a"), {"tenantId": "a"}),  # under Shared the tenant id is a label
        (tenant("a"), tenant("A")),
    ],
)
def test_a_view_under_tenant_beside_another_use_is_a_problem_for_both(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    found = problems(policy("one", **first), policy("two", **second))
    assert [problem and problem.reason for problem in found] == [RefreshReason.SHARED_VIEW] * 2
    assert found[0] is not None
    assert found[1] is not None
    assert "analytics/two" in found[0].message
    assert "analytics/one" in found[1].message


@pytest.mark.parametrize(
    "others",
    [
        [policy("two", **tenant("a"))],  # the same tenant's
        [policy("two", views="other", **tenant("b"))],
        [policy("two", databaseRef={"name": "elsewhere"}, **tenant("b"))],
        [policy("one", namespace="elsewhere", **tenant("b"))],  # its database is another object
        [policy("two", views='"mv"', **tenant("b"))],  # names are literal
    ],
)
def test_no_problem_where_the_view_or_its_tenant_is_not_the_same(others: list[Policy]) -> None:
    assert problems(policy("one", **tenant("a")), *others) == [None, *[None] * len(others)]


def test_shared_policies_of_many_tenants_go_together() -> None:
    assert problems(*(policy(f"p{n}", tenantId=f"t{n}") for n in range(5))) == [None] * 5


def test_a_public_view_and_one_of_the_same_name_in_another_schema_are_two() -> None:
    elsewhere = policy("two", **tenant("b"))
    assert elsewhere.spec is not None
    other = elsewhere.spec.views[0].model_copy(update={"schema_name": "reports"})
    elsewhere = replace(elsewhere, spec=elsewhere.spec.model_copy(update={"views": (other,)}))
    assert problems(policy("one", **tenant("a")), elsewhere) == [None, None]


def test_one_of_several_views_is_enough() -> None:
    found = problems(policy("one", views="x mv", **tenant("a")), policy("two", views="mv y", **tenant("b")))
    assert all(problem is not None and problem.message.startswith("mv ") for problem in found)


def test_the_problem_ends_with_the_rival_and_the_registry_keeps_nothing_of_it() -> None:
    registry = Registry()
    one, two = policy("one", **tenant("a")), policy("two", **tenant("b"))
    registry.add_policy(one)
    registry.add_policy(two)
    assert registry.rivals(one) == {two.key}
    assert registry.sharing_problem(one) is not None
    registry.remove_policy(two.key)
    assert registry.sharing_problem(one) is None
    assert registry.rivals(one) == set()
    registry.remove_policy(one.key)
    assert (registry.policies, registry._by_view, registry._by_database) == ({}, {}, {})


def test_a_changed_policy_stands_in_its_former_place_only() -> None:
    registry = Registry()
    one = policy("one", **tenant("a"))
    registry.add_policy(one)
    registry.add_policy(policy("two", **tenant("b")))
    registry.add_policy(policy("two", views="other", databaseRef={"name": "elsewhere"}, **tenant("b")))
    assert registry.sharing_problem(one) is None
    assert registry.policies_of(Key("analytics", "db")) == [one]
    assert [each.key.name for each in registry.policies_of(Key("analytics", "elsewhere"))] == ["two"]
