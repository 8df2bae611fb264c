"""A server that asks for the password itself gets nothing, unless TLS has proven who it is."""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import asyncpg
import pytest
from pydantic import SecretStr
from sandbox.certificate import make_certificate
from sandbox.password import MARK
from sandbox.processes import free_port
from tests.listener import stop_listening
from tests.refreshes import a_run

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.adapters.postgres.session import Session
from matview_operator.adapters.postgres.sql import queries
from matview_operator.adapters.postgres.wire.connection import connect
from matview_operator.api.database import SslMode
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.connection import ConnectionTarget, Pem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from matview_operator import RefreshResult

CANARY = f"{MARK}-Pa55"
CLEAR_TEXT = b"R\0\0\0\x08\0\0\0\x03"
CLEAR_TEXT_ONCE_MORE = CLEAR_TEXT * 2
MD5 = b"R\0\0\0\x0c\0\0\0\x05salt"
SCRAM = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0"
SCRAM_CONTINUE = b"\0\0\0\x0b"
FORGED_PROOF = b"R\0\0\0\x36\0\0\0\x0cv=" + b"A" * 43 + b"="
NOTICE = b"N\0\0\0\x0cSNOTICE\0"
ACCEPTED = b"R\0\0\0\x08\0\0\0\0"
PARAMETER = b"S\0\0\0\x18server_version\x0018.4\0"
READY = b"Z\0\0\0\x05I"
SSL_REQUEST = 80877103


class HostileServer:
    """Says what it was told to, whatever it hears, and keeps what it hears."""

    def __init__(
        self, greeting: bytes, *, in_pieces: bool = False, tls: ssl.SSLContext | None = None, no_tls: bytes = b"N"
    ) -> None:
        """`no_tls` is what it says to a request for TLS when it has none."""
        self._greeting = greeting
        self._in_pieces = in_pieces
        self._tls = tls
        self._no_tls = no_tls
        self.heard = b""
        """Everything after the startup message."""
        self.port = 0

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[HostileServer]:
        server = await asyncio.start_server(self._talk, ["127.0.0.1", "127.0.0.2"], free_port())
        self.port = server.sockets[0].getsockname()[1]
        yield self
        await stop_listening(server)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            length, code = await self._startup(reader)
            if code == SSL_REQUEST:
                writer.write(b"S" if self._tls else self._no_tls)
                if self._tls:
                    await writer.start_tls(self._tls)
                length, _ = await self._startup(reader)
            await reader.readexactly(length - 8)
            await self._greet(reader, writer)
            while chunk := await reader.read(1000):
                self.heard += chunk
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader  # it does not listen
        for piece in [bytes([byte]) for byte in self._greeting] if self._in_pieces else [self._greeting]:
            writer.write(piece)
            await writer.drain()

    @staticmethod
    async def _startup(reader: asyncio.StreamReader) -> tuple[int, int]:
        header = await reader.readexactly(8)
        return int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")


class Impostor(HostileServer):
    """Plays SCRAM without knowing the password; `greeting` is what it says in place of its proof."""

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SCRAM)
        first = await self._answer(reader)
        nonce = first.rpartition(b"r=")[2] + b"impostor"
        said = b"r=" + nonce + b",s=c2FsdHNhbHQ=,i=4096"
        writer.write(b"R" + (8 + len(said)).to_bytes(4, "big") + SCRAM_CONTINUE + said)
        assert b"p=" in await self._answer(reader)
        writer.write(self._greeting)

    @staticmethod
    async def _answer(reader: asyncio.StreamReader) -> bytes:
        header = await reader.readexactly(5)
        assert header[:1] == b"p"
        return await reader.readexactly(int.from_bytes(header[1:], "big") - 4)


def target_at(port: int, *, ssl_mode: SslMode = SslMode.DISABLE, ca: str | None = None) -> ConnectionTarget:
    return ConnectionTarget(
        host="localhost" if ca else "127.0.0.1",
        port=port,
        database="d",
        user="u",
        password=SecretStr(CANARY),
        ssl_mode=ssl_mode,
        ca=None if ca is None else Pem(text=ca, source="ca.crt"),
    )


async def attempt(target: ConnectionTarget) -> RefreshResult:
    return await Refresher().refresh(target=target, run=a_run(timeout_seconds=2))


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, str]:
    """A server's TLS and the CA that it is verified by."""
    made = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)
    return context, made.ca.read_text()


@pytest.mark.parametrize(
    "greeting",
    [
        CLEAR_TEXT,
        MD5,
        NOTICE + CLEAR_TEXT,
        ACCEPTED + CLEAR_TEXT,
        ACCEPTED + PARAMETER + MD5,
        b"X\0\0\0\0" + CLEAR_TEXT,
        b"R\0\0\0\x04" + CLEAR_TEXT,
        b"R\0\0\0\x06\0\0" + CLEAR_TEXT,
    ],
    ids=[
        "clear text",
        "md5",
        "after a notice",
        "after it has let us in",
        "after a parameter",
        "after a message without a length",
        "after a request for nothing",
        "after half a request",
    ],
)
@pytest.mark.parametrize("delivery", ["at once", "byte by byte"])
async def test_a_password_asked_for_without_tls_is_not_sent(
    greeting: bytes,
    delivery: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with HostileServer(greeting, in_pieces=delivery == "byte by byte").serve() as server:
        result = await attempt(target_at(server.port))
    assert server.heard == b""
    assert result.outcome is RefreshOutcome.FAILED
    assert result.error_type in (RefreshReason.TLS_FAILED, RefreshReason.CONNECTION_FAILED)
    assert CANARY not in result.model_dump_json() + caplog.text


@pytest.mark.parametrize("greeting", [CLEAR_TEXT, MD5])
async def test_what_to_do_about_such_a_server_is_said(greeting: bytes) -> None:
    async with HostileServer(greeting).serve() as server:
        result = await attempt(target_at(server.port))
    assert result.error_type is RefreshReason.TLS_FAILED
    assert result.error_message
    assert "scram-sha-256" in result.error_message
    assert "verify-full" in result.error_message


async def test_asked_for_in_the_middle_of_scram_it_is_not_sent_either() -> None:
    async with HostileServer(SCRAM + CLEAR_TEXT).serve() as server:
        result = await attempt(target_at(server.port))
    assert result.error_type is RefreshReason.TLS_FAILED
    # At most the beginning of SCRAM, which proves nothing to anybody.
    assert server.heard.startswith(b"p") or not server.heard
    assert CANARY.encode() not in server.heard


async def test_tls_that_verifies_nobody_is_not_enough(certificate: tuple[ssl.SSLContext, str]) -> None:
    async with HostileServer(CLEAR_TEXT, tls=certificate[0]).serve() as server:
        result = await attempt(target_at(server.port, ssl_mode=SslMode.REQUIRE))
    assert result.error_type is RefreshReason.TLS_FAILED
    assert server.heard == b""


async def test_verified_tls_is_enough(certificate: tuple[ssl.SSLContext, str]) -> None:
    context, ca = certificate
    async with HostileServer(CLEAR_TEXT, tls=context).serve() as server:
        await attempt(target_at(server.port, ssl_mode=SslMode.VERIFY_FULL, ca=ca))
    assert CANARY.encode() in server.heard


@pytest.mark.parametrize("mode", [SslMode.REQUIRE, SslMode.VERIFY_CA, SslMode.VERIFY_FULL])
@pytest.mark.parametrize(
    "greeting",
    [ACCEPTED + CLEAR_TEXT, ACCEPTED + PARAMETER + MD5, CLEAR_TEXT_ONCE_MORE, b"R\0\0\0\x08\0\0\0\x07"],
    ids=["clear text after it has let us in", "md5 after it has let us in", "clear text twice", "gss"],
)
async def test_nothing_is_said_out_of_turn_over_tls_either(
    greeting: bytes, mode: SslMode, certificate: tuple[ssl.SSLContext, str]
) -> None:
    context, ca = certificate
    async with HostileServer(greeting, tls=context).serve() as server:
        result = await attempt(target_at(server.port, ssl_mode=mode, ca=ca))
    assert result.error_type in (RefreshReason.AUTHENTICATION_FAILED, RefreshReason.TLS_FAILED)
    # Once is what a verified server may ask.
    assert server.heard.count(CANARY.encode()) <= (greeting == CLEAR_TEXT_ONCE_MORE and mode is not SslMode.REQUIRE)


async def test_a_server_of_another_name_or_ca_is_not_talked_to(
    certificate: tuple[ssl.SSLContext, str], tmp_path: Path
) -> None:
    context, ca = certificate
    (tmp_path / "other").mkdir()
    other_ca = make_certificate(tmp_path / "other").ca.read_text()
    async with HostileServer(ACCEPTED, tls=context).serve() as server:
        wrong_ca = target_at(server.port, ssl_mode=SslMode.VERIFY_FULL, ca=other_ca)
        wrong_name = replace(target_at(server.port, ssl_mode=SslMode.VERIFY_FULL, ca=ca), host="127.0.0.2")
        for target in (wrong_ca, replace(wrong_ca, ssl_mode=SslMode.VERIFY_CA), wrong_name):
            assert (await attempt(target)).error_type is RefreshReason.TLS_FAILED
    assert server.heard == b""


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (ACCEPTED + PARAMETER + READY, RefreshReason.AUTHENTICATION_FAILED),
        (FORGED_PROOF + ACCEPTED + PARAMETER + READY, RefreshReason.CONNECTION_FAILED),
        (SCRAM + ACCEPTED + PARAMETER + READY, RefreshReason.AUTHENTICATION_FAILED),
        (CLEAR_TEXT, RefreshReason.TLS_FAILED),
    ],
    ids=["no proof", "a forged one", "once more", "the password then"],
)
async def test_a_server_that_does_not_prove_that_it_knows_the_password_is_not_used(
    greeting: bytes, reason: RefreshReason
) -> None:
    async with Impostor(greeting).serve() as server:
        result = await attempt(target_at(server.port))
    assert (result.outcome, result.error_type) == (RefreshOutcome.FAILED, reason), result.error_message
    assert server.heard == b""


async def test_scram_that_ends_as_it_begins_is_not_believed() -> None:
    async with HostileServer(SCRAM + ACCEPTED + PARAMETER + READY).serve() as server:
        result = await attempt(target_at(server.port))
    assert result.error_type is RefreshReason.AUTHENTICATION_FAILED
    assert result.error_message
    assert "without proving" in result.error_message
    assert b"select" not in server.heard


@pytest.mark.parametrize("mode", [SslMode.REQUIRE, SslMode.VERIFY_CA, SslMode.VERIFY_FULL])
@pytest.mark.parametrize(
    "answer",
    [b"N", b"NN", b"X", b"E\0\0\0\x0bSERROR\0\0", b"S" + ACCEPTED + PARAMETER + READY],
    ids=["no", "no twice", "nonsense", "an error", "yes, and more that is not encrypted"],
)
async def test_a_server_without_tls_is_not_talked_to_where_tls_is_asked_for(
    mode: SslMode, answer: bytes, certificate: tuple[ssl.SSLContext, str]
) -> None:
    async with HostileServer(ACCEPTED, no_tls=answer).serve() as server:
        result = await attempt(target_at(server.port, ssl_mode=mode, ca=certificate[1]))
    assert result.error_type is RefreshReason.TLS_FAILED
    assert result.error_message
    assert "does not offer TLS" in result.error_message
    assert server.heard == b""


@pytest.mark.parametrize(
    "greeting",
    [
        b"R\x7f\xff\xff\xff",
        b"R\xff\xff\xff\xff",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0" * 100,
        NOTICE * 20_000,
        b"".join(b"S\0\0\0\x0a%04d\0\0" % number for number in range(8000)),
    ],
    ids=["huge", "negative", "http", "zeros", "endless notices", "endless parameters"],
)
async def test_what_is_not_postgresql_is_told_and_not_kept(greeting: bytes) -> None:
    async with HostileServer(greeting).serve() as server:
        result = await attempt(target_at(server.port))
    assert (result.outcome, result.error_type) == (RefreshOutcome.FAILED, RefreshReason.CONNECTION_FAILED)
    assert result.duration_ms < 1500
    assert server.heard == b""


FATAL = b"E\0\0\0\x16SFATAL\0C57P01\0Mbye\0\0"


async def test_a_session_that_ends_right_after_the_greeting_is_told_at_once() -> None:
    """Neither are the bytes behind the greeting lost, nor does asyncpg's own error for this escape."""
    async with HostileServer(ACCEPTED + PARAMETER + READY + FATAL).serve() as server:
        result = await attempt(target_at(server.port))
        session = Session(await connect(target_at(server.port)))
        with pytest.raises(queries.DRIVER_ERRORS):
            await session.row(queries.CLOCK)
        await session.close()
    assert (result.outcome, result.error_type) == (RefreshOutcome.FAILED, RefreshReason.CONNECTION_FAILED)
    assert result.error_message == "Cannot connect: the server ended the session."


async def test_connections_of_others_in_the_same_process_are_theirs() -> None:
    async with HostileServer(CLEAR_TEXT).serve() as server:
        with pytest.raises((OSError, asyncpg.PostgresError, TimeoutError)):
            await asyncpg.connect(
                host="127.0.0.1", port=server.port, user="u", password="theirs", database="d", ssl=False, timeout=0.5
            )
    assert b"theirs" in server.heard
