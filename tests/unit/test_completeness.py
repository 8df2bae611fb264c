"""On CI no test is left out without anybody noticing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PASSES = "def test_it(): pass\n"
LEFT_OUT = {
    "skips_itself": "import pytest\ndef test_it(): pytest.skip('no server')\n",
    "is_marked": "import pytest\n@pytest.mark.skip(reason='no server')\ndef test_it(): pass\n",
    "fixture_skips": (
        "import pytest\n@pytest.fixture\ndef server(): pytest.skip('no server')\ndef test_it(server): pass\n"
    ),
    "module_skips": "import pytest\npytest.skip('no server', allow_module_level=True)\n",
    "is_expected_to_fail": "import pytest\n@pytest.mark.xfail\ndef test_it(): assert 0, 'no server'\n",
    "passes_unexpectedly": "import pytest\n@pytest.mark.xfail(strict=False)\ndef test_it(): pass\n",
}


def run(folder: Path, *arguments: str, ci: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.completeness", "-c", os.devnull, "-ra", *arguments, folder],
        cwd=ROOT,
        env={"PATH": os.defpath, "CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_on_ci_a_test_that_does_not_run_fails(tmp_path: Path) -> None:
    for name, module in LEFT_OUT.items():
        (tmp_path / f"test_{name}.py").write_text(module)
    (tmp_path / "test_run.py").write_text(PASSES)

    code, said = run(tmp_path, "--continue-on-collection-errors", ci="true")

    assert code == 1, said
    assert re.fullmatch(r"=+ 3 failed, 1 passed, 3 errors in \S+ =+", said[-1])
    summary = {line for line in said if line.startswith(("FAILED", "ERROR"))}
    for name in LEFT_OUT:
        assert any(f"test_{name}.py" in line for line in summary), name
    assert any("CI=true wants every test to run" in line and "no server" in line for line in said)

    code, said = run(tmp_path, ci="")
    assert code == 0, said
    assert re.fullmatch(r"=+ 1 passed, 4 skipped, 1 xfailed, 1 xpassed in \S+ =+", said[-1])


def test_on_ci_none_is_deselected(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text(f"{PASSES}{PASSES.replace('it', 'other')}")
    code, said = run(tmp_path, "-k", "other", ci="true")
    assert code != 0
    assert any("1 were deselected" in line for line in said)
    assert run(tmp_path, "-k", "other", ci="")[0] == 0


def test_what_runs_passes_on_ci(tmp_path: Path) -> None:
    (tmp_path / "test_run.py").write_text(PASSES)
    code, said = run(tmp_path, ci="true")
    assert code == 0
    assert re.fullmatch(r"=+ 1 passed in \S+ =+", said[-1])


def test_this_run_has_the_plugin(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.has_plugin("tests.completeness")
