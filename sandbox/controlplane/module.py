"""A committed Go module: which programs it builds, and what that costs."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildCost:
    """What one build from nothing takes, measured; said to the user before it begins."""

    core_minutes: float
    download_mb: int
    disk_mb: int
    """At the peak, without the toolchain."""
    kept_mb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GoModule:
    """Programs built from one go.mod and go.sum, whose hashes pin every module."""

    name: str
    """Of its folder in the cache."""
    title: str
    """As a user reads it."""
    folder: Path
    programs: Mapping[str, str]
    """File name of each program → its Go package."""
    cost: BuildCost
    ldflags: str = "-s -w"

    @property
    def digest(self) -> str:
        """The key of the cache: 16 hexadecimal digits over go.mod and go.sum."""
        content = b"\0".join((self.folder / name).read_bytes() for name in ("go.mod", "go.sum"))
        return hashlib.sha256(content).hexdigest()[:16]

    @property
    def minimum_go(self) -> tuple[int, int]:
        """The oldest Go release that go.mod admits."""
        match = re.search(r"^go (\d+)\.(\d+)", self._go_mod(), re.MULTILINE)
        if match is None:
            raise SandboxError(f"{self.folder / 'go.mod'} names no Go version.")
        return int(match[1]), int(match[2])

    def version_of(self, module: str) -> str:
        """Return the version that go.mod requires of a module, as in `v1.36.3`."""
        match = re.search(rf"^(?:require)?\s+{re.escape(module)} (v\S+)", self._go_mod(), re.MULTILINE)
        if match is None:
            raise SandboxError(f"{self.folder / 'go.mod'} does not require {module}.")
        return match[1]

    def is_complete(self, folder: Path) -> bool:
        """Tell whether every program is there and can be executed."""
        return all(os.access(folder / program, os.X_OK) for program in self.programs)

    def _go_mod(self) -> str:
        return (self.folder / "go.mod").read_text(encoding="utf-8")
