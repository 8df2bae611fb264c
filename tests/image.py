"""The Dockerfile's own steps, taken without a container engine: its copies, its commands, its user, its entry point."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.account import reachable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

CHECKOUT = Path(__file__).parents[1]
_FIXED_PATHS = ("/opt/matview-operator", "/wheels")
"""What the build stage writes to outside its working directory."""
_DEBIAN_PYTHON = Path("/usr/bin/python3")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its continuation lines joined."""

    word: str
    text: str


@dataclass(slots=True)
class Stage:
    """One FROM with what follows it."""

    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        """The texts of all instructions that begin with this word, in order."""
        return [instruction.text for instruction in self.instructions if instruction.word == word]

    def one(self, word: str) -> str:
        """The text of the only instruction of this kind."""
        (text,) = self.all(word)
        return text

    def pairs(self, word: str) -> dict[str, str]:
        """The pairs of ENV, LABEL or ARG."""
        return dict(pair.split("=", 1) for text in self.all(word) for pair in shlex.split(text))


def read_dockerfile(path: Path = CHECKOUT / "Dockerfile") -> list[Stage]:
    """Read a Dockerfile that uses no heredocs, escapes of its own or parser directives."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    stages: list[Stage] = []
    for statement in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        word, _, text = statement.partition(" ")
        if word == "FROM":
            stages.append(Stage(base=text))
        else:
            stages[-1].instructions.append(Instruction(word, text.strip()))
    return stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What the Dockerfile makes, in a folder instead of a file system of its own."""

    environment: Path
    """What is /opt/matview-operator in the image."""
    wheel: Path
    final: Stage

    @classmethod
    def build(cls, folder: Path, *, say: Callable[[str], None]) -> Image:
        """Take the steps of both stages in an empty folder that everybody can reach.

        Raises CalledProcessError, whose output is shown, where a step fails.
        """
        first, final = read_dockerfile()
        python = _base_python(folder / "python")
        source = folder / "src"
        source.mkdir()
        places = {fixed: str(folder / fixed.rpartition("/")[2]) for fixed in _FIXED_PATHS}
        variables = {
            name: value
            for name, value in os.environ.items()
            if name in ("HOME", "LANG", "TMPDIR", "SSL_CERT_FILE") or name.startswith(("PIP_", "HTTP", "NO_PROXY"))
        }
        variables |= first.pairs("ENV") | {"PATH": f"{python}:{os.defpath}"}
        for instruction in first.instructions:
            if instruction.word == "COPY":
                *origins, target = instruction.text.split()
                for origin in origins:
                    _copy(origin, to=source / target, as_folder=target.endswith("/"))
            elif instruction.word == "RUN":
                say(instruction.text)
                _run(_in_places(instruction.text, places), cwd=source, variables=variables)
        (wheel,) = Path(places["/wheels"]).glob("*.whl")
        return cls(environment=Path(places["/opt/matview-operator"]), wheel=wheel, final=final)

    def run(
        self, *arguments: str, cwd: Path, variables: Mapping[str, str | None] | None = None, program: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the entry point, or another program, as the image's user if we may be him.

        It gets the image's variables and these, and no others; None takes one away.
        """
        own = {
            name: _in_places(value, {"$PATH": os.defpath, "${REVISION}": "test", _FIXED_PATHS[0]: self.environment})
            for name, value in self.final.pairs("ENV").items()
        }
        found = shutil.which(program or _words(self.final.one("ENTRYPOINT"))[0], path=own["PATH"])
        assert found is not None, "there is no such program on the image's PATH"
        root = os.geteuid() == 0
        uid, gid = map(int, self.final.one("USER").split(":"))
        return subprocess.run(
            [found, *(arguments or _words(self.final.one("CMD")))],
            cwd=cwd,
            env={name: value for name, value in {**own, **(variables or {})}.items() if value is not None},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            user=uid if root else None,
            group=gid if root else None,
            extra_groups=[] if root else None,
        )


def ignored(path: str, *, rules: Sequence[str]) -> bool:
    """Tell whether .dockerignore keeps a path out of the build: the last rule that matches it decides."""
    out = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        parts = [path, *map(str, Path(path).parents)]
        if any(fnmatch.fnmatch(part, pattern) or fnmatch.fnmatch(f"/{part}", f"/{pattern}") for part in parts):
            out = not rule.startswith("!")
    return out


def _base_python(folder: Path) -> Path:
    """Make what stands for the base image's Python: an environment with pip alone; returns its folder of programs.

    The image's user has to reach it, which he cannot where it lies in the closed home of root.
    """
    own = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = own if reachable(own.resolve()) else _DEBIAN_PYTHON
    subprocess.run([base, "-I", "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet", "pip"]
    subprocess.run(pip, check=True, timeout=300)
    return folder / "bin"


def _copy(origin: str, *, to: Path, as_folder: bool) -> None:
    rules = [line for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert not ignored(origin, rules=rules), f".dockerignore keeps {origin} out, which the Dockerfile copies"
    path = CHECKOUT / origin
    if path.is_dir():
        shutil.copytree(path, to, ignore=shutil.ignore_patterns("__pycache__"))
        return
    target = to / path.name if as_folder or to.is_dir() else to
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target)


def _run(command: str, *, cwd: Path, variables: Mapping[str, str]) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=cwd,
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def _in_places(text: str, places: Mapping[str, str | Path]) -> str:
    for fixed, place in places.items():
        text = text.replace(fixed, str(place))
    return text


def _words(array: str) -> list[str]:
    """Read the exec form; the shell form, which would need a shell in the image, is refused."""
    assert array.startswith("["), f"not the exec form: {array}"
    return [word.strip().strip('"') for word in array.strip("[]").split(",")]
