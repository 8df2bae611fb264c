"""The views that a policy names, and how they are refreshed."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from matview_operator.api.model import ClosedSet, Model, Optional
from matview_operator.api.scalar import Identifier, OneOf, rule, rules


class Concurrently(ClosedSet):
    """Whether readers may go on reading while the view is rebuilt."""

    IF_POSSIBLE = "IfPossible"
    ALWAYS = "Always"
    NEVER = "Never"


class Guard(Model):
    """What refreshed rows must be like before anybody sees them."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.minRows) || has(self.maxRowLossPercent) || has(self.keepTenants)",
                "write at least one of guard.minRows, guard.maxRowLossPercent and guard.keepTenants",
            )
        )
    )

    min_rows: Optional[Annotated[int, Field(ge=1, le=1_000_000_000_000)]] = None
    """The fewest rows that the view may have after a refresh. Costs one count of the new rows."""
    max_row_loss_percent: Optional[Annotated[int, Field(ge=0, le=99)]] = None
    """By how many percent of its former rows the view may shrink in one refresh; 0 means not by one row. A
    view that was empty, or never populated, passes. Costs one count of the new rows and, where readers
    wait during the refresh, one of the old rows."""
    keep_tenants: Optional[Identifier] = None
    """A column of the view, literally as in the catalogue: every value that it had before must be there after
    the refresh as well, so that no tenant's rows are lost. NULL counts as no tenant. Of a type of
    PostgreSQL's own: uuid, text, varchar, char, name, an integer, numeric, or a domain over one. At most
    10,000 values of at most 256 bytes, else the refresh is rejected. Costs one grouping of the old rows and
    one of the new."""


class ViewRef(Model):
    """A view that some policy of the same MatviewDatabase names."""

    schema_name: Annotated[Identifier, Field(alias="schema")] = "public"
    """Schema of the view, literally as in pg_namespace."""
    name: Identifier
    """Name of the view, literally as in pg_class."""


ViewRefs = Annotated[
    tuple[ViewRef, ...],
    Field(
        max_length=100,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["schema", "name"],
        },
    ),
]


class ViewSpec(Model):
    """One view of a policy. Its own fields have no default in the schema: a default would mask the policy's
    value.
    """

    schema_name: Annotated[OneOf[Identifier], Field(alias="schema")] = "public"
    """Schema of the view, literally as in pg_namespace: lower case unless created with double quotes."""
    name: Identifier
    """Name of the view, literally as in pg_class: lower case unless created with double quotes."""
    concurrently: Optional[Concurrently] = None
    """Whether readers may go on reading during the refresh; the policy's value if not written."""
    timeout_seconds: Optional[Annotated[int, Field(ge=1, le=86_400)]] = None
    """The longest that a refresh of this view may take, in seconds; at most, and by default, the
    limits.timeoutSeconds of the MatviewDatabase."""
    depends_on: Optional[ViewRefs] = None
    """Views that this one reads though the catalogue does not say so, as inside a function, 100 at most; each has to be
    named by a policy of the same MatviewDatabase. What the catalogue knows need not be written. Where they are due
    together, this view is refreshed after them, and not at all if one of them fails."""
    guard: Optional[Guard] = None
    """What the refreshed rows must be like. It is checked before COMMIT, in the refresh's own transaction: if
    they are not, or if it cannot be checked, all is rolled back, the outcome is REJECTED_BY_GUARD, and
    readers never see the new rows."""


Views = Annotated[
    tuple[ViewSpec, ...],
    Field(
        min_length=1,
        max_length=100,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["schema", "name"],
        },
    ),
]
