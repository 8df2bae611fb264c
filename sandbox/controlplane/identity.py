"""The secrets that a control plane begins with: its administrator's token and the key that signs all others."""

from __future__ import annotations

import base64
import secrets
from typing import TYPE_CHECKING

from sandbox.controlplane.cluster import write_private

if TYPE_CHECKING:
    from pathlib import Path

_SEC1_BEFORE = bytes.fromhex("30310201010420")
_SEC1_AFTER = bytes.fromhex("a00a06082a8648ce3d030107")
"""RFC 5915's ECPrivateKey, version 1, of the curve prime256v1, around the 32 bytes of the number itself."""


def write_admin_token(path: Path) -> str:
    """Write a --token-auth-file whose one user is in system:masters; return the token."""
    token = secrets.token_urlsafe(32)
    write_private(path, f'{token},sandbox-admin,sandbox-admin,"system:masters"\n')
    return token


def write_signing_key(path: Path) -> None:
    """Write a fresh P-256 key for ServiceAccount tokens, as PEM. Needs no OpenSSL: any number is a key."""
    number = bytearray(secrets.token_bytes(32))
    number[0] &= 0x7F  # below the order of the curve, whose first byte is 0xFF
    encoded = base64.b64encode(_SEC1_BEFORE + number + _SEC1_AFTER).decode()
    lines = [encoded[start : start + 64] for start in range(0, len(encoded), 64)]
    write_private(path, "\n".join(["-----BEGIN EC PRIVATE KEY-----", *lines, "-----END EC PRIVATE KEY-----", ""]))
