"""Where a database is and as whom to reach it; read from a URL by allow-list.

A URL never reaches the driver: its passfile, sslrootcert, sslkey, service and socket options would open files of the
operator's own pod, unknown options would become server settings, and its parse errors repeat parts of the password.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import SecretStr

from matview_operator.api.database import SslMode
from matview_operator.domain.destination import Destinations
from matview_operator.domain.errors import InvalidTarget

DEFAULT_PORT = 5432
_SCHEMES = frozenset({"postgresql", "postgres", "postgresql+asyncpg"})
_IGNORED_OPTIONS = frozenset({"application_name", "connect_timeout"})
_REFUSED_OPTIONS = frozenset(
    [
        "channel_binding",
        "gssencmode",
        "host",
        "hostaddr",
        "options",
        "passfile",
        "password",
        "port",
        "service",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslpassword",
        "sslrootcert",
        "target_session_attrs",
        "user",
    ]
)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")
_PORT = re.compile("[0-9]{1,5}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOT_UTF8 = re.compile("[\ud800-\udfff]")
"""What Python makes of an environment's or command line's bytes that are not UTF-8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pem:
    """Certificates or a private key, in the text form that OpenSSL reads; whether it can is seen when it is used."""

    text: str = field(repr=False)
    source: str
    """Where it came from, for messages: the key and the Secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertificate:
    """What a server that authenticates by certificate knows the role by."""

    chain: Pem
    key: Pem


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionTarget:
    """One database as one role. Equal targets may share a connection."""

    host: str
    port: int
    database: str
    user: str
    password: SecretStr
    """Empty when none is given."""
    ssl_mode: SslMode
    ca: Pem | None = None
    """The certificates that verify-ca and verify-full trust; None means the system's, for verify-full only."""
    client_certificate: ClientCertificate | None = None
    """Shown to a server that asks for one, whatever the ssl_mode but disable."""
    destinations: Destinations | None = None
    """Where the host may lead to; None means anywhere, for who runs a command names a host of his own."""
    owner: str = ""
    """The MatviewDatabase that it was read for; two of them never share a connection, whatever else is equal."""

    @property
    def server(self) -> tuple[str, int]:
        """Where it is."""
        return self.host, self.port

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.database} as {self.user}"


def parse_url(url: str) -> ConnectionTarget:
    """Read `postgresql://user:password@host:port/database?sslmode=…`.

    Without sslmode: none to loopback, `require` elsewhere. Raises InvalidTarget, whose text never repeats the URL.
    """
    return target_from_url(url, ssl_mode=None, ca=None)


def target_from_url(
    url: str, *, ssl_mode: SslMode | None, ca: Pem | None, database: str | None = None
) -> ConnectionTarget:
    """Read a URL; `ssl_mode` and `database` win over what it says. Raises InvalidTarget that never repeats it."""
    # A file's last line break does no harm. Elsewhere the standard library's parser would drop it without a word.
    url = url.strip()
    if _CONTROL.search(url):
        raise InvalidTarget("The database URL holds a control character; percent-encode it.")
    # Every error of that parser repeats its input, hence `from None` throughout.
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname
    except ValueError:
        raise InvalidTarget(
            "The database URL cannot be read. Write postgresql://user:password@host:port/database "
            "and percent-encode special characters in the password."
        ) from None
    if parts.scheme not in _SCHEMES:
        raise InvalidTarget("The database URL must start with postgresql://.")
    if not host or not parts.username or "," in parts.netloc.rpartition("@")[2]:
        raise InvalidTarget(
            "The database URL must name one user and one host: postgresql://user:password@host/database."
        )
    if parts.fragment:
        raise InvalidTarget("The database URL holds a '#': percent-encode it as %23 if it belongs to the password.")
    name = database or unquote(parts.path.removeprefix("/"))
    if not name:
        raise InvalidTarget("The database URL names no database: postgresql://user:password@host/database.")
    asked = _ssl_mode_of(parts.query)
    default = SslMode.DISABLE if _is_loopback(host) else SslMode.REQUIRE
    return checked_target(
        host=host,
        port=str(port or DEFAULT_PORT),
        database=name,
        user=unquote(parts.username),
        password=unquote(parts.password or ""),
        ssl_mode=ssl_mode or asked or default,
        ca=ca,
    )


def _ssl_mode_of(query: str) -> SslMode | None:
    mode: SslMode | None = None
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in ("sslmode", "ssl"):
            try:
                mode = SslMode(value)
            except ValueError:
                allowed = ", ".join(str(m.value) for m in SslMode)
                raise InvalidTarget(f"sslmode in the database URL must be one of {allowed}.") from None
        elif key not in _IGNORED_OPTIONS:
            # An unencoded '?' in a password makes its rest look like an option, so only known names are repeated.
            shown = f"'{key}'" if key in _REFUSED_OPTIONS else "that is not known"
            raise InvalidTarget(
                f"The database URL has an option {shown}; only sslmode is supported. "
                "Percent-encode a '?' that belongs to the password."
            )
    return mode


def checked_target(
    *,
    host: str,
    port: str,
    database: str,
    user: str,
    password: str,
    ssl_mode: SslMode,
    ca: Pem | None,
    client_certificate: ClientCertificate | None = None,
) -> ConnectionTarget:
    """Put a target together; raises InvalidTarget for what cannot be one, naming the part and never its value."""
    for key, value in (
        ("host", host),
        ("port", port),
        ("dbname", database),
        ("user", user),
        ("password", password),
    ):
        if _CONTROL.search(value):
            raise InvalidTarget(f"The {key} holds a control character (a line break at its end, perhaps).")
        if _NOT_UTF8.search(value):
            raise InvalidTarget(f"The {key} is not valid UTF-8.")
    if not _HOST.fullmatch(host) and not _is_address(host):
        raise InvalidTarget("The host must be one DNS name or IP address; sockets and lists are not supported.")
    if not _PORT.fullmatch(port) or not 0 < int(port) < 65536:  # noqa: PLR2004 - TCP's bound
        raise InvalidTarget("The port must be a number from 1 to 65535.")
    if ssl_mode is SslMode.VERIFY_CA and ca is None:
        # Anybody can have a certificate for some name from one of the CAs that the system trusts.
        raise InvalidTarget(
            "verify-ca needs a CA of your own: ca.crt in the Secret, or spec.caRef. With the system's use verify-full."
        )
    return ConnectionTarget(
        host=host,
        port=int(port),
        database=database,
        user=user,
        password=SecretStr(password),
        ssl_mode=ssl_mode,
        ca=ca,
        client_certificate=client_certificate,
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
