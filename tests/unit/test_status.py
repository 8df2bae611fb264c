"""A policy's status: slots, requests, missed slots and judgements folded in."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

import pytest
from tests.unit.ports import EPOCH, at
from tests.unit.world import policy_spec

from matview_operator.adapters.kube.status_writer import status_document
from matview_operator.api.outcome import RefreshMode, RefreshOutcome, RefreshReason
from matview_operator.api.policy import MatviewRefreshPolicySpec
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.conditions import Statement
from matview_operator.domain.errors import Problem
from matview_operator.domain.reading import read_policy_status
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.schedule import Timetable
from matview_operator.domain.slot import Slot, SlotReport, is_request_token, requested, scheduled
from matview_operator.domain.status import (
    Standing,
    after_missed,
    after_slot,
    for_views,
    fresh_after,
    fresh_after_missed,
    oldest_verified,
    with_conditions,
)
from matview_operator.domain.view import ViewName

NOTHING = MatviewRefreshPolicyStatus()
SPEC = MatviewRefreshPolicySpec.model_validate(policy_spec("p", views=[{"name": "a"}, {"name": "b"}]))
WELL = Standing(generation=2, problem=None)


def result(outcome: RefreshOutcome = RefreshOutcome.SUCCESS, *, when: datetime = EPOCH, **fields: Any) -> RefreshResult:
    if outcome is RefreshOutcome.SUCCESS:
        fields = {"data_as_of": when, "verified_at": when, "mode": RefreshMode.CONCURRENT} | fields
    return RefreshResult(
        view_name="v",
        tenant_id="someone",
        correlation_id="c",
        outcome=outcome,
        started_at=when,
        duration_ms=12,
        lock_key_debug="view_key=1,tenant_key=2",
        **fields,
    )


def report(*results: RefreshResult, slot: Slot | None = None, seconds: float = 0, views: str = "a b c d") -> SlotReport:
    chosen = slot or scheduled(at(seconds), starting_deadline_seconds=20)
    return SlotReport(
        slot=chosen,
        correlation_id=f"of-{chosen.id}",
        started_at=at(seconds + 1),
        ended_at=at(seconds + 3.5),
        results=tuple((ViewName("public", view), each) for view, each in zip(views.split(), results, strict=False)),
    )


def folded(*reports: SlotReport, history_limit: int = 5) -> MatviewRefreshPolicyStatus:
    status = NOTHING
    for each in reports:
        status = after_slot(status, each, history_limit=history_limit)
    return status


def judged(
    status: MatviewRefreshPolicyStatus, standing: Standing = WELL, now: datetime = EPOCH, **fields: Any
) -> dict[str, tuple[str, str, str]]:
    said = with_conditions(status, standing, timetable=None, next_slot=None, now=now, **fields)
    return {each.type: (each.status, each.reason, each.message) for each in said.conditions}


def test_a_slot_during_which_the_clock_is_set_back_took_no_time() -> None:
    late = scheduled(at(0), starting_deadline_seconds=20)
    set_back = SlotReport(
        slot=late,
        correlation_id="c",
        started_at=at(3600),
        ended_at=at(1),
        results=((ViewName("public", "a"), result()),),
    )
    assert folded(set_back).history[0].duration_ms == 0


FAILED = result(RefreshOutcome.FAILED, error_type=RefreshReason.TIMEOUT, error_message="too slow")
SKIPPED = result(RefreshOutcome.SKIPPED_LOCK_HELD, error_type=RefreshReason.LOCK_HELD)
STOPPED = result(RefreshOutcome.INTERRUPTED, error_type=RefreshReason.SHUTDOWN)


def test_a_slot_is_one_entry_and_a_fixed_projection_of_each_result() -> None:
    told = result(when=at(1), rows_inserted=3, rows_deleted=1, estimated_rows=10, size_bytes=8192, attempts=2)
    status = folded(report(told))
    document = status.to_document()
    assert document["views"] == [
        {
            "schema": "public",
            "name": "a",
            "outcome": "SUCCESS",
            "mode": "Concurrent",
            "correlationId": "c",
            "startedAt": "2026-11-22T12:00:01Z",
            "durationMs": 12,
            "dataAsOf": "2026-11-22T12:00:01Z",
            "verifiedAt": "2026-11-22T12:00:01Z",
            "rowsInserted": 3,
            "rowsDeleted": 1,
            "estimatedRows": 10,
            "sizeBytes": 8192,
            "attempts": 2,
            "consecutiveFailures": 0,
        }
    ]
    assert document["history"] == [
        {
            "slotTime": "2026-11-22T12:00:00Z",
            "outcome": "SUCCESS",
            "startedAt": "2026-11-22T12:00:01Z",
            "durationMs": 2500,
            "views": 1,
            "failed": 0,
            "correlationId": "of-slot:2026-11-22T12:00:00Z",
        }
    ]
    assert (document["lastSlotTime"], document["lastSuccessTime"]) == (
        "2026-11-22T12:00:00Z",
        "2026-11-22T12:00:03.500000Z",
    )
    assert document["consecutiveFailures"] == 0
    assert "someone" not in str(document)  # no tenant, no lock keys
    assert "view_key" not in str(document)


def test_the_worst_view_stands_for_the_slot_and_failures_are_counted() -> None:
    entry = folded(report(result(), SKIPPED, FAILED, result())).history[0]
    assert (entry.outcome, entry.views, entry.failed, entry.message) == (RefreshOutcome.FAILED, 4, 1, "too slow")
    assert folded(report(result(), SKIPPED)).history[0].outcome is RefreshOutcome.SKIPPED_LOCK_HELD
    assert folded(report(SKIPPED, STOPPED)).history[0].outcome is RefreshOutcome.INTERRUPTED
    assert folded(report(result(RefreshOutcome.SKIPPED_COVERED), result())).history[0].outcome is RefreshOutcome.SUCCESS


def test_every_outcome_has_its_place_among_the_worst() -> None:
    for outcome in RefreshOutcome:
        assert report(result(outcome)).worst.outcome is outcome


def test_history_is_newest_first_and_bounded() -> None:
    status = folded(*(report(result(), seconds=30 * n) for n in range(4)), history_limit=3)
    assert [entry.slot_time for entry in status.history] == [at(90), at(60), at(30)]
    assert folded(report(result()), history_limit=0).history == ()
    assert len(after_slot(status, report(result(), seconds=120), history_limit=1).history) == 1


def test_what_a_run_did_not_find_out_is_still_true_of_its_view() -> None:
    first = result(when=at(1), estimated_rows=10, size_bytes=8192, rows_inserted=3)
    (view,) = folded(report(first), report(FAILED, seconds=30)).views
    assert (view.outcome, view.reason, view.message) == (RefreshOutcome.FAILED, "Timeout", "too slow")
    assert (view.data_as_of, view.verified_at, view.estimated_rows, view.size_bytes) == (at(1), at(1), 10, 8192)
    assert (view.rows_inserted, view.mode) == (None, None)  # these are the run's, not the view's


def test_failures_in_a_row_are_counted_by_view_and_by_slot() -> None:
    status = folded(report(FAILED, result()), report(FAILED, FAILED, seconds=30))
    assert [view.consecutive_failures for view in status.views] == [2, 1]
    assert status.consecutive_failures == 2
    # A skip is neither a failure nor freshness.
    status = after_slot(status, report(SKIPPED, result(), seconds=60), history_limit=5)
    assert ([view.consecutive_failures for view in status.views], status.consecutive_failures) == ([2, 0], 2)
    status = after_slot(status, report(result(RefreshOutcome.SKIPPED_COVERED), result()), history_limit=5)
    assert ([view.consecutive_failures for view in status.views], status.consecutive_failures) == ([0, 0], 0)


def test_a_slot_that_our_shutdown_stopped_stays_due_and_is_no_failure() -> None:
    before = folded(report(result()), report(FAILED, seconds=30))
    after = after_slot(before, report(STOPPED, seconds=60), history_limit=5)
    assert after.last_slot_time == before.last_slot_time == at(30)
    assert (after.consecutive_failures, after.views[0].consecutive_failures) == (1, 1)
    assert after.history[0].outcome is RefreshOutcome.INTERRUPTED
    asked = requested("r1", now=at(60), starting_deadline_seconds=20)
    assert after_slot(before, report(result(), STOPPED, slot=asked), history_limit=5).last_handled_request is None


def test_a_request_is_echoed_even_if_it_failed_and_is_no_slot() -> None:
    asked = requested("r1", now=at(40), starting_deadline_seconds=20)
    status = after_slot(folded(report(result())), report(FAILED, slot=asked), history_limit=5)
    assert (status.last_handled_request, status.last_slot_time) == ("r1", at(0))
    assert (status.history[0].request, status.history[0].slot_time) == ("r1", None)
    assert report(result(), slot=asked).correlation_id == "of-request:r1"


def test_a_slot_that_was_run_again_is_told_once_as_it_ended_at_last() -> None:
    before = folded(report(result(), seconds=30), report(FAILED, FAILED, seconds=60))
    again = after_slot(before, report(FAILED, result(), seconds=60), history_limit=5)
    assert ([view.consecutive_failures for view in again.views], again.consecutive_failures) == ([1, 0], 1)
    assert [(entry.slot_time, entry.failed) for entry in again.history] == [(at(60), 1), (at(30), 0)]
    well = after_slot(again, report(result(), result(), seconds=60), history_limit=5)
    assert ([view.consecutive_failures for view in well.views], well.consecutive_failures) == ([0, 0], 0)
    assert [entry.slot_time for entry in well.history] == [at(60), at(30)]


def test_the_last_slot_never_goes_back() -> None:
    assert folded(report(result(), seconds=60), report(result(), seconds=30)).last_slot_time == at(60)
    late = after_missed(folded(report(result(), seconds=60)), count=1, newest=at(30), now=at(60))
    assert late.last_slot_time == at(60)


def test_the_last_slot_never_goes_back_though_the_clock_was_set_forward_while_an_older_one_was_worked_on() -> None:
    hours = 6 * 3600
    told = after_missed(NOTHING, count=700, newest=at(hours), now=at(hours))
    slow = dataclasses.replace(report(result(), seconds=30), ended_at=at(hours + 5))
    assert after_slot(told, slow, history_limit=5).last_slot_time == at(hours)
    # A wrong clock's is another matter.
    assert after_slot(told, report(result(), seconds=60), history_limit=5).last_slot_time == at(60)


def test_missed_slots_add_up_and_the_newest_is_never_replayed() -> None:
    status = after_missed(after_missed(NOTHING, count=3, now=at(60)), count=2, newest=at(60), now=at(60))
    assert (status.missed_slots, status.last_slot_time) == (5, at(60))


def test_fresh_says_which_view_is_not_and_why() -> None:
    assert fresh_after(report(result(), result(RefreshOutcome.SKIPPED_COVERED))).status == "True"
    said = fresh_after(report(result(), SKIPPED, FAILED))
    assert (said.status, said.reason, said.message) == ("False", "Timeout", "c: too slow")
    skipped = fresh_after(report(result(), SKIPPED))
    assert (skipped.status, skipped.reason) == ("False", "LockHeld")
    missed = fresh_after_missed(at(60))
    assert (missed.status, missed.reason) == ("False", "SlotMissed")
    assert "2026-11-22T12:01:00Z" in missed.message


def test_fresh_is_unknown_until_a_slot_has_ended_and_then_says_the_same_until_the_next() -> None:
    assert judged(NOTHING)["Fresh"][:2] == ("Unknown", "NotYetRun")
    status = with_conditions(
        NOTHING, WELL, timetable=None, next_slot=None, now=at(0), fresh=fresh_after(report(result()))
    )
    later = with_conditions(status, WELL, timetable=None, next_slot=None, now=at(9999))
    assert later.conditions == status.conditions


def test_ready_is_false_at_once_for_a_problem_and_after_three_failed_slots_otherwise() -> None:
    problem = Problem(RefreshReason.PERMISSION_DENIED, "GRANT it")
    said = judged(NOTHING, Standing(generation=1, problem=problem))
    assert said["Ready"] == ("False", "PermissionDenied", "GRANT it")
    assert said["Stalled"] == ("True", "PermissionDenied", "GRANT it")

    two, three = (folded(*(report(FAILED, seconds=30 * n) for n in range(count))) for count in (2, 3))
    assert judged(two)["Ready"][:2] == ("True", "Scheduled")
    assert judged(three)["Ready"] == ("False", "Timeout", "3 slots in a row failed. a: too slow")
    assert judged(after_slot(three, report(result()), history_limit=5))["Ready"][0] == "True"


def test_three_failures_that_need_a_person_are_stalled() -> None:
    denied = result(RefreshOutcome.FAILED, error_type=RefreshReason.PERMISSION_DENIED, error_message="no")
    stalled, failed = (folded(*(report(each, seconds=30 * n) for n in range(3))) for each in (denied, FAILED))
    assert judged(stalled)["Stalled"][:2] == ("True", "PermissionDenied")
    assert "Stalled" not in judged(failed)


def test_a_reason_of_another_version_does_not_break_the_judgement() -> None:
    stored = {
        "consecutiveFailures": 3,
        "views": [{"schema": "public", "name": "a", "reason": "FromTheFuture", "consecutiveFailures": 3}],
    }
    assert judged(read_policy_status({"status": stored}))["Ready"][:2] == ("False", "InternalError")


def test_ready_says_suspended_or_blocking_and_still_is_true() -> None:
    assert judged(NOTHING, Standing(generation=1, problem=None, suspended=True))["Ready"][:2] == ("True", "Suspended")
    note = Statement("Ready", "True", "BlockingRefresh", "Readers wait")
    said = judged(NOTHING, Standing(generation=1, problem=None, note=note))
    assert said["Ready"] == ("True", "BlockingRefresh", "Readers wait")


def test_before_the_first_preflight_the_stored_conditions_are_repeated() -> None:
    unjudged = Standing(generation=1, problem=None, is_judged=False)
    assert judged(NOTHING, unjudged)["Ready"][:2] == ("Unknown", "NotYetChecked")
    problem = Problem(RefreshReason.NO_UNIQUE_INDEX, "make one")
    stored = with_conditions(
        NOTHING, Standing(generation=1, problem=problem), timetable=None, next_slot=None, now=at(0)
    )
    again = with_conditions(stored, unjudged, timetable=None, next_slot=None, now=at(50))
    assert again.conditions == stored.conditions


def test_reconciling_is_there_while_a_request_is_worked_on_only() -> None:
    working = Standing(generation=1, problem=None, working_on="r1")
    assert judged(NOTHING, working)["Reconciling"][:2] == ("True", "RefreshRequested")
    assert "Reconciling" not in judged(NOTHING)


def test_the_schedules_fields_follow_the_spec() -> None:
    status = with_conditions(NOTHING, WELL, timetable=Timetable(schedule=SPEC.schedule), next_slot=at(30), now=at(1))
    assert (status.schedule, status.next_slot_time, status.observed_generation) == ("every 30s", at(30), 2)
    stopped = with_conditions(status, WELL, timetable=None, next_slot=None, now=at(2))
    assert (stopped.schedule, stopped.next_slot_time) == (None, None)


def test_views_that_the_policy_names_no_longer_are_forgotten() -> None:
    status = folded(report(result(), result()))
    assert [view.name for view in for_views(status, [ViewName("public", "b")]).views] == ["b"]
    assert for_views(status, [ViewName("public", "a"), ViewName("public", "b")]) is status
    assert for_views(status, [ViewName("reports", "a")]).views == ()


def test_the_stalest_view_is_the_policys_age() -> None:
    status = folded(report(result(when=at(5)), result(when=at(2))))
    assert oldest_verified(status, SPEC) == at(2)
    assert oldest_verified(folded(report(result(when=at(5)))), SPEC) is None  # b never was
    assert oldest_verified(NOTHING, SPEC) is None
    # While the spec is invalid, the age goes on growing from where it was.
    assert oldest_verified(status, None) == at(2)
    assert oldest_verified(NOTHING, None) is None


def test_a_status_survives_the_api_server_unchanged() -> None:
    """Else a restarted operator would write every policy's status anew."""
    status = with_conditions(
        folded(report(result(when=at(1.25), rows_inserted=1), FAILED)),
        Standing(generation=1, problem=Problem(RefreshReason.TIMEOUT, "slow"), working_on="r"),
        timetable=Timetable(schedule=SPEC.schedule),
        next_slot=at(30),
        now=at(3.123456),
    )
    assert read_policy_status({"status": status.to_document()}) == status


def test_the_patch_removes_what_is_not_true_any_more() -> None:
    document = status_document(with_conditions(NOTHING, WELL, timetable=None, next_slot=None, now=at(0)))
    assert document["nextSlotTime"] is None
    assert document["lastHandledRequest"] is None
    assert document["views"] == []
    assert [condition["type"] for condition in document["conditions"]] == ["Ready", "Fresh"]
    assert set(document) == {field.alias or name for name, field in MatviewRefreshPolicyStatus.model_fields.items()}


@pytest.mark.parametrize("token", ["2026-11-22T12:00:00Z", "!", "~" * 128])
def test_a_request_is_any_printable_word(token: str) -> None:
    assert is_request_token(token)


@pytest.mark.parametrize("token", ["", "a b", "a\n", "\ta", "~" * 129, "ü", "a\x7f"])
def test_anything_else_is_no_request(token: str) -> None:
    assert not is_request_token(token)
