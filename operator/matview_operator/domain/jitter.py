"""Which part of its jitter a policy takes: always the same, so that neither restarts nor replicas move a slot."""

from __future__ import annotations

import hashlib
import uuid
from datetime import timedelta


def delay(policy_uid: uuid.UUID, *, jitter_seconds: int) -> timedelta:
    """Whole seconds from 0 to less than the jitter; slots are named in the ledger by the second."""
    return timedelta(seconds=_numbers(policy_uid)[0] % jitter_seconds) if jitter_seconds else timedelta()


def part_of_second(policy_uid: uuid.UUID, *, jitter_seconds: int) -> timedelta:
    """From 0 to less than a second after its slot: else all of one second would begin in the same instant."""
    return timedelta(milliseconds=_numbers(policy_uid)[1] % 1000) if jitter_seconds else timedelta()


def _numbers(policy_uid: uuid.UUID) -> tuple[int, int]:
    # Hashed, because UIDs that were made one after another may differ in a few bits only.
    digest = hashlib.sha256(policy_uid.bytes).digest()
    return int.from_bytes(digest[:8]), int.from_bytes(digest[8:16])
