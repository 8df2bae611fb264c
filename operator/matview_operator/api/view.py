"""The views that a policy names, and how they are refreshed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from matview_operator.api.model import ClosedSet, Model, Optional
from matview_operator.api.scalar import Identifier


class Concurrently(ClosedSet):
    """Whether readers may go on reading while the view is rebuilt."""

    IF_POSSIBLE = "IfPossible"
    ALWAYS = "Always"
    NEVER = "Never"


class ViewSpec(Model):
    """One view of a policy. Its own fields have no default in the schema: a default would mask the policy's
    value.
    """

    schema_name: Annotated[Identifier, Field(alias="schema")] = "public"
    """Schema of the view, literally as in pg_namespace: lower case unless created with double quotes."""
    name: Identifier
    """Name of the view, literally as in pg_class: lower case unless created with double quotes."""
    concurrently: Optional[Concurrently] = None
    """Whether readers may go on reading during the refresh; the policy's value if not written."""
    timeout_seconds: Optional[Annotated[int, Field(ge=1, le=86_400)]] = None
    """The longest that a refresh of this view may take, in seconds; at most, and by default, the
    limits.timeoutSeconds of the MatviewDatabase."""


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
