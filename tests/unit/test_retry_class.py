"""The one table of how soon what failed is tried again, and the pauses that follow from it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.api.policy import Retry
from matview_operator.domain.conditions import NEEDS_A_PERSON
from matview_operator.domain.result import RefreshResult
from matview_operator.domain.retry_class import RETRY_CLASSES, RetryClass, retry_class, retry_pause

FAILURES = (Path(__file__).parents[2] / "docs" / "failures.md").read_text()
RETRIES = st.builds(
    lambda limit, base, more: Retry(limit=limit, backoff_seconds=base, max_backoff_seconds=base + more),
    st.integers(0, 20),
    st.integers(1, 3600),
    st.integers(0, 80_000),
)
KINDS = st.sampled_from([RetryClass.AT_ONCE, RetryClass.BACK_OFF, RetryClass.SLOW])


def result(reason: RefreshReason | None, outcome: RefreshOutcome = RefreshOutcome.FAILED) -> RefreshResult:
    return RefreshResult(
        view_name="mv",
        tenant_id=None,
        correlation_id="one",
        outcome=outcome,
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        duration_ms=5,
        error_type=reason,
        lock_key_debug="view_key=1,tenant_key=2",
    )


def pause(kind: RetryClass, retries: int, retry: Retry, seed: int, *, requested: bool = False) -> float | None:
    return retry_pause(kind, retries=retries, retry=retry, requested=requested, random=Random(seed))  # noqa: S311 - jitter


def test_every_reason_has_a_class() -> None:
    assert set(RETRY_CLASSES) == set(RefreshReason)


def test_what_needs_a_person_is_never_tried_again_by_time() -> None:
    assert {RETRY_CLASSES[reason] for reason in NEEDS_A_PERSON} == {RetryClass.ON_CHANGE}


def test_the_classes_are_documented_reason_by_reason() -> None:
    chapter = FAILURES.split("\n## When it is tried again\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("| ").split(" | ") for line in chapter.splitlines() if line.startswith("| ")][2:]
    documented = {reason: cells[0] for cells in rows for reason in re.findall(r"`(\w+)`", cells[1])}
    names = {
        RetryClass.AT_ONCE: "at once",
        RetryClass.BACK_OFF: "back-off",
        RetryClass.LADDER: "ladder",
        RetryClass.SLOW: "slow",
        RetryClass.ON_CHANGE: "on change",
        RetryClass.NEXT_SLOT: "next slot",
    }
    assert documented == {reason.value: names[kind] for reason, kind in RETRY_CLASSES.items()}


@given(retry=RETRIES, kind=KINDS, more=st.integers(0, 25), seed=st.integers(), requested=st.booleans())
def test_after_the_limit_nothing_is_tried_again(
    retry: Retry, kind: RetryClass, more: int, seed: int, *, requested: bool
) -> None:
    assert pause(kind, retry.limit + more, retry, seed, requested=requested) is None


@given(RETRIES, st.integers(0, 19), st.integers())
def test_back_off_has_full_jitter_up_to_a_doubling_and_capped_time(retry: Retry, retries: int, seed: int) -> None:
    if retries >= retry.limit:
        return
    longest = min(retry.max_backoff_seconds, retry.backoff_seconds * 2**retries)
    chosen = pause(RetryClass.BACK_OFF, retries, retry, seed)
    assert chosen is not None
    assert 0 <= chosen <= longest
    # What is gone at once is one step behind.
    if retries + 1 < retry.limit:
        assert pause(RetryClass.AT_ONCE, retries + 1, retry, seed) == chosen
    assert pause(RetryClass.AT_ONCE, 0, retry, seed) == 0


def test_full_jitter_uses_the_whole_of_the_time() -> None:
    retry = Retry(limit=3, backoff_seconds=10, max_backoff_seconds=600)
    drawn = sorted(pause(RetryClass.BACK_OFF, 1, retry, seed) or 0.0 for seed in range(1000))
    assert drawn[100] < 3
    assert 9 < drawn[500] < 11
    assert 17 < drawn[900] < 20


@given(RETRIES, st.integers(0, 19), st.integers())
def test_what_lasts_waits_for_most_of_the_longest_pause_and_a_request_does_not_wait_for_it(
    retry: Retry, retries: int, seed: int
) -> None:
    if retries < retry.limit:
        chosen = pause(RetryClass.SLOW, retries, retry, seed)
        assert chosen is not None
        assert retry.max_backoff_seconds / 2 <= chosen <= retry.max_backoff_seconds
    assert pause(RetryClass.SLOW, retries, retry, seed, requested=True) is None


@given(RETRIES, st.sampled_from([RetryClass.ON_CHANGE, RetryClass.NEXT_SLOT]), st.integers())
def test_what_no_time_mends_is_not_tried_again_by_time(retry: Retry, kind: RetryClass, seed: int) -> None:
    assert pause(kind, 0, retry, seed) is None


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([result(None, RefreshOutcome.SUCCESS)], None),
        ([result(RefreshReason.COVERED, RefreshOutcome.SKIPPED_COVERED)], None),
        ([result(RefreshReason.DEADLOCK)], RetryClass.AT_ONCE),
        ([result(RefreshReason.CONNECTION_LOST, RefreshOutcome.INTERRUPTED)], RetryClass.AT_ONCE),
        ([result(RefreshReason.SHUTDOWN, RefreshOutcome.INTERRUPTED)], RetryClass.NEXT_SLOT),
        ([result(RefreshReason.TOO_FEW_ROWS, RefreshOutcome.REJECTED_BY_GUARD)], RetryClass.NEXT_SLOT),
        ([result(None)], RetryClass.NEXT_SLOT),
        # A group: the view that failed decides, and of several the one that takes longest to mend.
        (
            [
                result(RefreshReason.GROUP_ROLLED_BACK, RefreshOutcome.INTERRUPTED),
                result(RefreshReason.LOCK_TIMEOUT),
            ],
            RetryClass.BACK_OFF,
        ),
        ([result(RefreshReason.CONNECTION_FAILED), result(RefreshReason.VIEW_NOT_FOUND)], RetryClass.ON_CHANGE),
    ],
)
def test_the_class_of_an_attempt_is_that_of_what_failed_in_it(
    results: list[RefreshResult], expected: RetryClass | None
) -> None:
    assert retry_class(results) is expected
