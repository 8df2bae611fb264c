"""matview-operator keeps PostgreSQL materialized views fresh; these are its public Python functions.

What they need is loaded at first use, so that `matview_operator.api` alone costs no database driver.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _installed_version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matview_operator.api.outcome import RefreshOutcome as RefreshOutcome
    from matview_operator.domain.errors import MatviewError as MatviewError
    from matview_operator.domain.lock_keys import lock_keys as lock_keys
    from matview_operator.domain.result import RefreshResult as RefreshResult
    from matview_operator.executor import refresh_all_for_tenant as refresh_all_for_tenant
    from matview_operator.executor import refresh_all_for_tenant_async as refresh_all_for_tenant_async
    from matview_operator.executor import refresh_single as refresh_single
    from matview_operator.executor import refresh_single_async as refresh_single_async

    __version__: str

_HOMES = {
    "MatviewError": "domain.errors",
    "RefreshOutcome": "api.outcome",
    "RefreshResult": "domain.result",
    "lock_keys": "domain.lock_keys",
    "refresh_all_for_tenant": "executor",
    "refresh_all_for_tenant_async": "executor",
    "refresh_single": "executor",
    "refresh_single_async": "executor",
}

__all__ = [
    "MatviewError",
    "RefreshOutcome",
    "RefreshResult",
    "__version__",
    "lock_keys",
    "refresh_all_for_tenant",
    "refresh_all_for_tenant_async",
    "refresh_single",
    "refresh_single_async",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _installed_version("matview-operator")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
