"""Which policies of one MatviewDatabase may not name the same view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem
from matview_operator.domain.view import GLOBAL, TenantToken, ViewName

Key = TypeVar("Key")


def sharing_problem(view: ViewName, own: TenantToken, others: Mapping[Key, TenantToken]) -> Problem | None:
    """Two tenants' policies under Tenant, or one under Tenant beside a Shared one, would undo each other's rows.

    `own` and the values of `others` are lock tokens: the tenant id under Tenant, GLOBAL under Shared.
    """
    for other, token in others.items():
        if token != own:
            kind = "is Shared" if token == GLOBAL else "is another tenant's"
            return Problem(
                RefreshReason.SHARED_VIEW,
                f"{view} is also named by policy {other}, which {kind}. A view of several tenants needs "
                "isolation: Shared in every policy that names it; a view under Tenant belongs to one tenant.",
            )
    return None
