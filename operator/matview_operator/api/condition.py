"""A condition of a custom resource, as Kubernetes' own types have it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from matview_operator.api.model import Model, Optional
from matview_operator.api.scalar import ConditionMessage, Count, Reason, Time

ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(Model):
    """One statement about a resource that is true, false or unknown, with the reason why."""

    type: Reason
    """What the condition states: Ready, Fresh, Stalled or Reconciling."""
    status: ConditionStatus
    """Whether it holds: True, False or Unknown."""
    reason: Reason
    """One word for why, for programs: a name in CamelCase."""
    message: ConditionMessage = ""
    """The same for people, with what to do about it."""
    last_transition_time: Time
    """When the status last changed from one value to another."""
    observed_generation: Optional[Count] = None
    """The metadata.generation of the spec that this condition speaks of."""


Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]
