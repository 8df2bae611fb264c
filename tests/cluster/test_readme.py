"""The README's "With your own database", as written: its SQL, its YAML, its commands, its Python, on real servers."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

import asyncpg
import pytest
import yaml
from sandbox.password import new_password
from sandbox.postgres import PostgresServer
from sandbox.scram import scram_verifier

from matview_operator.domain.server import MAINTAIN_SINCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sandbox.controlplane import Cluster
    from sandbox.operator_process import OperatorProcess

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PART = README.split("\n## With your own database\n", 1)[1].split("\n## ", 1)[0]
POLICIES = (ROOT / "docs" / "policies.md").read_text()
OPERATOR_ROLE = "matview_operator"
OWNER = "reporting"


class Block(NamedTuple):
    """A code block."""

    language: str
    text: str


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def texts(language: str) -> list[str]:
    return [block.text for block in blocks(PART) if block.language == language]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The README's example: a database `analytics`, whose owner and only user is `reporting`, and a namespace."""

    server: PostgresServer
    namespace: str
    folder: Path
    environment: dict[str, str]
    operator_password: str
    owner_password: str

    @property
    def owner_url(self) -> str:
        return self.server.url(user=OWNER, password=self.owner_password, database="analytics")

    async def execute(self, sql: str, *, role: str | None = None) -> None:
        connection = await asyncpg.connect(self.server.admin_url("analytics"), ssl=False, timeout=30)
        try:
            if role is not None:
                await connection.execute(f"set role {role}")
            await connection.execute(sql)
        finally:
            await connection.close()

    async def fetch(self, sql: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.server.admin_url("analytics"), ssl=False, timeout=30)
        try:
            return await connection.fetch(sql)
        finally:
            await connection.close()

    def adapted(self, text: str) -> str:
        """Put this site's namespace, host and passwords in the place of the example's."""
        text = re.sub(r"(namespace:? |-n )analytics\b", rf"\g<1>{self.namespace}", text)
        return text.replace("password: change-me", f"password: {self.operator_password}")

    def write_yaml(self, text: str) -> None:
        documents = list(yaml.safe_load_all(self.adapted(text)))
        kinds = {document["kind"]: document for document in documents}
        secret = kinds["Secret"]["stringData"]
        assert secret["host"] == "db.example.com"
        secret |= {"host": "127.0.0.1", "port": str(self.server.port)}
        # The wheel's servers have no TLS; that it is required otherwise is another test's.
        kinds["MatviewDatabase"]["spec"]["sslMode"] = "disable"
        (self.folder / "analytics.yaml").write_text(yaml.safe_dump_all(documents))

    def run(self, script: str, *, stdin: str = "") -> str:
        """Run commands as a user would paste them, and stop at the first that fails."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.adapted(script)],
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        for password in (self.operator_password, self.owner_password):
            assert password not in done.stdout + done.stderr
        return done.stdout


@pytest.fixture(params=[16, 18], ids=lambda version: f"pg{version}")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    directory = tmp_path_factory.mktemp("readme")
    with PostgresServer.start(version=request.param, directory=directory, in_memory=True) as started:
        yield started


@pytest.fixture
async def site(
    server: PostgresServer, installed: Cluster, operator: OperatorProcess, tmp_path: Path
) -> AsyncIterator[Site]:
    assert operator.alive
    for name in ("crds", "manifests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "kubectl").symlink_to(installed.kubectl)
    # No engine builds images here. tests/acceptance/test_packaging.py takes the steps of the Dockerfile.
    (programs / "docker").write_text('#!/bin/sh\ncase "$1" in build | push) exit 0 ;; *) exit 1 ;; esac\n')
    (programs / "docker").chmod(0o755)
    made = Site(
        server=server,
        namespace=f"readme-{uuid4().hex[:8]}",
        folder=tmp_path,
        environment={
            "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.defpath]),
            "HOME": str(tmp_path),
            "KUBECONFIG": str(installed.kubeconfig),
            "GIT_DIR": str(ROOT / ".git"),
        },
        operator_password=new_password(),
        owner_password=new_password(),
    )
    await _prepare(made)
    yield made
    installed.run_kubectl("delete", "namespace", made.namespace, "--wait=false", check=False)
    # `kubectl set image` has changed what all tests share.
    installed.run_kubectl("apply", "-k", str(ROOT / "manifests/cluster"))


async def _prepare(site: Site) -> None:
    """Make what the README takes for granted, in a database where PUBLIC has nothing."""
    connection = await asyncpg.connect(site.server.admin_url(), ssl=False, timeout=30)
    try:
        await connection.execute(f"create role {OWNER} login password '{scram_verifier(site.owner_password)}'")
        await connection.execute(f"create database analytics owner {OWNER}")
    finally:
        await connection.close()
    await site.execute(f"""
        revoke all on database analytics from public;
        revoke all on schema public from public;
        grant usage, create on schema public to {OWNER};
    """)
    await site.execute(
        """
        create table revenue (tenant_id int, booked_at date, cents int);
        insert into revenue values (1, '2026-01-01', 100), (1, '2026-01-01', 50), (2, '2026-01-02', 7);
        create materialized view daily_revenue as
          select tenant_id, booked_at as revenue_date, sum(cents) as cents from revenue group by 1, 2;
        """,
        role=OWNER,
    )


async def follow_sql(site: Site) -> None:
    """Run the SQL of this server's version, each block as whom its comment says."""
    newer = site.server.version * 10_000 >= MAINTAIN_SINCE
    left_out = "-- PostgreSQL 15 and 16," if newer else "-- PostgreSQL 17 and later,"
    followed = 0
    for text in texts("sql"):
        assert text.startswith("-- "), "each block says who runs it"
        if not text.startswith(left_out):
            await site.execute(text, role=OWNER if "as reporting" in text.splitlines()[0] else None)
            followed += 1
    assert followed == 3
    # What `\password` does.
    await site.execute(f"alter role {OPERATOR_ROLE} password '{scram_verifier(site.operator_password)}'")


def commands(*, upto: str | None = None, after: str | None = None) -> str:
    """The part's commands in one script, before or after the line that begins so."""
    lines = "".join(texts("sh")).splitlines(keepends=True)
    place = next(index for index, line in enumerate(lines) if line.startswith(upto or after or ""))
    return "".join(lines[:place] if upto else lines[place:])


async def test_with_your_own_database(site: Site) -> None:
    await follow_sql(site)
    (document,) = texts("yaml")
    site.write_yaml(document)
    await site.execute("insert into revenue values (3, '2026-01-03', 9)", role=OWNER)

    said = await asyncio.to_thread(
        site.run, commands(upto="matview-operator refresh daily_revenue"), stdin=f"{site.owner_url}\n"
    )

    # The operator, as the README's role, did refresh: the view holds the row of just now.
    rows = await site.fetch("select tenant_id, cents::int from daily_revenue order by 1")
    assert [tuple(row) for row in rows] == [(1, 150), (2, 7), (3, 9)]
    ledger = await site.fetch("select recorded_by, slot_id, outcome, mode from matview_ops.refresh_run")
    assert ("matview_operator", "request:first", "SUCCESS", "Concurrent") in [tuple(row) for row in ledger]
    (sample,) = texts("text")
    (head,) = [line for line in said.splitlines() if line.startswith("NAME") and "TENANT" in line]
    assert head.split() == sample.splitlines()[0].split()
    row = said.splitlines()[said.splitlines().index(head) + 1]
    assert row.split()[:4] == sample.splitlines()[1].split()[:4] == ["revenue", "True", "True", "Scheduled"]
    assert "Bookkeeping:" in said
    assert "Installed" in said
    image = site.run("kubectl -n matview-system get deployment matview-operator -o jsonpath='{..image}'")
    assert image == "registry.example.com/matview-operator:0.1.0"


async def test_refresh_now_as_the_document_on_policies_says(site: Site) -> None:
    await follow_sql(site)
    (document,) = texts("yaml")
    site.write_yaml(document)
    installing = commands(after="kubectl create namespace").splitlines(keepends=True)[:3]
    (refresh_now,) = [block.text for block in blocks(POLICIES) if block.language == "sh"]
    here = refresh_now.replace("kubectl ", f"kubectl -n {site.namespace} ").replace(" daily-revenue ", " revenue ")

    said = await asyncio.to_thread(site.run, "".join(installing) + here)

    assert said.endswith("SUCCESS"), said


async def test_without_kubernetes(site: Site) -> None:
    await follow_sql(site)
    await asyncio.to_thread(
        site.run,
        "".join(line for line in commands(after="read -rsp").splitlines(keepends=True)[:3]),
        stdin=f"{site.owner_url}\n",
    )
    site.environment["DATABASE_URL"] = site.owner_url
    script = commands(after="matview-operator refresh daily_revenue")

    said = await asyncio.to_thread(site.run, script)

    assert "SUCCESS" in said
    assert '"import-4711"' in said
    (program,) = texts("python")
    run = f"python - <<'END'\n{program}END\n"
    await site.execute("insert into revenue values (3, '2026-01-03', 9)", role=OWNER)
    first = await asyncio.to_thread(site.run, run)
    again = await asyncio.to_thread(site.run, run)
    assert first == again, "idempotent: the second call tells what the first one did"
    assert first.split()[-2:] == ["1", "0"]
    recorded = await site.fetch("select count(*) from matview_ops.refresh_run where correlation_id = 'import-4712'")
    assert recorded[0]["count"] == 1


def test_every_command_is_run_or_is_a_make_target() -> None:
    """The rest of the README holds no command but the two that other tests run."""
    rest = README.replace(PART, "")
    assert [block.text for block in blocks(rest)] == ["make demo\n", "make test\n"]
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"there is no `make {target}`"
    assert {block.language for block in blocks(PART)} == {"sh", "sql", "yaml", "text", "python"}
