"""Opening and closing one connection. Every wait has a bound, and nothing of the environment is read."""

from __future__ import annotations

import asyncio
import ssl

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from matview_operator.adapters.postgres import authentication
from matview_operator.adapters.postgres.authentication import PasswordExposed, Row
from matview_operator.adapters.postgres.tls import tls_of, tls_problem
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.connection import ConnectionTarget
from matview_operator.domain.errors import Problem

CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 1.0

authentication.install()


async def connect(target: ConnectionTarget, *, timeout: float = CONNECT_SECONDS) -> asyncpg.Connection[Row]:  # noqa: ASYNC109 - asyncpg's own bound also covers its TLS and authentication steps
    """Connect to the target. `timeout` in seconds.

    Raises Problem for what the connection's own settings cause, asyncpg.PostgresError for what the server refuses,
    OSError and TimeoutError for the network.
    """
    try:
        return await asyncpg.connect(
            host=target.host,
            port=target.port,
            user=target.user,
            password=target.password.get_secret_value(),
            database=target.database,
            ssl=tls_of(target) or False,
            direct_tls=False,
            timeout=timeout,
            # PgBouncer in transaction mode cannot be detected, and prepared statements do not survive it.
            statement_cache_size=0,
            record_class=Row,
            target_session_attrs=SessionAttribute.any,
        )
    except PasswordExposed as error:
        raise Problem(
            RefreshReason.TLS_FAILED,
            f"{error} Only a connection whose TLS is verified may carry it. "
            "Use scram-sha-256 on the server, or sslMode verify-full with the server's CA.",
        ) from None
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


async def close(connection: asyncpg.Connection[Row]) -> None:
    """Close within two seconds, whatever the peer does.

    close() first: it alone sends a pending cancel request; terminate() alone never would.
    """
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await connection.close()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        connection.terminate()
