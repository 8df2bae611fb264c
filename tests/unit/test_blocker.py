"""Who stands in a refresh's way is told in words that nobody else can choose."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from random import Random

import pytest

from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.blocker import Blocker, lock_held_problem, lock_timeout_problem
from matview_operator.domain.errors import Problem
from matview_operator.domain.retry import LOOKING_SECONDS, busy_pause

READER = Blocker(
    pid=42,
    application="report",
    kind="client backend",
    state="idle in transaction",
    since=datetime(2026, 11, 22, 12, 0, 5, tzinfo=UTC),
    lock="AccessShareLock",
    granted=True,
)
TIMEOUT = Problem(RefreshReason.LOCK_TIMEOUT, "lock timeout (SQLSTATE 55P03)", sqlstate="55P03")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, 'pid 42 "report" (idle in transaction, since 2026-11-22T12:00:05Z, reads)'),
        ({"kind": None, "state": None, "since": None}, 'pid 42 "report" (reads)'),
        ({"kind": None, "state": None, "since": None, "lock": None, "application": ""}, "pid 42"),
        ({"pid": None, "application": None, "state": None, "since": None}, "a prepared transaction (reads)"),
        (
            {"kind": "autovacuum worker", "application": "", "state": "active", "lock": "ShareUpdateExclusiveLock"},
            "pid 42 (autovacuum) (active, since 2026-11-22T12:00:05Z, VACUUM, ANALYZE or an index being built)",
        ),
        (
            {"state": None, "since": None, "lock": "AccessExclusiveLock", "granted": False, "relation": "public.t"},
            'pid 42 "report" (waits: keeps everybody out, on public.t)',
        ),
    ],
)
def test_a_blocker_is_named_with_what_the_role_may_see(changes: dict[str, object], words: str) -> None:
    assert str(replace(READER, **changes)) == words  # type: ignore[arg-type]  # fields of each case


def test_a_name_that_somebody_chose_to_mislead_is_cleaned_and_cut() -> None:
    hostile = replace(READER, application="x\x1b[2J\n\u202e" + "y" * 10_000, state="\0", relation="z" * 10_000)
    said = lock_timeout_problem(TIMEOUT, [hostile] * 50, wants_index=False).message
    assert said.isprintable()
    assert len(said) < 1024
    assert said.endswith(" and 47 more.")


def test_a_lock_timeout_keeps_what_the_server_said_and_adds_who_was_there() -> None:
    problem = lock_timeout_problem(TIMEOUT, [READER], wants_index=True)
    assert (problem.reason, problem.sqlstate) == (RefreshReason.LOCK_TIMEOUT, "55P03")
    assert problem.message.startswith("lock timeout (SQLSTATE 55P03). In the way: pid 42")
    assert "With a unique index" in problem.message
    alone = lock_timeout_problem(TIMEOUT, [], wants_index=False).message
    assert alone == "lock timeout (SQLSTATE 55P03). Nobody is in the way any more."


def test_a_held_lock_names_its_holder_if_he_is_still_there() -> None:
    assert lock_held_problem([]).message == "Another session holds the view's refresh lock."
    assert "lock: pid 42" in lock_held_problem([READER]).message


@pytest.mark.parametrize("timeout", [4.0, 20.0, 3600.0])
def test_a_view_in_use_is_looked_at_again_and_again_but_not_for_long(timeout: float) -> None:
    random, waited, looks = Random(1), 0.0, 0  # noqa: S311 - jitter
    while (pause := busy_pause(looks, waited=waited, timeout_seconds=timeout, random=random)) is not None:
        assert 0.1 <= pause <= 2
        waited += pause
        looks += 1
    assert waited <= min(LOOKING_SECONDS, timeout / 4)
    assert looks >= 3
