"""A demo or sandbox as a user starts it, watched for what it starts and what it leaves behind."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil
from sandbox.cache import FOLDER_VARIABLE, cache_folder
from sandbox.processes import answers, has_ended
from tests.canaries import looked_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

CHECKOUT = Path(__file__).parents[2]
SHARED_FOLDERS = (Path("/var/tmp"), Path("/dev/shm"))  # noqa: S108 - where servers' data may lie for root

_ON_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
_SECONDS = 90
_POLL_SECONDS = 0.1
_LOOK_SECONDS = 1.0


class Program:
    """A running command of this checkout with a home and a temporary folder of its own, both empty."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        folder: Path,
        env: Mapping[str, str] | None = None,
        columns: int | None = None,
        shows_passwords: bool = False,
    ) -> None:
        """Start it: on a terminal of so many columns, or without any. `folder` is new.

        `shows_passwords`: as the sandbox does to who started it, who is to log in. Else none may stand in its output.
        """
        self._shows_passwords = shows_passwords
        self._folders = [folder / "home", folder / "temporary"]
        for path in self._folders:
            path.mkdir(parents=True)
        environment = {
            **os.environ,
            FOLDER_VARIABLE: str(cache_folder()),
            "HOME": str(self._folders[0]),
            "TMPDIR": str(self._folders[1]),
            "TERM": "xterm",
            **(env or {}),
        }
        self._output = bytearray()
        self._seen: dict[int, psutil.Process] = {}
        self._ports: set[int] = set()
        self._watched_at = 0.0
        ours, theirs = os.openpty() if columns else os.pipe()
        if columns:
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self._terminal = ours if columns else None
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ON_A_TERMINAL, *argv] if columns else argv,
            stdin=theirs if columns else subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            cwd=CHECKOUT,
            env=environment,
            start_new_session=not columns,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,))
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            # Servers die with who started them.
            for process in [psutil.Process(self._process.pid), *self._descendants()]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()
        self._reader.join()
        if not self._shows_passwords:
            looked_at(bytes(self._output), place=f"output of process {self._process.pid}")

    @property
    def output(self) -> str:
        """All that it wrote, without the escape sequences of a terminal."""
        text = self._output.decode(errors="replace").replace("\r\n", "\n")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)

    @property
    def environment(self) -> Path:
        """The file that it asks the user to source."""
        match = re.search(r"source ('?)(/.*/env)\1", self.output)
        assert match is not None, self.output
        return Path(match[2])

    def wait_for(self, text: str) -> None:
        """Return when it wrote `text`; fails when it ends before, or needs too long."""
        deadline = time.monotonic() + _SECONDS
        while text not in self.output:
            assert self._process.poll() is None, f"It ended with {self._process.poll()}:\n{self.output}"
            assert time.monotonic() < deadline, f"It did not write {text!r}:\n{self.output}"
            self._watch(at_most_every=_LOOK_SECONDS)
            time.sleep(_POLL_SECONDS)

    def wait_for_file(self, path: Path) -> None:
        """Return when somebody has made this file."""
        deadline = time.monotonic() + _SECONDS
        while not path.exists():
            assert time.monotonic() < deadline, f"There is no {path}:\n{self.output}"
            time.sleep(_POLL_SECONDS)

    def send(self, wanted: signal.Signals) -> None:
        """Send a signal to the one process that was started."""
        self._watch()
        self._process.send_signal(wanted)

    def send_to(self, pid: int, wanted: signal.Signals) -> None:
        """Send a signal to one of the processes that it started."""
        self._watch()
        assert pid in self._seen
        os.kill(pid, wanted)

    def press_ctrl_c(self) -> None:
        """Press Ctrl-C on its terminal, which sends SIGINT to all that run in the foreground there."""
        assert self._terminal is not None
        self._watch()
        os.write(self._terminal, b"\x03")

    def wait(self) -> int:
        """Wait for its end and return its exit code, negative for a signal."""
        deadline = time.monotonic() + _SECONDS
        while self._process.poll() is None:
            assert time.monotonic() < deadline, f"It does not end:\n{self.output}"
            self._watch(at_most_every=_LOOK_SECONDS)
            time.sleep(_POLL_SECONDS)
        self._reader.join(timeout=5)
        return self._process.returncode

    @property
    def processes(self) -> int:
        """How many processes it was seen to consist of."""
        return len(self._seen)

    @property
    def servers(self) -> int:
        """How many processes it was seen to have started that listened on a port."""
        return len(self._ports)

    def leftovers(self) -> list[str]:
        """Name every process, port and file that is left of it, outside its folder below .sandbox and the cache."""
        processes = [f"process {pid}" for pid, process in self._seen.items() if not has_ended(process)]
        ports = [f"port {port}" for port in sorted(self._ports) if answers(port)]
        data = [
            str(path)
            for folder in SHARED_FOLDERS
            for pid in self._seen
            for path in folder.glob(f"matview-sandbox-{pid}-*")
        ]
        return processes + ports + data + [str(path) for folder in self._folders for path in folder.rglob("*")]

    def _watch(self, *, at_most_every: float = 0) -> None:
        if time.monotonic() - self._watched_at < at_most_every:
            return
        self._watched_at = time.monotonic()
        for process in self._descendants():
            self._seen[process.pid] = process
            with suppress(psutil.Error):
                listening = (c for c in process.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN)
                self._ports.update(connection.laddr.port for connection in listening)

    def _descendants(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def _read(self, descriptor: int) -> None:
        with suppress(OSError), open(descriptor, "rb", buffering=0) as stream:
            while chunk := stream.read(65536):
                self._output += chunk
