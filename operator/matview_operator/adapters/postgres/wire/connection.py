"""Opening and closing one connection. Every wait has a bound, and nothing of the environment is read."""

from __future__ import annotations

import asyncio
import ssl

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from matview_operator.adapters.postgres.wire import authentication
from matview_operator.adapters.postgres.wire.addresses import AddressBook
from matview_operator.adapters.postgres.wire.authentication import Row
from matview_operator.adapters.postgres.wire.tls import tls_of, tls_problem
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.errors import Problem

CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 1.0
_LOOKUP_SHARE = 0.8
"""Of the time to connect: an answer that comes later than that leaves no time to use it."""
_MOST_ADDRESSES = 8
"""Tried of one host, so that each has a share of the time that is worth it."""

_BOOK = AddressBook()

authentication.install()


async def connect(target: ConnectionTarget, *, timeout: float = CONNECT_SECONDS) -> asyncpg.Connection[Row]:  # noqa: ASYNC109 - shared out among the host's addresses
    """Connect to the target. `timeout` in seconds.

    Raises Problem for what the connection's own settings cause, asyncpg.PostgresError for what the server refuses,
    OSError and TimeoutError for the network.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    try:
        addresses = _permitted(await _addresses(target.host, seconds=timeout * _LOOKUP_SHARE), target)
        for others, address in zip(reversed(range(len(addresses))), addresses, strict=True):
            # One that is silent leaves the others their share.
            seconds = (deadline - asyncio.get_running_loop().time()) / (others + 1)
            try:
                return await _connect_to(address, target, seconds=seconds)
            except ssl.SSLError:
                raise
            except OSError as error:
                if not others or type(error) is ConnectionError:
                    raise
        raise OSError("The host's name has no address")
    except ssl.SSLError as error:
        raise tls_problem(error) from None
    except ConnectionError as error:
        # asyncpg raises the bare class for a refused upgrade and for nothing else; the system's errors are subclasses.
        if type(error) is ConnectionError:
            raise Problem(
                RefreshReason.TLS_FAILED,
                "The server does not offer TLS. Turn it on there, or set sslMode: disable if the network is trusted.",
            ) from None
        raise


async def _addresses(host: str, *, seconds: float) -> list[str]:
    try:
        async with asyncio.timeout(seconds):
            return (await _BOOK.addresses(host))[:_MOST_ADDRESSES]
    except TimeoutError:
        raise Problem(
            RefreshReason.CONNECTION_FAILED,
            "The name service did not say in time where the host is. Check the host's name and the cluster's DNS.",
        ) from None


def _permitted(addresses: list[str], target: ConnectionTarget) -> list[str]:
    """Leave out the addresses that the operator must not connect to. Raises Problem if none is left.

    What is checked here is what is connected to: nobody asks for the name again.
    """
    if target.destinations is None:
        return addresses
    verdicts = {address: target.destinations.refusal(target.host, address) for address in addresses}
    permitted = [address for address, refusal in verdicts.items() if refusal is None]
    if addresses and not permitted:
        raise Problem(
            RefreshReason.HOST_NOT_ALLOWED,
            f"The host leads to {verdicts[addresses[0]]}; the operator does not connect there. If the database is "
            "there on purpose, have the operator's administrator add it to MATVIEW_ALLOWED_HOSTS.",
        )
    return permitted


async def _connect_to(address: str, target: ConnectionTarget, *, seconds: float) -> asyncpg.Connection[Row]:
    return await asyncpg.connect(
        # By its address, so that a cancel request too goes to this very server, without asking for its name again.
        host=address,
        port=target.port,
        user=target.user,
        password=target.password.get_secret_value(),
        database=target.database,
        ssl=tls_of(target) or False,
        direct_tls=False,
        # asyncpg's own bound also covers its TLS and authentication steps.
        timeout=seconds,
        # PgBouncer in transaction mode cannot be detected, and prepared statements do not survive it.
        statement_cache_size=0,
        record_class=Row,
        target_session_attrs=SessionAttribute.any,
        # Never used, but asyncpg would look for them in the environment.
        krbsrvname="postgres",
        gsslib="gssapi",
    )


async def close(connection: asyncpg.Connection[Row]) -> None:
    """Close within two seconds, whatever the peer does.

    close() first: it alone sends a pending cancel request; terminate() alone never would.
    """
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await connection.close()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        connection.terminate()
