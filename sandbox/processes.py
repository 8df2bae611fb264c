"""Server processes: started in a session of their own, watched while they start, and never left behind."""

from __future__ import annotations

import os
import shutil
import signal as signals
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sandbox.account import Account

_LAUNCHER = Path(__file__).with_name("launch.py")
_POLL_SECONDS = 0.02
_TAIL_BYTES = 64 * 1024

# Linux sends the death signal when the *thread* that started a process ends. Callers come from short-lived
# threads (asyncio.to_thread), so one thread that lives as long as the interpreter starts all servers.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-spawner")


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody uses now; somebody may until it is bound."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Tell whether something accepts TCP connections on this port of 127.0.0.1."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def has_ended(process: psutil.Process) -> bool:
    """Tell whether a process does nothing any more; an orphan may stay a zombie until init gets round to it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class ServerProcess:
    """One server process and all it started. Every method may be called at any time, from any thread.

    It dies with this process, on Linux even if that is killed with SIGKILL.
    """

    def __init__(self, popen: subprocess.Popen[bytes], *, name: str, log: Path) -> None:
        self._popen = popen
        self.name = name
        self.log = log

    @classmethod
    def start(
        cls,
        argv: Sequence[str | Path],
        *,
        name: str,
        log: Path,
        env: Mapping[str, str] | None = None,
        user: Account | None = None,
        cwd: Path | None = None,
        death_signal: signals.Signals = signals.SIGKILL,
    ) -> Self:
        """Start a server; its output is appended to the file `log`.

        `env` None inherits ours, `user` None is our own account. `death_signal` is what it gets when this
        process dies. Secrets belong into files or `env`, never into `argv`, which everybody can read.
        Raises SandboxError if there is no such program.
        """
        program = shutil.which(str(argv[0]))
        if program is None:
            raise SandboxError(f"{name} cannot start: there is no program {argv[0]}.")
        uid, gid = (user.uid, user.gid) if user else (-1, -1)
        ids = (str(os.getpid()), str(int(death_signal)), str(uid), str(gid))
        command = [sys.executable, "-I", "-S", str(_LAUNCHER), *ids, program, *map(str, argv[1:])]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            spawned = _SPAWNER.submit(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
            )
            try:
                popen = spawned.result()
            except BaseException:  # on Ctrl-C, too: no process is left behind
                # While we waited: the thread goes on, and nobody else will know of the process.
                spawned.add_done_callback(_discard)
                raise
        return cls(popen, name=name, log=log)

    @property
    def pid(self) -> int:
        """The server's own process id, which is its process group's too."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._popen.poll()

    def listens_on(self, port: int) -> bool:
        """Tell whether this very process listens: another's server on a port we lost would answer just as well."""
        with suppress(psutil.Error):
            connections = psutil.Process(self.pid).net_connections(kind="tcp")
            return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)
        return False

    def wait_ready(self, check: Callable[[], bool], *, timeout: float, what: str = "ready") -> None:
        """Return as soon as `check` is true; raise SandboxError after `timeout` s, or once the process died.

        The error ends with the end of the log. The process is left as it is: the caller stops it.
        """
        deadline = time.monotonic() + timeout
        while True:
            is_ready = check()
            # Asked after the check: what answered must have been this process, not another on its port.
            if not self.alive:
                problem = f"{self.name} ended with exit code {self.exit_code} before it was {what}"
            elif is_ready:
                return
            elif time.monotonic() > deadline:
                problem = f"{self.name} was not {what} within {timeout:g} s"
            else:
                time.sleep(_POLL_SECONDS)
                continue
            raise SandboxError(f"{problem}. The end of {self.log}:\n{self.log_tail()}")

    def send(self, signal: signals.Signals) -> None:
        """Send a signal to the server itself; nothing happens if it has ended."""
        with suppress(ProcessLookupError):
            self._popen.send_signal(signal)

    def stop(self, *, signal: signals.Signals = signals.SIGTERM, timeout: float = 10) -> None:
        """End the process and all it started; return when they are gone. Does nothing the second time.

        Its group gets `signal`, and SIGKILL if it still runs after `timeout` s or on Ctrl-C meanwhile.
        """
        family: list[psutil.Process] = []
        try:
            # Asked before: PostgreSQL's backends have groups of their own, and orphans do not tell their parent.
            family = self._descendants()
            if self.alive:
                self._signal_group(signal)
                self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self.alive:
                family += self._descendants()
                self._signal_group(signals.SIGKILL)
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            deadline = time.monotonic() + timeout
            while not all(map(has_ended, family)) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            self._popen.wait()

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of the log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _descendants(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            if self.alive:
                return psutil.Process(self.pid).children(recursive=True)
        return []

    def _signal_group(self, signal: signals.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal)


def _discard(spawned: Future[subprocess.Popen[bytes]]) -> None:
    if not spawned.cancelled() and spawned.exception() is None:
        popen = spawned.result()
        popen.kill()
        popen.wait()
