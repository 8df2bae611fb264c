"""The search for passwords finds them however they are written, and fails the suite that let one out."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from sandbox.password import MARK, new_password
from tests import canaries

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a search found, apart from the one of this very suite."""
    places: dict[str, str] = {}
    monkeypatch.setattr(canaries, "_found", places)
    return places


@given(before=st.binary(max_size=9), after=st.binary(max_size=9))
def test_a_password_is_found_in_base64_wherever_it_begins(before: bytes, after: bytes) -> None:
    encoded = base64.b64encode(before + MARK.encode() + after)
    assert any(disguise in encoded for disguise in canaries.disguises(MARK))


def test_hypothesis_writes_no_password_of_itself() -> None:
    # It draws strings that it has read in our modules: a suite whose policies hold one would be told of a leak.
    with pytest.raises(NoSuchExample):
        find(st.text(), lambda text: MARK in text, settings=settings(max_examples=3000, database=None))


def test_a_password_is_found_in_plain_in_a_url_and_in_hexadecimal(found: dict[str, str]) -> None:
    password = new_password()
    for text in (password, f"postgresql://u:{quote(password)}@h/d", password.encode().hex()):
        canaries.looked_at(text.encode(), place=text)
    assert len(found) == 3
    assert not any(password in around for around in found.values())
    canaries.looked_at(b"nothing to see", place="elsewhere")
    assert len(found) == 3


LEAKS = """
import logging, subprocess, sys
from sandbox.password import new_password
from tests.canaries import looked_at

def test_log():
    logging.getLogger("matview_operator").debug("as %s", new_password())

def test_field():
    logging.getLogger("x").warning("no", extra={"url": f"//{new_password()}"})

def test_file(tmp_path):
    (tmp_path / "server.log").write_text("x" * 20_000_000 + new_password())

def test_output():
    looked_at(new_password().encode(), place="output of 1")

def test_arguments():
    subprocess.run([sys.executable, "-c", "import time; time.sleep(3)", new_password()])
"""
# Another mark, or the search in this suite would find it too.
OTHER_MARK = """
import sys, pytest, sandbox.password
sandbox.password.MARK = "tWeEt5tWeEt"
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_t8_one_password_anywhere_fails_the_suite(tmp_path: Path) -> None:
    suite = tmp_path / "test_leaks.py"
    suite.write_text(LEAKS)
    command = [
        *(sys.executable, "-c", OTHER_MARK, "-q", "-p", "tests.canaries", "-p", "no:cacheprovider", "-c", "/dev/null"),
        *("--rootdir", str(tmp_path), "--basetemp", str(tmp_path / "temporary"), str(suite)),
    ]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)
    assert "5 passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    told = re.findall(r"^A PASSWORD GOT OUT: (.+?)<a password>$", done.stdout, re.MULTILINE)
    assert len(told) == 5, done.stdout
    for place in ("record of matview_operator", "record of x", "server.log: xxx", "output of 1", "arguments of "):
        assert any(place in line for line in told), done.stdout
