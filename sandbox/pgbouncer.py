"""PgBouncer in transaction mode in front of a PostgreSQL server."""

from __future__ import annotations

import os
import shutil
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

    def __init__(self, *, process: ServerProcess, home: ServerHome, port: int) -> None:
        """Hold the parts; `start` is the way to a running one."""
        self._process = process
        self._home = home
        self.port = port
        self.log = process.log

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
        program = cls.find()
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
            process = ServerProcess.start(
                [program, home.path / "pgbouncer.ini"],
                name="PgBouncer",
                log=directory / "pgbouncer.log",
                env={"PATH": os.defpath},
                user=home.account,
                cwd=home.path,
            )
        except BaseException:
            home.remove()
            raise
        bouncer = cls(process=process, home=home, port=port)
        try:
            # Its own words, because another process may answer on the port.
            listening = f"listening on 127.0.0.1:{port}"
            process.wait_ready(lambda: listening in process.log_tail(), timeout=_START_SECONDS)
        except BaseException:
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

    def stop(self) -> None:
        """Stop it at once, open transactions too, and remove its files; the log stays."""
        try:
            self._process.stop(timeout=5)
        finally:
            self._home.remove()


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
