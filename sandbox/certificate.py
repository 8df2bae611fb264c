"""A certificate authority of one server's own, and the server's certificate."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.errors import MissingPart

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_EXTENSIONS = "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\n"


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files in PEM, valid for two days for `localhost` and 127.0.0.1."""

    ca: Path
    cert: Path
    key: Path


def make_certificate(folder: Path) -> Certificate:
    """Make a CA and a certificate signed by it in `folder`; the CA's key is not kept.

    Raises MissingPart without OpenSSL.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        raise MissingPart(part="OpenSSL", package="openssl")
    made = Certificate(ca=folder / "ca.crt", cert=folder / "server.crt", key=folder / "server.key")
    ca_key, request, extensions = folder / "ca.key", folder / "server.csr", folder / "server.ext"
    extensions.write_text(_EXTENSIONS)
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    signed_by = ("-CA", made.ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2", "-extfile", extensions)
    steps: tuple[Sequence[str | Path], ...] = (
        (
            "req",
            "-x509",
            *new_key,
            "-days",
            "2",
            "-subj",
            "/CN=sandbox CA",
            "-keyout",
            ca_key,
            "-out",
            made.ca,
        ),
        ("req", *new_key, "-subj", "/CN=localhost", "-keyout", made.key, "-out", request),
        ("x509", "-req", "-in", request, *signed_by, "-out", made.cert),
    )
    for step in steps:
        subprocess.run([openssl, *step], check=True, capture_output=True, cwd=folder)
    for leftover in (ca_key, request, extensions, folder / "ca.srl"):
        leftover.unlink(missing_ok=True)
    made.key.chmod(0o600)
    return made
