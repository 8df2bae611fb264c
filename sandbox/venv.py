"""Make .venv: everything that requirements/dev.txt locks, and this project, editable. A script, run by itself.

`python3 -I sandbox/venv.py [--this-python]`; with the option, an environment of another Python is made anew.
It has to be readable for any Python 3: its first duty is to say what is wrong with the one that runs it.
"""

import fcntl
import importlib.util
import shutil
import signal
import sys
import time
import venv
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDER = CHECKOUT / ".venv"
READY = FOLDER / "ready"
LOG = FOLDER / "install.log"
LOCK = CHECKOUT / "requirements" / "dev.txt"
INPUTS = (LOCK, CHECKOUT / "pyproject.toml")

OLDEST = (3, 11)
NEWEST_KNOWN = 14
# Measured with an empty pip cache; what is downloaded is kept there, outside the checkout.
COST = "about a minute, 120 MB to download, 540 MB of disk"
NEEDED_MB = 700


def main() -> int:
    """Make the environment unless it is there; return the exit code."""
    if sys.version_info < OLDEST:
        return fail(advice_on_python())
    # Who names no Python is content with the one that .venv was made by.
    any_python = "--this-python" not in sys.argv
    with LOCK.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another process is making .venv: waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_whole() or not (any_python or is_of_this_python()):
            return create()
        if is_older_than_its_inputs():
            say("Renewing .venv: the locked packages or pyproject.toml have changed.")
            return fill()
    return 0


def is_whole() -> bool:
    """Whether it was completed once, and in this place: an environment cannot be moved."""
    return READY.exists() and READY.read_text() == str(CHECKOUT)


def is_older_than_its_inputs() -> bool:
    """Whether the lock or pyproject.toml has changed since."""
    made_at = READY.stat().st_mtime
    return any(path.stat().st_mtime > made_at for path in INPUTS)


def is_of_this_python() -> bool:
    """Whether it was made by a Python of the same version as the one that runs this."""
    return f"version = {version()}" in (FOLDER / "pyvenv.cfg").read_text().splitlines()


def create() -> int:
    """Make it from nothing; return the exit code."""
    if importlib.util.find_spec("ensurepip") is None:
        return fail(advice_on_venv())
    free_mb = shutil.disk_usage(CHECKOUT).free // 1_000_000
    if free_mb < NEEDED_MB:
        return fail(f".venv needs {NEEDED_MB} MB of disk in {CHECKOUT}, where {free_mb} MB are free: free some space.")
    say(f"Making .venv with Python {version()}, once: {COST}. Interrupted, it begins again with what pip has kept.")
    # Cleared, because what an interrupted pip left half installed looks installed to the next one.
    venv.create(FOLDER, with_pip=True, clear=True)
    return fill()


def fill() -> int:
    """Install everything; return the exit code."""
    READY.unlink(missing_ok=True)
    LOG.unlink(missing_ok=True)
    began = time.monotonic()
    total = LOCK.read_text().count("==")
    for arguments in (
        ["--require-hashes", "-r", str(LOCK)],
        ["--no-deps", "--no-build-isolation", "-e", str(CHECKOUT)],
    ):
        if not pip_install(arguments, total=total):
            say("\n".join(LOG.read_text(errors="replace").splitlines()[-25:]))
            return fail(f"pip could not install everything: see above, or {LOG}. Called again, it begins anew.")
    READY.write_text(str(CHECKOUT))
    say(f".venv is ready after {time.monotonic() - began:.0f} s.")
    return 0


def pip_install(arguments: "list[str]", *, total: int) -> bool:
    """Run pip with its output in the log, showing how far it is; return whether it succeeded."""
    command = [str(FOLDER / "bin" / "python"), "-m", "pip", "--no-input", "--disable-pip-version-check", "install"]
    command += arguments
    bar = Bar(total)
    # On one line: older Pythons, which have to be told, cannot read brackets around it.
    with LOG.open("a") as log, Popen(command, stdout=PIPE, stderr=STDOUT, text=True, errors="replace") as pip:
        assert pip.stdout is not None
        try:
            for line in pip.stdout:
                log.write(line)
                bar.watch(line)
        except BaseException:  # on Ctrl-C, too: nothing is left behind
            pip.terminate()
            raise
    bar.end()
    return pip.returncode == 0


class Bar:
    """pip's progress in one line on a terminal; elsewhere a line now and then."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.seen = 0
        self.told = False

    def watch(self, line: str) -> None:
        """Take in a line of pip's."""
        if line.startswith("Collecting "):
            self.seen += 1
            self.show(f"  fetching {self.seen} of {self.total}: {line.split()[1][:40]}", important=self.seen % 20 == 1)
        elif line.startswith("Installing collected packages") and self.seen:
            self.show(f"  installing {self.seen} packages", important=True)

    def show(self, text: str, *, important: bool) -> None:
        """Show a state; only an important one where every state would be a line."""
        if sys.stdout.isatty():
            print(f"\r{text:<70}", end="", flush=True)
            self.told = True
        elif important:
            say(text)

    def end(self) -> None:
        """Leave the line."""
        if self.told:
            print()


def advice_on_python() -> str:
    """Say what to do about a Python that is too old."""
    names = [f"python3.{minor}" for minor in range(NEWEST_KNOWN, OLDEST[1] - 1, -1)]
    found = [name for name in names if shutil.which(name)]
    if found:
        what = f"name a newer one: make PYTHON={found[0]} …"
    else:
        what = "install a newer one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv) and name it: "
        what += "make PYTHON=python3.11 …"
    return f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed, and {sys.executable} is {version()}: {what}"


def advice_on_venv() -> str:
    """Say what to do about a Python without ensurepip, which Debian packages by itself."""
    package = "python{}.{}-venv".format(*sys.version_info)
    return f"{sys.executable} cannot make virtual environments: as root, apt-get install {package} (or python3-venv)."


def version() -> str:
    """Return this Python's version, as in `3.11.7`."""
    return "{}.{}.{}".format(*sys.version_info)


def say(text: str) -> None:
    """Tell the user."""
    print(text, flush=True)


def fail(text: str) -> int:
    """Tell the user what went wrong; return the exit code."""
    print(text, file=sys.stderr, flush=True)
    return 1


def interrupt(number: int, frame: object) -> None:
    """Let SIGTERM do what Ctrl-C does: nothing must go on installing behind our back."""
    del number, frame
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(fail("\nInterrupted: the next make venv begins again with what pip has kept."))
