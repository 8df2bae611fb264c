"""Which policies of one MatviewDatabase may not name the same view."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem
from matview_operator.domain.view import GLOBAL, TenantToken, ViewName


def sharing_problem(
    view: ViewName, own: TenantToken, users: Mapping[TenantToken, Collection[object]]
) -> Problem | None:
    """Two tenants' policies under Tenant, or one under Tenant beside a Shared one, would undo each other's rows.

    `users`: the policies that name the view, by lock token: the tenant id under Tenant, GLOBAL under Shared.
    """
    for token, policies in users.items():
        if token != own and policies:
            kind = "is Shared" if token == GLOBAL else "is another tenant's"
            return Problem(
                RefreshReason.SHARED_VIEW,
                f"{view} is also named by policy {min(map(str, policies))}, which {kind}. A view of several tenants "
                "needs isolation: Shared in every policy that names it; a view under Tenant belongs to one tenant.",
            )
    return None
