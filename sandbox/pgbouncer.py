"""PgBouncer in transaction mode in front of a PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import signal as signals
from typing import TYPE_CHECKING, Self

from sandbox.account import ServerHome
from sandbox.errors import MissingPart
from sandbox.postgres import loopback_url
from sandbox.processes import ServerProcess, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from sandbox.certificate import Certificate
    from sandbox.postgres import PostgresServer

_START_SECONDS = 15.0
_TLS_FILES = ("server.crt", "server.key", "ca.crt")
_TLS = {
    "client_tls_sslmode": "allow",
    "client_tls_cert_file": _TLS_FILES[0],
    "client_tls_key_file": _TLS_FILES[1],
    "client_tls_ca_file": _TLS_FILES[2],
}


class PgBouncer:
    """One PgBouncer on 127.0.0.1. Owned by whoever started it, who stops it before its server, or uses `with`."""

    def __init__(self, *, home: ServerHome, port: int, log: Path) -> None:
        """Hold the parts; `start` is the way to a running one."""
        self._process: ServerProcess | None = None
        self._home = home
        self.port = port
        self.log = log

    @staticmethod
    def find() -> str:
        """Return the program's path; raises MissingPart if it is not installed."""
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
        if program is None:
            raise MissingPart(part="PgBouncer", package="pgbouncer")
        return program

    @classmethod
    def start(
        cls,
        *,
        server: PostgresServer,
        directory: Path,
        users: Mapping[str, str],
        pool_size: int = 2,
        settings: Mapping[str, str | int] | None = None,
        certificate: Certificate | None = None,
    ) -> Self:
        """Start PgBouncer for every database of `server`; `users` maps the roles it lets in to their passwords.

        `pool_size` is the number of server connections per role and database. `settings` are pgbouncer.ini's.
        With a `certificate`, clients may use TLS. `directory` is for the log.
        Raises MissingPart if it is not installed.
        """
        port = free_port()
        home = ServerHome.create(name="pgbouncer", directory=directory)
        options: dict[str, str | int] = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "pool_mode": "transaction",
            "default_pool_size": pool_size,
            "auth_type": "scram-sha-256",
            "auth_file": "users.txt",
            **(_TLS if certificate else {}),
            **(settings or {}),
        }
        try:
            (home.path / "users.txt").write_text(
                "".join(f"{_quoted(user)} {_quoted(password)}\n" for user, password in users.items())
            )
            (home.path / "users.txt").chmod(0o600)
            (home.path / "pgbouncer.ini").write_text(
                f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]\n"
                + "".join(f"{name} = {value}\n" for name, value in options.items())
            )
            if certificate is not None:
                for name, source in zip(_TLS_FILES, (certificate.cert, certificate.key, certificate.ca), strict=True):
                    shutil.copyfile(source, home.path / name)
            home.give(home.path)
        except BaseException:  # on Ctrl-C, too: nothing is left behind
            home.remove()
            raise
        bouncer = cls(home=home, port=port, log=directory / "pgbouncer.log")
        try:
            bouncer.go_on()
        except BaseException:  # on Ctrl-C, too: nothing is left behind
            bouncer.stop()
            raise
        return bouncer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def url(self, *, user: str, password: str, database: str) -> str:
        """Return a URL through PgBouncer with its parts quoted."""
        return loopback_url(port=self.port, user=user, password=password, database=database)

    def halt(self) -> None:
        """Stop it at once, open transactions too; it keeps its files and its port for `go_on`."""
        if self._process is not None:
            self._process.stop(timeout=5)

    def go_on(self) -> None:
        """Start it, for the first time or after `halt`."""
        said = self._said()
        self._process = ServerProcess.start(
            [self.find(), self._home.path / "pgbouncer.ini"],
            name="PgBouncer",
            log=self.log,
            env={"PATH": os.defpath},
            user=self._home.account,
            cwd=self._home.path,
        )
        # Its own words, because another process may answer on the port.
        self._await(f"listening on 127.0.0.1:{self.port}", after=said)

    def lead_to(self, port: int) -> None:
        """Reload its configuration with another server's port; transactions end on the old one."""
        path = self._home.path / "pgbouncer.ini"
        _, rest = path.read_text().split("[pgbouncer]")
        path.write_text(f"[databases]\n* = host=127.0.0.1 port={port}\n[pgbouncer]{rest}")
        self._order(signals.SIGHUP, "got SIGHUP")

    def pause(self) -> None:
        """Let transactions end and begin no other until `resume`: clients wait."""
        self._order(signals.SIGUSR1, "got SIGUSR1")

    def resume(self) -> None:
        """Serve those who wait."""
        self._order(signals.SIGUSR2, "got SIGUSR2")

    def stop(self) -> None:
        """Stop it at once, open transactions too, and remove its files; the log stays."""
        try:
            self.halt()
        finally:
            self._home.remove()

    def _order(self, signal: signals.Signals, answer: str) -> None:
        assert self._process is not None  # started
        said = self._said()
        self._process.send(signal)
        self._await(answer, after=said)

    def _await(self, words: str, *, after: int) -> None:
        assert self._process is not None  # started
        self._process.wait_ready(lambda: words in self.log.read_text()[after:], timeout=_START_SECONDS)

    def _said(self) -> int:
        return len(self.log.read_text()) if self.log.exists() else 0


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
