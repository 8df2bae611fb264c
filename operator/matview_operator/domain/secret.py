"""What a Secret says about a connection: any bytes under any keys end in a target, or in a sentence naming the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from matview_operator.api.database import CaRef, MatviewDatabaseSpec, SecretKeys, SslMode
from matview_operator.domain.connection import (
    DEFAULT_PORT,
    ClientCertificate,
    ConnectionTarget,
    Pem,
    checked_target,
    target_from_url,
)
from matview_operator.domain.errors import InvalidTarget

Data = Mapping[str, bytes]
"""A Secret's data, decoded from base64 and no further: keys that nobody asks for may hold what they like."""

_VALUE_BYTES = 16_384
"""More than any name or token for logging in takes; certificates are as long as they are."""


class _Values:
    """The Secret's values under the names that its owner gave them. Errors name the key, never the value."""

    def __init__(self, data: Data, keys: SecretKeys) -> None:
        self._data = data
        self._keys = keys

    def named(self, part: str) -> bool:
        """Whether the resource names the key of this part."""
        return getattr(self._keys, part) is not None

    def key(self, part: str, *usual: str) -> str | None:
        """The key that holds this part: the one that the resource names, or the first of the usual ones that is there.

        Raises InvalidTarget if the named one is not there.
        """
        own: str | None = getattr(self._keys, part)
        if own is None:
            return next((key for key in usual if self._data.get(key)), None)
        if own not in self._data:
            field = SecretKeys.model_fields[part].alias
            raise InvalidTarget(f"It has no key '{own}', which spec.secretKeys.{field} names.")
        return own

    def text(self, part: str, *usual: str) -> str | None:
        """Return a part's value, if there is one."""
        key = self.key(part, *usual)
        return None if key is None else text_of(self._data, key, most=_VALUE_BYTES)

    def pem(self, part: str, usual: str, *, secret: str) -> Pem | None:
        """Return certificates or a private key, if there are any; what is in them only TLS can tell."""
        key = self.key(part, usual)
        return None if key is None else Pem(text=text_of(self._data, key), source=f"key {key} of Secret {secret}")


def target_from_secret(
    data: Data, *, secret: str, spec: MatviewDatabaseSpec, ca: Pem | None = None
) -> ConnectionTarget:
    """Read CloudNativePG's keys, or those that `spec.secretKeys` names instead.

    `host` and its companions win over `uri`, unless only the latter's key is named. `spec.database` wins over both,
    `ca`, which comes from `spec.caRef`, over the Secret's own. Raises InvalidTarget: it names the key, never its value.
    """
    values = _Values(data, spec.secret_keys)
    ca = ca or values.pem("ca_cert", "ca.crt", secret=secret)
    mode = spec.ssl_mode or (SslMode.REQUIRE if ca is None else SslMode.VERIFY_FULL)
    certificate = _client_certificate(values, secret=secret)
    by_uri = values.named("uri") and not values.named("host")
    host = None if by_uri else values.text("host", "host")
    if host is None:
        uri = values.text("uri", "uri")
        if uri is None:
            raise InvalidTarget("It has neither a key 'host' nor a key 'uri'; give it one of them.")
        target = target_from_url(uri, ssl_mode=mode, ca=ca, database=spec.database)
        return replace(target, client_certificate=certificate)
    user = values.text("username", "username", "user")
    if not user:
        raise InvalidTarget("It has no key 'username' (or 'user').")
    password = _password(data, values)
    if password is None and (certificate is None or mode is SslMode.DISABLE):
        raise InvalidTarget("It has no key 'password'.")
    name = spec.database or values.text("dbname", "dbname")
    if not name:
        raise InvalidTarget("It has no key 'dbname'; add it, or set spec.database.")
    return checked_target(
        host=host,
        port=values.text("port", "port") or str(DEFAULT_PORT),
        database=name,
        user=user,
        password=password or "",
        ssl_mode=mode,
        ca=ca,
        client_certificate=certificate,
    )


def ca_from_secret(data: Data, ref: CaRef) -> Pem:
    """Read the CA that `spec.caRef` names. Raises InvalidTarget if the key is missing or no text."""
    if not data.get(ref.key):
        raise InvalidTarget(f"It has no key '{ref.key}', which spec.caRef.key names.")
    return Pem(text=text_of(data, ref.key), source=f"key {ref.key} of Secret {ref.name}")


def text_of(data: Data, key: str, *, most: int | None = None) -> str:
    """Return a key's value as text; raises InvalidTarget if it is none, or longer than `most` bytes."""
    value = data[key]
    if most is not None and len(value) > most:
        raise InvalidTarget(f"Its key '{key}' holds more than {most} bytes.")
    try:
        return value.decode()
    except UnicodeDecodeError:
        # Not `from error`: that one holds the value.
        raise InvalidTarget(f"Its key '{key}' is not UTF-8 text.") from None


def _password(data: Data, values: _Values) -> str | None:
    # An empty one is one: the server may ask for none.
    key = values.key("password", "password") or ("password" if "password" in data else None)
    return None if key is None else text_of(data, key, most=_VALUE_BYTES)


def _client_certificate(values: _Values, *, secret: str) -> ClientCertificate | None:
    chain = values.pem("tls_cert", "tls.crt", secret=secret)
    key = values.pem("tls_key", "tls.key", secret=secret)
    if chain is None and key is None:
        return None
    if chain is None or key is None:
        there, missing = ("tls.key", "tls.crt") if chain is None else ("tls.crt", "tls.key")
        raise InvalidTarget(f"It holds one half of a client certificate: {there} without {missing}. Add the other.")
    return ClientCertificate(chain=chain, key=key)
