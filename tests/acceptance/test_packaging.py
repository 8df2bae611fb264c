"""What users install: the wheel and the image. No engine builds the image here, so its steps are taken by hand."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest
import yaml
from sandbox.postgres import PostgresServer
from tests.image import CHECKOUT, Image, Stage, ignored, read_dockerfile

if TYPE_CHECKING:
    from collections.abc import Iterator

# The first test waits for the build, which downloads and installs every dependency.
pytestmark = pytest.mark.timeout(900)

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def image(pytestconfig: pytest.Config) -> Iterator[Image]:
    """The image's content. Lies where the image's user can reach it, and nobody can write to it."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None

    def say(step: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\nDockerfile: RUN {step}", flush=True)  # noqa: T201 - it takes a minute

    folder = Path(tempfile.mkdtemp(prefix="matview-image-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        built = Image.build(folder, say=say)
        set_writable(built.environment, writable=False)
        yield built
        set_writable(built.environment, writable=True)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def nowhere(image: Image) -> Iterator[Path]:
    """An empty folder that nobody can write to."""
    folder = image.environment.with_name("empty")
    folder.mkdir(mode=0o555)
    yield folder
    assert list(folder.iterdir()) == []
    folder.rmdir()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer.start(directory=tmp_path_factory.mktemp("packaging"), in_memory=True) as started:
        yield started


def set_writable(folder: Path, *, writable: bool) -> None:
    write = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | stat.S_IWUSR if writable else mode & ~write)


def snapshot(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def names_in_lock(name: str) -> set[str]:
    lock = (CHECKOUT / "requirements" / name).read_text()
    return {match[1] for match in re.finditer(r"^([a-z0-9.-]+)==", lock, re.MULTILINE)}


@pytest.fixture
def stages() -> list[Stage]:
    return read_dockerfile()


def test_both_stages_start_from_one_python_pinned_by_its_tag(stages: list[Stage]) -> None:
    bases = {stage.base.removesuffix(" AS build") for stage in stages}
    assert len(stages) == 2
    (base,) = bases
    assert re.fullmatch(r"python:3\.13-slim-[a-z]+", base)


def test_the_image_runs_as_a_number_that_is_not_root_and_without_a_shell(stages: list[Stage]) -> None:
    final = stages[-1]
    assert final.one("USER") == "65532:65532"
    deployment = yaml.safe_load((CHECKOUT / "manifests/base/deployment.yaml").read_text())
    assert deployment["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == 65532
    assert final.one("ENTRYPOINT") == '["matview-operator"]'
    assert final.one("CMD") == '["run"]'
    assert final.all("RUN") == final.all("SHELL") == final.all("HEALTHCHECK") == []
    assert not stages[0].all("ADD") + final.all("ADD"), "ADD fetches what no hash was given for"


def test_nothing_enters_the_image_without_a_hash(stages: list[Stage]) -> None:
    installs = [
        command
        for text in stages[0].all("RUN")
        for command in text.split("&&")
        if re.search(r"\b(install|wheel|download)\b", command)
    ]
    assert len(installs) == 4
    for command in installs:
        locked = {"--require-hashes", "--only-binary=:all:", "--requirement"} <= set(command.split())
        ours = "--no-deps" in command and ("--no-build-isolation" in command or "--no-index" in command)
        assert locked or ours, command
    assert "apt" not in " ".join(stages[0].all("RUN"))


def test_the_images_version_is_the_projects(stages: list[Stage]) -> None:
    labels = stages[-1].pairs("LABEL")
    assert labels["org.opencontainers.image.version"] == PROJECT["version"]
    assert labels["org.opencontainers.image.licenses"] == PROJECT["license"]
    assert labels["org.opencontainers.image.description"].startswith("Keeps PostgreSQL materialized views fresh")
    assert labels["org.opencontainers.image.revision"] == stages[-1].pairs("ENV")["MATVIEW_REVISION"] == "${REVISION}"


def test_only_what_the_dockerfile_copies_is_sent_to_the_engine() -> None:
    rules = [line for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    tracked = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout
    sent = {path for path in tracked.splitlines() if not ignored(path, rules=rules)}
    folders = ("operator/", "alembic/bookkeeping/")
    files = {"pyproject.toml", "README.md", "LICENSE", "requirements/run.txt", "requirements/build.txt"}
    assert {path for path in sent if not path.startswith(folders)} == files
    assert ignored(".git/config", rules=rules)
    assert ignored("operator/matview_operator/__pycache__/cli.cpython-313.pyc", rules=rules)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, CHECKOUT / "Dockerfile"], check=False, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("lock", ["run.txt", "build.txt"])
@pytest.mark.parametrize("platform", ["x86_64-manylinux_2_28", "aarch64-manylinux_2_28"])
@pytest.mark.parametrize("python", ["3.11", "3.13", "3.14"])
def test_the_locks_hold_a_wheel_for_every_platform(lock: str, platform: str, python: str, tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    how = ["--dry-run", "--no-build", "--require-hashes", "--requirement", str(CHECKOUT / "requirements" / lock)]
    where = ["--target", str(tmp_path), "--python-version", python, "--python-platform", platform]
    done = subprocess.run(
        [uv, "pip", "install", *how, *where],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^ \+ ", done.stderr, re.MULTILINE)) == len(names_in_lock(lock))


def test_the_wheel_holds_the_package_and_its_migrations_and_nothing_else(image: Image) -> None:
    with zipfile.ZipFile(image.wheel) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"matview_operator-{PROJECT['version']}.dist-info/METADATA").decode()
    info = f"matview_operator-{PROJECT['version']}.dist-info/"
    assert {name.split("/")[0] for name in names} == {"matview_operator", info.rstrip("/")}
    package = {
        str(path.relative_to(CHECKOUT / "operator"))
        for path in (CHECKOUT / "operator").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    migrations = {
        f"matview_operator/migrations/{path.relative_to(CHECKOUT / 'alembic/bookkeeping')}"
        for path in (CHECKOUT / "alembic/bookkeeping").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "matview_operator/migrations/versions/0001_ledger.py" in migrations
    assert {name for name in names if not name.startswith(info)} == package | migrations
    assert f"{info}licenses/LICENSE" in names
    assert "License-Expression: Apache-2.0" in metadata


def test_the_environment_holds_the_lock_and_the_operator_and_nothing_else(image: Image) -> None:
    (packages,) = image.environment.glob("lib/python3.*/site-packages")
    installed = {
        re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower()
        for path in packages.glob("*.dist-info")
        if path.is_dir()
    }
    assert installed == {re.sub(r"[-_.]+", "-", name) for name in names_in_lock("run.txt")} | {"matview-operator"}


def test_it_says_its_version(image: Image, nowhere: Path) -> None:
    done = image.run("version", cwd=nowhere)
    assert (done.returncode, done.stderr) == (0, "")
    assert PROJECT["version"] in done.stdout


def test_it_explains_itself(image: Image, nowhere: Path) -> None:
    done = image.run("run", "--help", cwd=nowhere)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--namespace" in done.stdout


def test_it_prints_the_crds_of_the_checkout(image: Image, nowhere: Path) -> None:
    done = image.run("crds", cwd=nowhere)
    assert (done.returncode, done.stderr) == (0, "")
    files = sorted(path for path in (CHECKOUT / "crds").glob("*.yaml") if path.name != "kustomization.yaml")
    assert list(yaml.safe_load_all(done.stdout)) == [yaml.safe_load(path.read_text()) for path in files]


def test_its_entry_point_starts_the_operator(image: Image, nowhere: Path) -> None:
    """Without a cluster it cannot run, and says so: ENTRYPOINT and CMD reach the command."""
    done = image.run(cwd=nowhere)
    assert done.returncode == 1, f"{done.stdout}\n{done.stderr}"
    assert "There is no Kubernetes cluster to work in" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


async def test_it_migrates_from_anywhere_as_nobody_and_writes_nothing(
    image: Image, nowhere: Path, server: PostgresServer
) -> None:
    before = snapshot(image.environment)
    variables = {"DATABASE_URL": server.admin_url(), "HOME": None}

    done = image.run("migrate", cwd=nowhere, variables=variables)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    checked = image.run("migrate", "--check", cwd=nowhere, variables=variables)

    assert checked.returncode == 0, f"{checked.stdout}\n{checked.stderr}"
    connection = await asyncpg.connect(server.admin_url(), ssl=False)
    try:
        assert await connection.fetchval("select count(*) from matview_ops.refresh_run") == 0
    finally:
        await connection.close()
    assert snapshot(image.environment) == before
    password = server.admin_url().partition("postgres:")[2].partition("@")[0]
    assert password not in done.stdout + done.stderr + checked.stdout + checked.stderr


def test_the_images_user_cannot_write_to_the_environment(image: Image, nowhere: Path) -> None:
    """The premise of the tests above."""
    question = f"import os; print(os.access({os.fspath(image.environment)!r}, os.W_OK), os.geteuid() == 0)"
    done = image.run("-c", question, cwd=nowhere, program="python")
    assert done.stdout.split() == ["False", "False"], done.stderr
