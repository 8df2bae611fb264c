"""SCRAM-SHA-256 verifiers as PostgreSQL stores them (RFC 5802, RFC 7677)."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64encode

_ITERATIONS = 4096


def scram_verifier(password: str) -> str:
    """Return what `ALTER ROLE … PASSWORD` takes instead of the password, which then is in no log.

    `password` must be ASCII: others would have to be normalized first.
    """
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    salt_text, stored, server = (b64encode(part).decode() for part in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256${_ITERATIONS}:{salt_text}${stored}:{server}"
