"""Opening and closing one connection. Every wait has a bound, and nothing of the environment is read."""

from __future__ import annotations

import asyncio
import ssl

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from matview_operator.adapters.postgres import authentication
from matview_operator.adapters.postgres.authentication import PasswordExposed, Row
from matview_operator.api.database import SslMode
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
            ssl=_tls(target),
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
        raise Problem(
            RefreshReason.TLS_FAILED,
            f"TLS with the server failed: {error.reason or 'handshake refused'}. "
            "Check the CA (ca.crt), the certificate's host name and dates, and sslMode.",
        ) from None
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


def _tls(target: ConnectionTarget) -> ssl.SSLContext | bool:
    if target.ssl_mode is SslMode.DISABLE:
        return False
    try:
        context = ssl.create_default_context(cadata=target.ca)
    except (ssl.SSLError, ValueError):
        raise Problem(RefreshReason.SECRET_INVALID, "The key ca.crt holds no certificate in PEM form.") from None
    # Python 3.13 and later refuse CAs that lack an extension of RFC 5280, as handmade ones often do. libpq takes them.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if target.ssl_mode in (SslMode.REQUIRE, SslMode.VERIFY_CA):
        context.check_hostname = False
    if target.ssl_mode is SslMode.REQUIRE:
        context.verify_mode = ssl.CERT_NONE
    return context
