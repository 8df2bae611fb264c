"""Which part of its jitter a policy takes: always the same, so that neither restarts nor replicas move a slot."""

from __future__ import annotations

import hashlib
import uuid
from datetime import timedelta


def delay(policy_uid: uuid.UUID, *, jitter_seconds: int) -> timedelta:
    """Whole seconds from 0 to less than the jitter; slots are named in the ledger by the second."""
    if jitter_seconds == 0:
        return timedelta()
    # Hashed, because UIDs that were made one after another may differ in a few bits only.
    number = int.from_bytes(hashlib.sha256(policy_uid.bytes).digest()[:8])
    return timedelta(seconds=number % jitter_seconds)
