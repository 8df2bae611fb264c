"""Which of several operators looks after a database and its policies."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_ORDINAL = re.compile(r".*-(\d{1,4})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One of `count` parts. The whole is `Shard()`."""

    index: int = 0
    count: int = 1

    def owns(self, *, namespace: str, database: str) -> bool:
        """Whether a MatviewDatabase of this name is ours, with the policies that name it.

        The highest of one hash for each shard wins, so that another count moves no more databases than it must.
        """
        if self.count == 1:
            return True
        place = f"{namespace}/{database}"
        return self.index == max(range(self.count), key=lambda index: _weight(index, place))


def ordinal_of(pod: str) -> int | None:
    """The number at the end of the name that a StatefulSet gave its pod."""
    found = _ORDINAL.fullmatch(pod)
    return None if found is None else int(found[1])


def _weight(index: int, place: str) -> bytes:
    return hashlib.sha256(f"{index}:{place}".encode()).digest()
