"""The two advisory-lock keys of a view. Public and documented, so that other jobs can take the same lock."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

from matview_operator.domain.view import GLOBAL


class LockKeys(NamedTuple):
    """Arguments of pg_try_advisory_xact_lock(int, int): two signed 32-bit integers."""

    view_key: int
    tenant_key: int

    def __str__(self) -> str:
        return f"view_key={self.view_key},tenant_key={self.tenant_key}"


@lru_cache(maxsize=1024)  # a run asks five times
def lock_keys(view_name: str, tenant_id: str | None = None) -> LockKeys:
    """Return the keys of a view and a tenant; no tenant means GLOBAL.

    `view_name` is raw and unquoted, `schema.name`, or the bare name for schema public (`public.` is stripped).
    Each key is the first four bytes of SHA-256 of `view:<name>` or `tenant:<token>`, big-endian, signed.
    """
    return LockKeys(
        view_key=_int32(f"view:{view_name.removeprefix('public.')}"),
        tenant_key=_int32(f"tenant:{GLOBAL if tenant_id is None else tenant_id}"),
    )


def _int32(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big", signed=True)


GLOBAL_KEY = _int32(f"tenant:{GLOBAL}")
"""The tenant key of whoever wants a view for all tenants; every run takes it besides its own."""
