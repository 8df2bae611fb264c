"""A host's addresses, looked up so that a name service that hangs holds up nobody else.

The system's lookup cannot be cancelled. In the event loop's own threads, six that hang on two cores would stop every
other lookup of the process, and its end as well: those threads are waited for. Ours are daemons, one per name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import deque
from concurrent.futures import Future
from threading import Lock, Thread

THREADS = 64
"""At most. The C library gives up by itself, within a minute or so, and the next name has its turn."""


class AddressBook:
    """Asks the system, each time anew: after a failover the old address is the wrong one. Usable from every thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._lookups: dict[str, Future[list[str]]] = {}
        self._waiting: deque[str] = deque()
        self._threads = 0

    async def addresses(self, host: str) -> list[str]:
        """Return the host's addresses in the system's order of preference. Raises OSError. Waits: give it a bound.

        Who asks for a name that is being looked up already shares the answer.
        """
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return await asyncio.wrap_future(self._lookup(host))
        return [host]

    def _lookup(self, host: str) -> Future[list[str]]:
        with self._lock:
            lookup = self._lookups.get(host)
            if lookup is None:
                lookup = self._lookups[host] = Future()
                # From now on, who stops waiting does not stop it for the others.
                lookup.set_running_or_notify_cancel()
                self._waiting.append(host)
                if self._threads < THREADS:
                    self._threads += 1
                    Thread(target=self._look_up, name="address lookup", daemon=True).start()
            return lookup

    def _look_up(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                host = self._waiting.popleft()
            found: list[str] | OSError
            try:
                found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
            except OSError as error:
                found = error
            except UnicodeError:
                found = socket.gaierror(socket.EAI_NONAME, "No host can have that name")
            with self._lock:
                lookup = self._lookups.pop(host)
            if isinstance(found, OSError):
                lookup.set_exception(found)
            else:
                lookup.set_result(list(dict.fromkeys(found)))
