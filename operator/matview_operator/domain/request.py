"""What the command line and the Python functions ask for: one request, for one view or several."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matview_operator.api.policy import Isolation
from matview_operator.api.view import Concurrently, Guard
from matview_operator.domain.errors import InvalidRequest
from matview_operator.domain.run import Run, function_policy_uid, lock_token, request_id
from matview_operator.domain.search_path import search_path_problems
from matview_operator.domain.text import is_printable
from matview_operator.domain.view import GLOBAL, ViewName

TENANT_SETTING = "app.current_tenant_id"
DEFAULT_TIMEOUT_SECONDS = 3600.0
MAX_TIMEOUT_SECONDS = 86_400.0
TENANT_CHARACTERS = 63
CORRELATION_CHARACTERS = 128
"""The ledger's index holds the correlation id, and an index's rows are bounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A refresh that no policy asks for. Raises InvalidRequest where the arguments make no sense."""

    tenant_id: str | None
    isolation: Isolation
    concurrently: Concurrently
    timeout_seconds: float
    """Of each view's run."""
    correlation_id: str
    token: str
    """What the ledger knows the work by: one token does its work once. The correlation id where the caller wants that;
    else something that nobody used before."""
    verbose_errors: bool = False
    """Whether results repeat the server's words where they may hold rows."""
    guard: Guard | None = None
    """For each view alike."""
    search_path: tuple[str, ...] = ()
    """Schemas, literally."""

    def __post_init__(self) -> None:
        if self.tenant_id == GLOBAL:
            raise InvalidRequest("The tenant id GLOBAL stands for no tenant; leave the tenant out.")
        if self.tenant_id is not None:
            _check_text("tenant id", self.tenant_id, characters=TENANT_CHARACTERS)
        elif self.isolation is Isolation.TENANT:
            raise InvalidRequest("Isolation Tenant needs a tenant id: whose are these views?")
        _check_text("correlation id", self.correlation_id, characters=CORRELATION_CHARACTERS)
        for problem in search_path_problems(self.search_path):
            raise InvalidRequest(f"search path{problem}")
        if not (math.isfinite(self.timeout_seconds) and 0 < self.timeout_seconds <= MAX_TIMEOUT_SECONDS):
            raise InvalidRequest(f"The timeout must be more than 0 and at most {MAX_TIMEOUT_SECONDS:.0f} seconds.")

    def run(self, view: ViewName) -> Run:
        """This request's run of one view."""
        return Run(
            view=view,
            tenant_id=self.tenant_id,
            isolation=self.isolation,
            tenant_setting=TENANT_SETTING,
            concurrently=self.concurrently,
            timeout_seconds=self.timeout_seconds,
            lock_timeout_millis=None,
            allow_superuser=False,
            policy_uid=function_policy_uid(self.isolation, lock_token(self.isolation, self.tenant_id)),
            slot_id=request_id(self.token),
            due_at=None,
            correlation_id=self.correlation_id,
            guard=self.guard,
            search_path=self.search_path,
        )


def _check_text(what: str, text: str, *, characters: int) -> None:
    if not 1 <= len(text) <= characters:
        raise InvalidRequest(f"The {what} must have 1 to {characters} characters, not {len(text)}.")
    if not is_printable(text):
        raise InvalidRequest(f"The {what} must hold printable characters only.")
