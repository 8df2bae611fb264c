"""A URL opens no file and reads no environment variable of the process that connects, whatever it holds."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.opened_files import opened_files

from matview_operator.adapters.postgres.wire.connection import connect
from matview_operator.api.database import SslMode
from matview_operator.domain.connection import ConnectionTarget, Pem, parse_url
from matview_operator.domain.errors import InvalidTarget, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRAPS = {
    "PGPASSFILE": ".pgpass",
    "PGSERVICEFILE": ".pg_service.conf",
    "PGSSLROOTCERT": ".postgresql/root.crt",
    "PGSSLCERT": ".postgresql/postgresql.crt",
    "PGSSLKEY": ".postgresql/postgresql.key",
    "PGSSLCRL": ".postgresql/root.crl",
    "SSLKEYLOGFILE": "keys.log",
}
"""Environment variables, and files of the home that they name."""
CONTENTS = "[trap]\nhost=127.0.0.1\n*:*:*:*:trapped\n"
ENVIRONMENT = {
    "PGHOST": "/run",
    "PGPORT": "1",
    "PGUSER": "trapped",
    "PGPASSWORD": "trapped",
    "PGDATABASE": "trapped",
    "PGSERVICE": "trap",
    "PGOPTIONS": "-c role=trapped",
    "PGSSLMODE": "disable",
    "PGSSLNEGOTIATION": "direct",
    "PGTARGETSESSIONATTRS": "standby",
    "PGKRBSRVNAME": "trapped",
    "PGGSSLIB": "sspi",
}
OPTIONS = """
    channel_binding gssencmode gsslib host hostaddr krbsrvname options passfile password port require_auth
    search_path service servicefile ssl sslcert sslcrl sslkey sslmode sslnegotiation sslpassword sslrootcert
    target_session_attrs user
""".split()


class Watched(dict[str, str]):
    """An environment that knows who looked at it."""

    def __init__(self, values: dict[str, str]) -> None:
        super().__init__(values)
        self.read: list[object] = []

    def __getitem__(self, name: str) -> str:
        self.read.append(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.append(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.read.append(name)
        return super().__contains__(name)


@contextmanager
def watched_environment(values: dict[str, str]) -> Iterator[Watched]:
    real, watched = os.environ, Watched(values)
    os.environ = watched  # type: ignore[assignment]  # noqa: B003 - what is looked at, not what a child inherits
    try:
        yield watched
    finally:
        os.environ = real  # noqa: B003 - as it was


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which every file lies that a PostgreSQL client would read."""
    folder = tmp_path_factory.mktemp("home")
    for name in TRAPS.values():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(CONTENTS)
        path.chmod(0o600)
    return folder


PLAIN = parse_url("postgresql://u:p@h/d")
NOT_A_CA = Pem(text="none", source="ca.crt")


class Nobody:
    """Connects to a port at which nobody listens, and nobody can."""

    def __init__(self, loop: asyncio.Runner, port: int) -> None:
        self._loop = loop
        self._port = port

    def attempt(self, target: ConnectionTarget) -> None:
        with pytest.raises((Problem, OSError)):
            self._loop.run(connect(replace(target, host="127.0.0.1", port=self._port), timeout=5))


@pytest.fixture(scope="module")
def nobody() -> Iterator[Nobody]:
    """One event loop for all attempts: starting one reads the environment. What is loaded at first use is loaded."""
    with asyncio.Runner() as loop, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        made = Nobody(loop, taken.getsockname()[1])
        for mode in SslMode:
            made.attempt(replace(PLAIN, ssl_mode=mode))
        yield made


MODES = (None, SslMode.DISABLE, SslMode.VERIFY_CA)
"""None is the URL's own."""
words = st.one_of(
    st.sampled_from(["", "/etc/passwd", "/run", "trap", "require", "disable", "verify-full", "~/.pgpass", "%2Fetc"]),
    st.text(max_size=12),
)
options = st.lists(st.tuples(st.sampled_from(OPTIONS), words, st.booleans()), max_size=3)
hosts = st.sampled_from(["127.0.0.1", "localhost", "db.example", "[::1]", "/run", "%2Frun", "a,b", "", "@", "~"])


@given(
    data=st.tuples(words, words, hosts, words, options),
    mode=st.sampled_from(MODES),
)
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_of_its_surroundings_is_read(home: Path, nobody: Nobody, data: Any, mode: SslMode | None) -> None:
    user, password, host, database, asked = data
    query = "&".join(f"{key}={quote(value, safe='') if encoded else value}" for key, value, encoded in asked)
    url = f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@{host}/{database}?{query}"
    environment = ENVIRONMENT | {name: str(home / path) for name, path in TRAPS.items()} | {"HOME": str(home)}
    with opened_files() as opened, watched_environment(environment) as watched:
        try:
            target = parse_url(url)
        except InvalidTarget:
            target = PLAIN
        assert "/" not in target.host
        nobody.attempt(target)
        if mode is not None:
            nobody.attempt(replace(target, ssl_mode=mode, ca=NOT_A_CA if mode is SslMode.VERIFY_CA else None))
    assert opened == []
    # asyncpg looks at that one and drops it: the file that it leads to was not opened.
    assert set(watched.read) <= {"PGSERVICE"}
