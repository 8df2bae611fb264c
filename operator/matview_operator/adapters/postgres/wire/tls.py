"""TLS as a target wants it: what is trusted, what is shown, and what a failed handshake means.

Nothing of a Secret is ever written to a disk, and nothing of the environment is read but the system's own CAs.
"""

from __future__ import annotations

import os
import ssl
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from matview_operator.api.database import SslMode
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.connection import ClientCertificate, ConnectionTarget, Pem
from matview_operator.domain.errors import Problem

_VERIFYING = frozenset({SslMode.VERIFY_CA, SslMode.VERIFY_FULL})

_UNTRUSTED = (
    "it is signed by no CA that is trusted here. Put the CA that signed it into the Secret's ca.crt, or name it with "
    "spec.caRef"
)
_ANOTHER_NAME = (
    "it is for another host name. Connect by a name that it holds, or accept any name with sslMode: verify-ca"
)
_VERDICTS = {
    7: _UNTRUSTED,  # signed by another CA of the same name
    9: "it is not valid yet. Compare the clocks of both machines, or renew it on the server",
    10: "it has expired. Renew it on the server",
    18: _UNTRUSTED,
    19: _UNTRUSTED,
    20: _UNTRUSTED,
    21: _UNTRUSTED,
    62: _ANOTHER_NAME,
    64: _ANOTHER_NAME,
}
"""By OpenSSL's X509_V_ERR numbers: what is wrong with a server's certificate, and what to do."""


class _NamedContext(ssl.SSLContext):
    """Asks for the host by its name and verifies that, though the connection goes to one of the host's addresses."""

    host: str

    def wrap_bio(self, *buffers: Any, **options: Any) -> ssl.SSLObject:
        return super().wrap_bio(*buffers, **options | {"server_hostname": self.host})


def tls_of(target: ConnectionTarget) -> ssl.SSLContext | None:
    """Return what the connection is protected with, None for `disable`.

    Raises Problem that names the key whose certificates or private key OpenSSL cannot read.
    """
    if target.ssl_mode is SslMode.DISABLE:
        return None
    # Not ssl.create_default_context: from Python 3.13 on it refuses CAs that lack an extension of RFC 5280, as handmade
    # ones often do and libpq takes; and it would load the system's CAs for connections that verify nobody.
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.host = target.host
    context.check_hostname = target.ssl_mode is SslMode.VERIFY_FULL
    if target.ssl_mode in _VERIFYING:
        _trust(context, target.ca)
    else:
        context.verify_mode = ssl.CERT_NONE
    if target.client_certificate is not None:
        _show(context, target.client_certificate)
    return context


def tls_problem(error: ssl.SSLError) -> Problem:
    """Say what a failed handshake means and what to do. Neither names nor addresses are repeated."""
    if isinstance(error, ssl.SSLCertVerificationError):
        verdict = _VERDICTS.get(error.verify_code, f"{error.verify_message}")
        return Problem(RefreshReason.TLS_FAILED, f"The server's certificate is refused: {verdict}.")
    return Problem(
        RefreshReason.TLS_FAILED,
        f"TLS with the server failed: {error.reason or 'handshake refused'}. "
        "The server's log may say more; if it asks for a client certificate, check tls.crt and tls.key.",
    )


def tls_unanswered() -> Problem:
    """Say that the server hung up when the handshake was over and before it said a word."""
    return Problem(
        RefreshReason.CONNECTION_FAILED,
        "The server closed the connection right after the TLS handshake. Its log says why; "
        "if it asks for a client certificate, it may have refused ours (tls.crt and tls.key).",
    )


def _trust(context: ssl.SSLContext, ca: Pem | None) -> None:
    if ca is None:
        context.load_default_certs()
        return
    try:
        # Bundles have comments with names of authorities in them, and only ASCII is taken.
        context.load_verify_locations(cadata=ca.text.encode("ascii", "replace").decode())
    except (ssl.SSLError, ValueError):
        raise Problem(
            RefreshReason.SECRET_INVALID, f"The {ca.source} holds no certificates in PEM form; put the CA's there."
        ) from None


def _show(context: ssl.SSLContext, certificate: ClientCertificate) -> None:
    chain, key = certificate.chain, certificate.key
    try:
        with _as_file(chain) as chain_file, _as_file(key) as key_file:
            # With no password given, OpenSSL would ask for an encrypted key's at the terminal, and wait.
            context.load_cert_chain(chain_file, key_file, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            said = f"The {key.source} is not the private key of the certificate in {chain.source}; put both there anew."
        else:
            said = f"A certificate ({chain.source}) or its private key ({key.source}) is not in PEM form, or encrypted."
        raise Problem(RefreshReason.SECRET_INVALID, said) from None


@contextmanager
def _as_file(pem: Pem) -> Iterator[str]:
    """Lend a name by which OpenSSL can read it: it takes client certificates from files only.

    On Linux the file is in memory and in no file system, elsewhere it lost its name before anything was written.
    """
    with _file() as file:
        file.write(pem.text.encode())
        file.flush()
        file.seek(0)
        yield f"/dev/fd/{file.fileno()}"


def _file() -> IO[bytes]:
    return os.fdopen(os.memfd_create("pem"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile()
