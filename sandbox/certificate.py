"""A certificate authority of one server's own, and the certificates that it signs."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sandbox.errors import MissingPart

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOOPBACK = ("DNS:localhost", "IP:127.0.0.1")
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_AUTHORITY = """
[ca]
database = {name}.index
new_certs_dir = .
default_md = sha256
policy = any
unique_subject = no
rand_serial = yes
x509_extensions = leaf
[any]
commonName = supplied
[leaf]
basicConstraints = critical,CA:FALSE
{alternatives}
"""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files in PEM: a certificate, its private key, and the authority that signed it."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA of two days. Its files lie in a folder that its owner removes."""

    folder: Path
    own: Certificate
    """Signed by itself; for loopback, so that a server could show it as its own."""

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """Make one in an existing folder, as `ca.crt` and `ca.key`. Raises MissingPart without OpenSSL."""
        ca, key = folder / "ca.crt", folder / "ca.key"
        names = ("-addext", f"subjectAltName={','.join(LOOPBACK)}")
        own = ("-subj", "/CN=sandbox CA", "-days", "2", *names)
        _openssl(folder, "req", "-x509", *_NEW_KEY, *own, "-keyout", key, "-out", ca)
        return cls(folder=folder, own=Certificate(ca=ca, cert=ca, key=key))

    def issue(
        self,
        name: str,
        *,
        subject: str = "localhost",
        alternatives: Sequence[str] = LOOPBACK,
        starts: timedelta = timedelta(hours=-1),
        ends: timedelta = timedelta(days=2),
    ) -> Certificate:
        """Sign a new certificate, `<name>.crt` and `<name>.key`. `starts` and `ends` are from now."""
        made = Certificate(ca=self.own.ca, cert=self.folder / f"{name}.crt", key=self.folder / f"{name}.key")
        request, config, index = (self.folder / f"{name}.{kind}" for kind in ("csr", "ini", "index"))
        _openssl(self.folder, "req", *_NEW_KEY, "-subj", f"/CN={subject}", "-keyout", made.key, "-out", request)
        named = f"subjectAltName = {','.join(alternatives)}" if alternatives else ""
        config.write_text(_AUTHORITY.format(name=name, alternatives=named))
        index.touch()
        dates = [f"{datetime.now(UTC) + shift:%Y%m%d%H%M%SZ}" for shift in (starts, ends)]
        signed = ("-cert", self.own.cert, "-keyfile", self.own.key, "-startdate", dates[0], "-enddate", dates[1])
        _openssl(
            self.folder,
            *("ca", "-batch", "-notext", "-name", "ca", "-config", config),
            *(*signed, "-in", request, "-out", made.cert),
        )
        made.key.chmod(0o600)
        return made


def make_certificate(folder: Path) -> Certificate:
    """Make a CA and a server's certificate in `folder`, for `localhost` and 127.0.0.1; the CA's key is not kept.

    Raises MissingPart without OpenSSL.
    """
    workshop = folder / "authority"
    workshop.mkdir()
    made = Authority.make(workshop).issue("server")
    kept = Certificate(*(file.rename(folder / file.name) for file in (made.ca, made.cert, made.key)))
    shutil.rmtree(workshop)
    return kept


def _openssl(folder: Path, *arguments: str | Path) -> None:
    program = shutil.which("openssl")
    if program is None:
        raise MissingPart(part="OpenSSL", package="openssl")
    subprocess.run([program, *arguments], check=True, capture_output=True, cwd=folder)
