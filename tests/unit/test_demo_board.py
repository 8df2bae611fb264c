"""The demo's board: readable at 80 columns, fuller at 140, and honest about what is wrong."""

from __future__ import annotations

import io
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console
from sandbox.demo.board import Board
from sandbox.demo.lines import before_and_after, outcome_line, reading_line
from sandbox.demo.policies import Policy
from sandbox.demo.readings import Reading
from sandbox.demo.scene import Scene
from sandbox.demo.words import age, sparkline
from sandbox.reference import Tenant

TENANT = Tenant(tenant_id=uuid.UUID(int=1), name="Alpenglow Outdoor", currency="EUR")
NOW = datetime.now(UTC)


def policy(name: str, *, outcome: str = "SUCCESS", reason: str = "", message: str = "") -> Policy:
    now = datetime.now(UTC)  # the board reads the clock: a constant would age while other tests run
    status: dict[str, Any] = {
        "conditions": [{"type": "Ready", "status": "False" if reason else "True", "reason": reason or "Scheduled"}],
        "schedule": "every 5s",
        "nextSlotTime": (now + timedelta(seconds=60)).isoformat(),
        "views": [{"dataAsOf": (now - timedelta(seconds=200)).isoformat(), "rowsInserted": 12, "rowsDeleted": 3}],
        "history": [
            {
                "slotTime": now.isoformat(),
                "outcome": outcome,
                "startedAt": (now + timedelta(milliseconds=4)).isoformat(),
                "durationMs": 1234,
                **({"message": message} if message else {}),
            }
        ],
    }
    return Policy.read(
        {
            "metadata": {
                "uid": name,
                "namespace": "tenant-a",
                "name": name,
                "generation": 1,
                "creationTimestamp": now.isoformat(),
            },
            "spec": {"schedule": {"everySeconds": 5}, "tenantId": str(TENANT.tenant_id)},
            "status": status,
        }
    )


@pytest.fixture
def reading() -> Reading:
    reading = Reading(view="mv_realtime_revenue", tenant=TENANT, what="revenue", unit="EUR", query="")
    for in_view, in_tables in ((1000, 1000), (1000, 1250), (1300, 1310)):
        reading.take(in_view=Decimal(in_view), in_tables=Decimal(in_tables))
    return reading


def drawn(scene: Scene, *, width: int, height: int = 45) -> str:
    file = io.StringIO()
    Console(file=file, width=width, height=height, force_terminal=True, color_system=None).print(Board(scene))
    return file.getvalue()


def scene_of(*policies: Policy, readings: list[Reading]) -> Scene:
    scene = Scene(tenants={str(TENANT.tenant_id): TENANT.name}, readings=readings)
    scene.update(policies)
    return scene


@pytest.mark.parametrize("width", [80, 112, 140])
def test_the_board_shows_everything_at_any_width(width: int, reading: Reading) -> None:
    board = drawn(scene_of(policy("realtime-revenue"), readings=[reading]), width=width)
    assert max(len(line.rstrip()) for line in board.splitlines()) <= width
    for shown in (
        "realtime-revenue",
        "SUCCESS",
        "200 s",
        "in 60 s",
        "1.2 s",
        "+12 -3",
        "1,000.00",
        "1,300.00",
        "1,310.00",
    ):
        assert shown in board, shown
    assert ("Alpenglow Outdoor" in board) == (width > 80)
    assert ("every 5s" in board) == (width >= 138)
    assert "…" not in board


def test_a_small_terminal_loses_old_news_and_nothing_else(reading: Reading) -> None:
    scene = scene_of(*(policy(f"gone-{number}") for number in range(20)), readings=[reading] * 3)
    scene.update(policy(f"policy-{number}") for number in range(7))
    board = drawn(scene, width=80, height=24).rstrip("\n")
    assert len(board.splitlines()) < 24
    assert board.splitlines()[-1].startswith("Ctrl-C")
    assert all(f"\npolicy-{number}" in board for number in range(7))


def test_what_is_wrong_is_said_by_its_name(reading: Reading) -> None:
    reading.problem = "relation does not exist"
    scene = scene_of(
        policy("broken", outcome="FAILED", message="public.mv is gone"),
        policy("never", reason="ViewNotFound"),
        readings=[reading],
    )
    board = drawn(scene, width=140)
    for shown in ("FAILED", "public.mv is gone", "ViewNotFound", "relation does not exist"):
        assert shown in board, shown


def test_what_ended_is_news_once() -> None:
    revenue = policy("revenue")
    scene = scene_of(revenue, readings=[])
    assert len(scene.ended) == 1
    assert scene.update([revenue]) == []
    assert outcome_line(scene.ended[0]).endswith("tenant-a/revenue SUCCESS +12 -3 rows in 1.2 s, 4 ms late")


def test_lines_tell_a_view_before_and_after_beside_the_truth(reading: Reading) -> None:
    subject = "mv_realtime_revenue, revenue of Alpenglow Outdoor in EUR"
    assert before_and_after(reading) == f"  {subject}: was 1,000.00, refreshed to 1,300.00, tables 1,310.00"
    assert reading_line(reading) == f"  {subject}: view 1,300.00, tables 1,310.00, behind 10.00"


def test_bars_are_as_high_as_the_view_is_behind() -> None:
    assert sparkline([Decimal(0), Decimal(50), Decimal(100)], width=10) == "▁▅█"
    assert sparkline([Decimal(0)] * 3, width=2) == "▁▁"
    assert sparkline([], width=5) == ""


def test_an_age_is_never_negative() -> None:
    assert age(NOW + timedelta(seconds=2), now=NOW) == "0 s"
    assert age(NOW - timedelta(minutes=20), now=NOW) == "20 min"
    assert age(None, now=NOW) == "-"
