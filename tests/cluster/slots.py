"""The slots of a policy, each accounted for: by its status, by the ledger, and by what has committed in PostgreSQL."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sandbox.pgtemplate import SUPERUSER
from tests.cluster.tenant import Json, Tenant, policy
from tests.database import Database

from matview_operator.domain.run import slot_id

HISTORY = 50
"""What a status remembers at most; a test that lasts for more slots loses some."""

# The row of a settled slot and what its view noted were written by one transaction, or the slot was not claimed by
# the refresh itself. The slots, one for each refresh that committed.
_CLAIMED = """
select r.slot_id from matview_ops.refresh_run r join public.committed c on c.view = r.view_name and c.xid::xid = r.xmin
where r.settles and r.outcome = 'SUCCESS' and r.policy_uid = $1
"""
_SETTLED = "select count(*) from matview_ops.refresh_run where settles and policy_uid = $1"
_COMMITTED = "select count(*) from public.committed where view = $1"
_BEGUN = "select case when is_called then last_value else 0 end from public.begun"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """What a policy of one view tells of its slots, from its first one to the newest that ended."""

    uid: str
    view: str
    due: frozenset[str]
    """Those of the schedule, by the ledger's name for them, whatever the operator says."""
    refreshed: frozenset[str]
    covered: frozenset[str]
    """For which a refresh stands that was begun later than they were due."""
    missed: int

    @classmethod
    def told(cls, stored: Json) -> Slots:
        """Read a policy as `every` makes it; fails unless each slot has ended once, or is counted as missed."""
        spec, status = stored["spec"], stored["status"]
        every = timedelta(seconds=spec["schedule"]["everySeconds"])
        created, last = (
            _multiple(datetime.fromisoformat(text), every)
            for text in (stored["metadata"]["creationTimestamp"], status["lastSlotTime"])
        )
        due = [slot_id(created + every * number) for number in range(1, (last - created) // every + 1)]
        entries = Counter((_slot(entry), entry["outcome"]) for entry in status["history"] if "slotTime" in entry)
        slots = cls(
            uid=stored["metadata"]["uid"],
            view=spec["views"][0]["name"],
            due=frozenset(due),
            refreshed=frozenset(slot for slot, outcome in entries if outcome == "SUCCESS"),
            covered=frozenset(slot for slot, outcome in entries if outcome == "SKIPPED_COVERED"),
            missed=status.get("missedSlots", 0),
        )
        assert len(due) <= spec["historyLimit"], "too many to be remembered"
        assert sum(entries.values()) == len(slots.refreshed | slots.covered), entries
        assert slots.refreshed | slots.covered <= slots.due, entries
        assert len(slots.refreshed | slots.covered) + slots.missed == len(due), (entries, slots.missed, due)
        return slots

    async def check_ledger(self, database: Database, *, changes: int = 0) -> None:
        """Each slot that was refreshed has one row and one refresh, in one transaction, and nothing else was refreshed.

        After so many changes of leader there may be as many that were refreshed and, not having been told, count as
        missed.
        """
        rows = await database.fetch_as(SUPERUSER, _CLAIMED, self.uid)
        claimed = Counter(str(row["slot_id"]) for row in rows)
        assert set(claimed.values()) <= {1}, claimed
        assert claimed.keys() >= self.refreshed, (claimed, self.refreshed)
        assert claimed.keys() <= self.due, (claimed, self.due)
        untold = claimed.keys() - self.refreshed
        assert len(untold) <= min(changes, self.missed), untold
        assert await _count(database, _SETTLED, self.uid) == len(claimed)
        assert await _count(database, _COMMITTED, self.view) == len(claimed)

    async def check_bare(self, database: Database, *, changes: int) -> int:
        """Return how many refreshes there were beside the one of each slot: one for each change of leader at most."""
        committed = await _count(database, _COMMITTED, self.view)
        assert len(self.refreshed) <= committed <= len(self.refreshed) + changes, (committed, self.refreshed)
        return committed - len(self.refreshed)


async def broken_off(database: Database) -> int:
    """How many refreshes were begun and did not commit, of all views together."""
    return await _count(database, _BEGUN) - await _count(database, "select count(*) from public.committed")


def counted(name: str, view: str, *, every: int, **spec: Any) -> Json:
    """A policy whose status remembers all its slots."""
    return policy(name, view, every=every, historyLimit=HISTORY, **spec)


async def refreshes(tenant: Tenant, view: str) -> int:
    """How many refreshes of a view have committed."""
    return await _count(tenant.database, _COMMITTED, view)


async def _count(database: Database, query: str, *arguments: object) -> int:
    return int(str(await database.value_as(SUPERUSER, query, *arguments)))


def _slot(entry: Json) -> str:
    return slot_id(datetime.fromisoformat(entry["slotTime"]))


def _multiple(instant: datetime, every: timedelta) -> datetime:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return instant - (instant - epoch) % every
