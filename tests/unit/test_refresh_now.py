"""Refresh now: the annotation requestedAt, run once, echoed when all views have ended."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from tests.unit.ports import FAILED, at
from tests.unit.world import POLICY, World, key, policy_spec, until

from matview_operator.api.model import REQUESTED_AT

pytestmark = pytest.mark.looptime(noop_cycles=3)

YEARLY: dict[str, Any] = {"schedule": {"everySeconds": 31_536_000}}


async def test_a_request_runs_at_once_and_is_echoed_when_all_views_have_ended() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        place = world.policy(views=[{"name": "a"}, {"name": "b"}], **YEARLY)
        world.executor.seconds = 10
        await until(5)
        world.api.annotate(place, "r1")
        await until(16)
        assert [call.at for call in world.executor.calls] == [at(5), at(15)]
        assert world.condition(place, "Reconciling") == ("True", "RefreshRequested")
        assert "lastHandledRequest" not in world.api.status(place)
        await until(26)
        status = world.api.status(place)
        assert status["lastHandledRequest"] == "r1"
        assert world.condition(place, "Reconciling") is None
        assert world.condition(place, "Fresh") == ("True", "Refreshed")
        assert (status["history"][0]["request"], status["history"][0]["correlationId"]) == ("r1", "r1")
        assert {view["correlationId"] for view in status["views"]} == {"r1"}
        assert "lastSlotTime" not in status
        assert {call.run.slot_id for call in world.executor.calls} == {"request:r1"}
        assert world.metrics.lags == []  # a request has no due time to lag behind


async def test_its_own_status_writes_and_other_metadata_do_not_repeat_it() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**YEARLY)
        await until(1)
        world.api.annotate(place, "r1")
        world.api.annotate(place, "r1")
        await until(5)
        world.api.put(POLICY, place, policy_spec("mv", **YEARLY), annotations={REQUESTED_AT: "r1", "note": "x"})
        world.policy(**YEARLY, suspend=True)
        world.policy(**YEARLY)
        await until(700)
        assert len(world.executor.calls) == 1


async def test_a_failed_request_is_echoed_too() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**YEARLY)
        world.executor.script["mv"] = [FAILED]
        await until(1)
        world.api.annotate(place, "r1")
        await until(2)
        assert world.api.status(place)["lastHandledRequest"] == "r1"
        assert world.api.status(place)["history"][0]["outcome"] == "FAILED"


@pytest.mark.parametrize("harm", ["suspended database", "no database", "bug"])
async def test_a_request_that_cannot_be_run_is_answered_with_the_reason(harm: str) -> None:
    async with World() as world:
        if harm != "no database":
            world.database(suspend=harm == "suspended database")
        place = world.policy(**YEARLY)
        world.executor.script["mv"] = [RuntimeError("a bug")]
        await until(1)
        world.api.annotate(place, "r1")
        await until(3)
        status = world.api.status(place)
        assert status["lastHandledRequest"] == "r1"
        expected = {
            "suspended database": "DatabaseSuspended",
            "no database": "DatabaseNotFound",
            "bug": "InternalError",
        }
        assert status["views"][0]["reason"] == expected[harm]
        assert world.condition(place, "Reconciling") is None


async def test_a_request_runs_on_a_suspended_policy() -> None:
    async with World() as world:
        world.database()
        place = world.policy(suspend=True)
        await until(1)
        world.api.annotate(place, "r1")
        await until(100)
        assert [call.at for call in world.executor.calls] == [at(1)]
        assert world.api.status(place)["lastHandledRequest"] == "r1"


async def test_of_requests_that_wait_the_newest_runs_and_superseded_ones_never_do() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**YEARLY)
        world.executor.seconds = 10
        await until(1)
        for token in ("r1", "r2", "r3"):
            world.api.annotate(place, token)
            await until(2)
        await until(100)
        assert [call.run.correlation_id for call in world.executor.calls] == ["r1", "r3"]
        assert world.api.status(place)["lastHandledRequest"] == "r3"


async def test_t12_a_flood_of_requests_is_one_run_a_second_at_most_and_queues_nothing() -> None:
    async with World() as world:
        world.database()
        place, neighbour = world.policy(**YEARLY), world.policy("neighbour")
        world.executor.seconds = 0.01
        await until(1)
        writes = world.api.writes_to(place)
        for number in range(1000):
            world.api.annotate(place, f"r{number}")
            assert world.supervisor.queue_depth <= 1
            await until(1 + number * 0.06)
        await until(63)
        runs = [call for call in world.executor.calls if call.run.view.name == "mv"]
        assert 50 <= len(runs) <= 63
        assert min(later.at - earlier.at for earlier, later in pairwise(runs)) >= timedelta(seconds=1)
        assert runs[-1].run.correlation_id == "r999"
        assert world.api.status(place)["lastHandledRequest"] == "r999"
        # Taken up, and answered.
        assert world.api.writes_to(place) - writes <= 2 * len(runs)
        assert len(world.events.of(place)) <= 4
        assert len(world.api.status(place)["history"]) == 5
        slots = [call.at for call in world.executor.calls if call.run.view.name == "neighbour"]
        assert slots == [at(30), at(60)]
        assert world.condition(neighbour, "Fresh") == ("True", "Refreshed")


async def test_two_tokens_in_one_moment_are_one_run_of_the_newest() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**YEARLY)
        await until(1)
        world.api.annotate(place, "r1")
        world.api.annotate(place, "r2")
        await until(100)
        assert [call.run.correlation_id for call in world.executor.calls] == ["r2"]


async def test_a_token_that_is_back_while_it_runs_takes_the_waiting_one_with_it() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**YEARLY)
        world.executor.seconds = 10
        await until(1)
        world.api.annotate(place, "r1")
        await until(2)
        world.api.annotate(place, "r2")
        world.api.annotate(place, "r1")
        await until(100)
        assert [call.run.correlation_id for call in world.executor.calls] == ["r1"]


async def test_a_withdrawn_request_that_has_not_begun_does_not_run() -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        world.executor.seconds = 10
        await until(31)
        world.api.annotate(place, "r1")
        world.api.annotate(place, None)
        await until(59)
        assert [call.run.due_at for call in world.executor.calls] == [at(30)]


async def test_a_spec_change_in_the_moment_of_the_request_does_not_run_it_twice() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**YEARLY)
        await until(1)
        world.api.annotate(place, "r1")
        world.policy(**YEARLY, historyLimit=3)
        world.policy(**YEARLY, historyLimit=4)
        await until(100)
        assert [call.run.correlation_id for call in world.executor.calls] == ["r1"]
        assert world.api.status(place)["lastHandledRequest"] == "r1"


async def test_a_spec_change_while_it_runs_does_not_run_it_twice_and_loses_no_answer() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**YEARLY)
        world.executor.seconds = 10
        await until(1)
        world.api.annotate(place, "r1")
        await until(5)
        world.policy(**YEARLY, historyLimit=3)
        await until(8)
        assert world.condition(place, "Reconciling") == ("True", "RefreshRequested")
        await until(100)
        assert len(world.executor.calls) == 1
        assert world.api.status(place)["lastHandledRequest"] == "r1"
        assert world.condition(place, "Reconciling") is None


async def test_a_request_that_waits_for_a_place_runs_the_views_of_its_time() -> None:
    async with World() as world:
        world.database(limits={"maxConcurrentRefreshes": 1})
        world.policy("hog")
        place = world.policy("mv", **YEARLY)
        world.executor.seconds = 20
        await until(31)
        world.api.annotate(place, "r1")
        await until(35)
        world.policy("mv", views=[{"name": "other"}], **YEARLY)
        await until(59)
        assert world.executor.views == ["hog", "other"]
        await until(80)
        assert world.api.status(place)["lastHandledRequest"] == "r1"


async def test_a_request_goes_before_the_slot_that_waits() -> None:
    async with World() as world:
        world.database()
        place = world.policy(startingDeadlineSeconds=1000)
        world.executor.seconds = 40
        await until(65)  # 30 is in flight until 70, 60 waits
        world.api.annotate(place, "r1")
        await until(109)
        assert [call.run.slot_id for call in world.executor.calls][1] == "request:r1"


async def test_a_request_made_while_the_operator_was_down_runs_at_start() -> None:
    world = await World().__aenter__()
    world.database()
    place = world.policy(**YEARLY)
    await until(1)
    await world.crash()
    world.api.annotate(place, "r1")
    async with World(former=world) as again:
        await until(5)
        assert [call.run.correlation_id for call in again.executor.calls] == ["r1"]
        await again.crash()
    async with World(former=again) as third:
        await until(10)
        assert len(third.executor.calls) == 1


async def test_a_request_whose_answer_was_lost_in_a_crash_is_answered_after_it() -> None:
    world = await World().__aenter__()
    world.database()
    place = world.policy(**YEARLY)
    world.executor.seconds = 10
    await until(1)
    world.api.annotate(place, "r1")
    await until(5)
    assert world.condition(place, "Reconciling") == ("True", "RefreshRequested")
    await world.crash()
    async with World(former=world) as again:
        await until(30)
        assert [call.run.slot_id for call in again.executor.calls] == ["request:r1"] * 2
        assert again.api.status(place)["lastHandledRequest"] == "r1"
        assert again.condition(place, "Reconciling") is None


@pytest.mark.parametrize("token", ["", "two words", "ü", "x" * 129])
async def test_what_cannot_be_a_request_is_one_warning_and_no_run(token: str) -> None:
    async with World() as world:
        world.database()
        place = world.policy()
        await until(1)
        world.api.annotate(place, token)
        await until(95)  # three slots and their status writes later
        world.policy(historyLimit=3)
        await until(125)
        events = world.events.of(place)
        assert events.count(("Warning", "InvalidRequest")) == 1
        assert all(call.run.due_at is not None for call in world.executor.calls)
        world.api.annotate(place, "r1")
        await until(126)
        assert world.api.status(place)["lastHandledRequest"] == "r1"


async def test_a_policy_with_an_invalid_spec_runs_its_request_when_it_is_mended() -> None:
    async with World() as world:
        world.database()
        place = world.policy(schedule={"cron": "99 * * * *"})
        await until(1)
        world.api.annotate(place, "r1")
        await until(5)
        assert world.executor.calls == []
        world.policy(**YEARLY)
        await until(6)
        assert [call.run.correlation_id for call in world.executor.calls] == ["r1"]


async def test_requests_of_deleted_and_new_policies_of_one_name_do_not_mix() -> None:
    async with World() as world:
        world.database()
        place = world.policy(**YEARLY)
        world.executor.seconds = 10
        await until(1)
        world.api.annotate(place, "r1")
        await until(2)
        world.api.delete(POLICY, key("mv"))
        world.policy(**YEARLY, annotations={REQUESTED_AT: "r1"})
        await until(60)
        assert [call.at for call in world.executor.calls] == [at(1), at(2)]
        assert world.executor.cancelled == ["mv"]
        assert len({call.run.policy_uid for call in world.executor.calls}) == 2
        assert world.api.status(place)["lastHandledRequest"] == "r1"
