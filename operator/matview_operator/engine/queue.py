"""Who waits for a place on one database: tenants in turns, and first come first served for each."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, auto

from matview_operator.domain.errors import MatviewError
from matview_operator.engine.ports import Key
from matview_operator.engine.rounds import Rounds


class NoPlace(MatviewError):
    """No place became free in time, or none is given any more because the process ends."""


class State(Enum):
    """How far one has come."""

    WAITS = auto()
    HAS_A_PLACE = auto()
    REFUSED = auto()
    OVER = auto()


@dataclass(slots=True, eq=False)
class Turn:
    """Somebody's stand in the line, and then a place to run in."""

    database: Key
    tenant: str | None
    """Whose it is among the database's tenants; None is one of its own."""
    state: State = State.WAITS
    _stirred: asyncio.Future[None] | None = None

    def reach(self, state: State) -> None:
        """Be so far, and wake who waits for it."""
        self.state = state
        if self._stirred is not None and not self._stirred.done():
            self._stirred.set_result(None)

    async def come(self, *, seconds: float | None) -> None:
        """Wait for the place so long at most; one that is there is given however little time is left. Raises NoPlace.

        One at a time may wait.
        """
        if self.state is State.WAITS:
            self._stirred = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(seconds):
                    await self._stirred
            except TimeoutError:
                raise NoPlace from None
        if self.state is State.REFUSED:
            raise NoPlace


class Queue:
    """The turns of one database. Each operation takes constant time."""

    def __init__(self) -> None:
        self.taken = 0
        """Places that are held."""
        self._rounds: Rounds[str | None] = Rounds()
        self._lines: dict[str | None, OrderedDict[Turn, None]] = {}

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._rounds)

    def __len__(self) -> int:
        """How many wait."""
        return sum(map(len, self._lines.values()))

    def put(self, turn: Turn) -> None:
        """Let it stand at its tenant's end."""
        self._lines.setdefault(turn.tenant, OrderedDict())[turn] = None
        self._rounds.add(turn.tenant)

    def take(self) -> Turn:
        """Take the next one out, of whom there is one."""
        turn = next(iter(self._lines[self._rounds.turn()]))
        self.remove(turn)
        return turn

    def remove(self, turn: Turn) -> None:
        """Take out one that waits."""
        line = self._lines[turn.tenant]
        del line[turn]
        if not line:
            del self._lines[turn.tenant]
            self._rounds.discard(turn.tenant)

    def refuse(self) -> None:
        """Send all away."""
        for turn in [turn for line in self._lines.values() for turn in line]:
            self.remove(turn)
            turn.reach(State.REFUSED)
