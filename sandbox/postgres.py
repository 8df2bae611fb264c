"""A PostgreSQL server on 127.0.0.1: ready within two seconds, gone without a trace."""

from __future__ import annotations

import shutil
import signal as signals
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import quote

from sandbox.account import ServerHome
from sandbox.certificate import make_certificate
from sandbox.errors import SandboxError
from sandbox.password import new_password
from sandbox.pgbinaries import PostgresBinaries
from sandbox.pgtemplate import SUPERUSER, copy_template, environment, run_as
from sandbox.processes import ServerProcess, free_port
from sandbox.scram import scram_verifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

    from sandbox.certificate import Certificate

Mode = Literal["fast", "immediate"]
"""How a server stops: `fast` rolls back and writes a checkpoint, `immediate` is a crash."""

Setting = str | int | float | bool

_SIGNALS = {"fast": signals.SIGINT, "immediate": signals.SIGQUIT}
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_PORT_ATTEMPTS = 5
_RELOADED = "received SIGHUP, reloading configuration files"

_SETTINGS: Mapping[str, Setting] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": 100,
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    # The data lives as long as the server: nothing has to survive a power cut.
    "fsync": False,
    "full_page_writes": False,
}


class PostgresServer:
    """One server with a data folder of its own. Owned by whoever started it, who stops it, or uses `with`.

    Every method is synchronous; from asyncio, `await asyncio.to_thread(server.restart)`.
    """

    def __init__(self, *, binaries: PostgresBinaries, home: ServerHome, log: Path) -> None:
        """Hold the parts; `start` is the way to a running server."""
        self._home = home
        self._runnable = binaries
        self._process: ServerProcess | None = None
        self._password = new_password()
        self.version = binaries.version
        self.log = log
        self.data = home.path / "data"
        self.ca: Path | None = None
        self.port = free_port()

    @classmethod
    def start(
        cls,
        *,
        directory: Path,
        version: int = 18,
        settings: Mapping[str, Setting] | None = None,
        tls: bool = False,
        in_memory: bool = False,
    ) -> Self:
        """Start a server of this major version; its superuser `postgres` has a password of its own.

        `directory` is the server's alone: its log stays there, and so does its data while it runs, except for
        root, whose servers run as nobody in a folder under /var/tmp. `settings` are postgresql.conf's.
        `in_memory` puts the data into memory where there is room: creating a database is ten times faster then.
        Raises MissingPart if the version is not installed, SandboxError if it does not start or has no TLS.
        """
        binaries = PostgresBinaries.find(version)
        if tls and not binaries.tls:
            raise SandboxError(f"The wheel's PostgreSQL {version} is built without TLS; version 15 has it.")
        home = ServerHome.create(name="postgresql", directory=directory, in_memory=in_memory)
        try:
            server = cls(binaries=binaries.runnable_in(home), home=home, log=directory / f"postgresql-{version}.log")
            server._prepare(settings={**_SETTINGS, **(settings or {})}, tls=tls)
        except BaseException:  # on Ctrl-C, too: nothing is left behind
            home.remove()
            raise
        try:
            server.resume()
        except BaseException:  # on Ctrl-C, too: nothing is left behind
            server.stop(mode="immediate")
            raise
        return server

    @classmethod
    def standby_of(cls, primary: PostgresServer, *, directory: Path) -> Self:
        """Start a hot standby that streams from a running server; `select pg_promote()` makes a primary of it.

        `directory` is the standby's own. Roles, passwords and settings are the primary's.
        """
        binaries = PostgresBinaries.find(primary.version)
        home = ServerHome.create(name="standby", directory=directory, in_memory=True)
        server = cls(binaries=binaries.runnable_in(home), home=home, log=directory / f"standby-{primary.version}.log")
        server._password = primary._password
        try:
            run_as(
                None,
                [
                    binaries.bin / "pg_basebackup",
                    *("--write-recovery-conf", "--checkpoint=fast", "--no-sync", f"--pgdata={server.data}"),
                    *("--host=127.0.0.1", f"--port={primary.port}", f"--username={SUPERUSER}", "--password"),
                ],
                what="pg_basebackup",
                # Asked for without a terminal, it is read from there; a command line is for everybody to see.
                stdin=f"{primary._password}\n",
            )
            home.give(server.data)
            server.resume()
        except BaseException:  # on Ctrl-C, too: nothing is left behind
            server.stop(mode="immediate")
            raise
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of the postmaster; raises SandboxError while it is halted."""
        return self._running().pid

    def admin_url(self, database: str = "postgres") -> str:
        """Return the superuser's URL; it holds the password, so keep it out of logs and command lines."""
        return self.url(user=SUPERUSER, password=self._password, database=database)

    def url(self, *, user: str, password: str, database: str) -> str:
        """Return a URL of this server with its parts quoted."""
        return loopback_url(port=self.port, user=user, password=password, database=database)

    def resume(self) -> None:
        """Start the server again after `halt`, with its data and on its port; nothing happens if it runs."""
        if self._process is not None and self._process.alive:
            return
        for attempt in range(_PORT_ATTEMPTS):
            written = len(self.log_text())
            process = self._process = ServerProcess.start(
                [self._runnable.bin / "postgres", "-D", self.data, "-p", str(self.port)],
                name=f"PostgreSQL {self.version}",
                log=self.log,
                env=environment(),
                user=self._home.account,
                cwd=self._home.path,
                # An immediate shutdown: SIGKILL would leave backends and shared memory behind.
                death_signal=signals.SIGQUIT,
            )
            try:
                process.wait_ready(self._accepts, timeout=_START_SECONDS)
            except SandboxError:
                # Between free_port and bind, another process may have taken the port.
                taken = "Address already in use" in self.log_text()[written:]
                if process.alive or not taken or attempt == _PORT_ATTEMPTS - 1:
                    raise
                self.port = free_port()
            else:
                return

    def halt(self, mode: Mode = "fast") -> None:
        """Stop the server but keep its data and its port for `resume`."""
        if self._process is not None:
            self._process.stop(signal=_SIGNALS[mode], timeout=_STOP_SECONDS)

    def restart(self, mode: Mode = "fast") -> None:
        """Stop and start the server; its data and, unless somebody took it meanwhile, its port stay."""
        self.halt(mode)
        self.resume()

    def stop(self, mode: Mode = "fast") -> None:
        """Stop the server and remove its data; the log stays. Nothing happens the second time."""
        try:
            self.halt(mode)
        finally:
            self._home.remove()

    def log_text(self) -> str:
        """Return the whole log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def pg_hba_prepend(self, lines: Iterable[str]) -> None:
        """Put lines at the top of pg_hba.conf and reload: the first line that matches a client decides."""
        path = self.data / "pg_hba.conf"
        path.write_text("".join(f"{line}\n" for line in lines) + path.read_text())
        self.reload()

    def reload(self) -> None:
        """Reload the configuration files; connections made after this see them."""
        process = self._running()
        seen = self.log_text().count(_RELOADED)
        process.send(signals.SIGHUP)
        process.wait_ready(lambda: self.log_text().count(_RELOADED) > seen, timeout=10, what="reloaded")

    def show_certificate(self, certificate: Certificate, *, clients_ca: Path | None = None) -> None:
        """Show another certificate from the next connection on, on a server started with TLS.

        With `clients_ca` clients are asked for a certificate, and one that they show must be signed by it.
        """
        shown = {"server.crt": certificate.cert, "server.key": certificate.key}
        if clients_ca is not None:
            shown["clients-ca.crt"] = clients_ca
            with (self.data / "postgresql.conf").open("a") as file:
                file.write("ssl_ca_file = 'clients-ca.crt'\n")
        for name, source in shown.items():
            shutil.copyfile(source, self.data / name)  # into the files that are there, with their owner and mode
        self._home.give(self.data)
        self.reload()

    def _prepare(self, *, settings: Mapping[str, Setting], tls: bool) -> None:
        copy_template(self._runnable, to=self.data)
        if tls:
            certificate = make_certificate(self.data)
            self.ca = certificate.ca
            files = {"ssl_cert_file": certificate.cert.name, "ssl_key_file": certificate.key.name}
            settings = {**settings, "ssl": True, **files}
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {_quoted(value)}\n" for name, value in settings.items())
        (self.data / "pg_hba.conf").write_text(
            "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n"
        )
        self._home.give(self.data)
        # In single-user mode, so that no server ever listens with a password that is not its own.
        run_as(
            self._home.account,
            [self._runnable.bin / "postgres", "--single", "-D", self.data, "postgres"],
            what=f"Setting the password of PostgreSQL {self.version}'s superuser",
            stdin=f"ALTER ROLE {SUPERUSER} PASSWORD '{scram_verifier(self._password)}';\n",
        )

    def _running(self) -> ServerProcess:
        if self._process is None or not self._process.alive:
            raise SandboxError(f"PostgreSQL {self.version} is not running.")
        return self._process

    def _accepts(self) -> bool:
        """Tell whether this very server accepts connections: its pid file says so in its eighth line."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(self.pid)] and [line.strip() for line in lines[7:]] == ["ready"]


def loopback_url(*, port: int, user: str, password: str, database: str) -> str:
    """Return a URL for 127.0.0.1; whatever the parts hold, they are quoted."""
    credentials = f"{quote(user, safe='')}:{quote(password, safe='')}"
    return f"postgresql://{credentials}@127.0.0.1:{port}/{quote(database, safe='')}"


def _quoted(value: Setting) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
