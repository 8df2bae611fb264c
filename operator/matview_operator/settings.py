"""Settings of the operator's process, from the environment (prefix MATVIEW_) or the command line."""

from __future__ import annotations

import socket
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from matview_operator.domain.destination import Destinations
from matview_operator.domain.shard import Shard, ordinal_of


class Settings(BaseSettings):
    """Each field is an environment variable with the prefix MATVIEW_, and an option of `matview-operator run`."""

    model_config = SettingsConfigDict(env_prefix="MATVIEW_", frozen=True, extra="ignore")

    namespaces: Annotated[tuple[str, ...], NoDecode] = ()
    """Namespaces to watch; all if none is named. In the environment separated by commas."""

    @field_validator("namespaces", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts of databases to connect to although they are loopback, link-local or the API server's: names, also
    *.example, addresses and networks. In the environment separated by commas."""

    @field_validator("allowed_hosts")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        Destinations.read(value)
        return value

    host: str = "0.0.0.0"  # noqa: S104 - in a pod Prometheus and the kubelet come from outside
    """Address that /metrics, /healthz and /readyz listen on."""
    port: int = Field(default=8080, ge=1, le=65535)
    """Port that /metrics, /healthz and /readyz listen on."""
    max_concurrent_refreshes: int = Field(default=32, ge=1, le=1000)
    """Refreshes at once over all databases; each database has its own limit besides, and gets half of these at most,
    so that a hung server leaves places to the others. While all are held for long, each database may run one more."""
    idle_connection_seconds: float = Field(default=5, ge=0, le=60)
    """How long a connection waits for the next refresh of its database, four of a database at most and as many in all
    as refreshes; 0 gives each refresh a connection of its own."""
    ledger_keep_days: int = Field(default=30, ge=8, le=36_500)
    """After how many days the ledger forgets a run. Longer than the longest startingDeadlineSeconds, a week: a slot
    that may still be tried is not to be forgotten."""
    shutdown_grace_seconds: float = Field(default=20, ge=0, le=3600)
    """How long SIGTERM lets runs end before it stops them; less than terminationGracePeriodSeconds."""
    leader_elect: bool = False
    """Whether several processes may be started, of which the one that holds the Lease works and the others stand by."""
    lease_name: str = Field(default="matview-operator", pattern=r"^[a-z0-9]([-a-z0-9]{0,198}[a-z0-9])?$")
    """The Lease's name; with shards followed by a hyphen and the shard's index."""
    lease_namespace: str | None = None
    """The Lease's namespace; the pod's own if none is named."""
    shard_count: int = Field(default=1, ge=1, le=100)
    """Into how many shards the databases are divided, each with its policies."""
    shard_index: int | None = Field(default=None, ge=0, validate_default=True)
    """Which of them is this process's, from 0; the number at the end of the host's name if none is named, as a
    StatefulSet gives it to its pods."""

    @field_validator("shard_index")
    @classmethod
    def _one_of_the_shards(cls, value: int | None, info: ValidationInfo) -> int | None:
        count = info.data.get("shard_count")
        if count is None:
            return value  # which is told already
        index = 0 if value is None and count == 1 else value
        index = ordinal_of(socket.gethostname()) if index is None else index
        if index is None:
            raise ValueError("is missing, and this host's name does not end with a number")
        if index >= count:
            raise ValueError(f"shard {index} is none of {count}, which are numbered from 0")
        return index

    @property
    def shard(self) -> Shard:
        """What this process looks after."""
        return Shard(index=self.shard_index or 0, count=self.shard_count)

    @property
    def lease(self) -> str:
        """The name of the Lease, one for each shard."""
        return self.lease_name if self.shard_count == 1 else f"{self.lease_name}-{self.shard.index}"

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """What is logged at least."""
    log_format: Literal["json", "text"] = "json"
    """json for machines, text for a terminal."""
    verbose_errors: bool = False
    """Whether status, events and logs repeat what the server says of an error inside a view's query. It may hold rows;
    without it, only the kind of error is told."""
    revision: str = "unknown"
    """Commit that the image was built from, for matview_build_info."""
