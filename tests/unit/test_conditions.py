"""Conditions and the events that their transitions make."""

from __future__ import annotations

import pytest
from tests.unit.ports import at

from matview_operator.api.condition import Condition
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.conditions import (
    BLOCKING,
    FRESH,
    READY,
    RECONCILING,
    STALLED,
    Statement,
    Transition,
    merge,
    not_ready,
    statement_of,
    transitions,
)

WELL = Statement(READY, "True", "Scheduled", "well")


def conditions(*statements: Statement) -> tuple[Condition, ...]:
    return merge((), statements, generation=1, now=at(0))


def test_the_transition_time_moves_with_the_status_alone() -> None:
    first = conditions(WELL)
    said_otherwise = merge(first, [Statement(READY, "True", BLOCKING, "slow")], generation=2, now=at(10))
    assert said_otherwise[0].last_transition_time == at(0)
    assert (said_otherwise[0].reason, said_otherwise[0].observed_generation) == (BLOCKING, 2)
    changed = merge(said_otherwise, [Statement(READY, "False", "ViewNotFound", "gone")], generation=2, now=at(20))
    assert changed[0].last_transition_time == at(20)


def test_a_condition_that_is_not_stated_any_more_is_dropped() -> None:
    stalled = conditions(*not_ready(RefreshReason.NO_UNIQUE_INDEX, "make one"))
    assert [condition.type for condition in stalled] == [READY, STALLED]
    assert [condition.type for condition in merge(stalled, [WELL], generation=1, now=at(1))] == [READY]


@pytest.mark.parametrize(
    "reason",
    [
        RefreshReason.INVALID_SPEC,
        RefreshReason.SHARED_VIEW,
        RefreshReason.NOT_MATERIALIZED_VIEW,
        RefreshReason.NO_UNIQUE_INDEX,
        RefreshReason.PERMISSION_DENIED,
        RefreshReason.ROW_SECURITY_HAZARD,
        RefreshReason.SUPERUSER_REFUSED,
    ],
)
def test_what_only_a_person_can_mend_is_stalled(reason: RefreshReason) -> None:
    assert not_ready(reason, "do it") == [
        Statement(READY, "False", reason, "do it"),
        Statement(STALLED, "True", reason, "do it"),
    ]


@pytest.mark.parametrize(
    "reason", [RefreshReason.CONNECTION_LOST, RefreshReason.TIMEOUT, RefreshReason.DATABASE_NOT_FOUND]
)
def test_what_may_pass_by_itself_is_not_stalled(reason: RefreshReason) -> None:
    assert [statement.type for statement in not_ready(reason, "wait")] == [READY]


def test_a_statement_can_be_said_again_word_for_word() -> None:
    assert statement_of(conditions(WELL), READY) == WELL
    assert statement_of(conditions(WELL), FRESH) is None


def test_an_event_is_made_where_status_or_reason_changed_and_nowhere_else() -> None:
    well = conditions(WELL)
    gone = conditions(Statement(READY, "False", "ViewNotFound", "no mv"))
    lost = conditions(Statement(READY, "False", "ConnectionLost", "no server"))
    assert transitions((), well) == [Transition("Normal", "Scheduled", "well")]
    assert transitions(well, well) == []
    assert transitions(well, gone) == [Transition("Warning", "ViewNotFound", "no mv")]
    assert transitions(gone, conditions(Statement(READY, "False", "ViewNotFound", "no other mv"))) == []
    assert transitions(gone, lost) == [Transition("Warning", "ConnectionLost", "no server")]
    assert transitions(lost, well) == [Transition("Normal", "Scheduled", "well")]


def test_from_one_way_of_being_well_to_another_there_is_no_event_but_a_blocking_refresh_is_warned_of() -> None:
    well, suspended = conditions(WELL), conditions(Statement(READY, "True", "Suspended", "still"))
    blocking = conditions(Statement(READY, "True", BLOCKING, "readers wait"))
    assert transitions(well, suspended) == []
    assert transitions(well, blocking) == [Transition("Warning", BLOCKING, "readers wait")]
    assert transitions(blocking, blocking) == []
    assert transitions(blocking, well) == []


def test_stalled_reconciling_and_unknown_make_no_event_of_their_own() -> None:
    before = conditions(Statement(READY, "False", "InvalidSpec", "bad"))
    after = conditions(
        *not_ready(RefreshReason.INVALID_SPEC, "bad"), Statement(RECONCILING, "True", "RefreshRequested", "r1")
    )
    assert transitions(before, after) == []
    assert transitions((), conditions(Statement(FRESH, "Unknown", "NotYetRun", "not yet"))) == []


def test_fresh_makes_events_both_ways() -> None:
    fresh = conditions(Statement(FRESH, "True", "Refreshed", "by run 1"))
    stale = conditions(Statement(FRESH, "False", "Timeout", "mv"))
    assert transitions(fresh, stale) == [Transition("Warning", "Timeout", "mv")]
    assert transitions(stale, fresh) == [Transition("Normal", "Refreshed", "by run 1")]
    assert transitions(fresh, conditions(Statement(FRESH, "True", "Refreshed", "by run 2"))) == []
