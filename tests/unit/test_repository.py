"""Rules for what is committed that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
OPERATOR = ROOT / "operator" / "matview_operator"
STATEMENTS = OPERATOR / "adapters" / "postgres"
"""The only folder that may talk to PostgreSQL."""
LONGEST_MODULE = 300
LOCKS = ("run.txt", "dev.txt", "build.txt", "go.txt")

_SENDS = frozenset(
    """row rows utility fetch fetchrow fetchval fetchmany execute executemany prepare cursor copy_from_query
    text exec_driver_sql scalar""".split()
)
"""Names of methods and functions that take a statement, of asyncpg, SQLAlchemy and our own session."""
_VERBS = (
    "select|insert|update|delete|merge|with|refresh|analyze|vacuum|set|reset|grant|revoke|create|alter|drop|truncate"
    "|copy|lock|call|do|begin|commit|rollback|listen|notify"
)
# Not `Set the variable …`, which is how messages begin.
_SQL = re.compile(rf"\s*({_VERBS}|{_VERBS.upper()})\s")
_REFRESH = re.compile(r"\s*refresh\s+materialized\s+view\b", re.IGNORECASE)


def tracked(*patterns: str) -> list[Path]:
    command = ["git", "ls-files", "-z", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(), filename=str(path)))


def place(path: Path, node: ast.expr) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def literal(node: ast.expr) -> str:
    """The text that a string begins with, as far as it is written down."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=[first, *_]) | ast.BinOp(left=first):
            return literal(first)
        case _:
            return ""


def is_composed(node: ast.expr) -> bool:
    """Whether a text is put together at run time: f-string, +, % or format()."""
    match node:
        case ast.JoinedStr():
            return any(isinstance(value, ast.FormattedValue) for value in node.values)
        case ast.BinOp(op=ast.Add() | ast.Mod()):
            return True
        case ast.Call(func=ast.Attribute(attr="format" | "join" | "replace")):
            return True
        case _:
            return False


def composed_statements(path: Path) -> Iterator[str]:
    """Places where a statement is put together: in a call that sends one, or by its first words."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in _SENDS and node.args and is_composed(node.args[0]):
                yield place(path, node)
        elif STATEMENTS in path.parents and isinstance(node, ast.JoinedStr) and _SQL.match(literal(node)):
            yield place(path, node)


def test_no_statement_is_put_together_from_text() -> None:
    assert {found for path in tracked("operator/*.py") for found in composed_statements(path)} == set()


@pytest.mark.parametrize(
    "line",
    [
        'session.rows(f"select * from {view}")',
        'connection.execute("drop table " + name)',
        'connection.fetchval("select %s" % name)',
        'connection.fetch("select {}".format(name))',
        'text(f"{statement}")',
        'statement = f"refresh materialized view {view}"',
    ],
)
def test_the_rule_above_sees(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "STATEMENTS", tmp_path)
    path = tmp_path / "module.py"
    path.write_text(f"{line}\n")
    assert set(composed_statements(path)) == {"module.py:1"}


_SIMPLE = frozenset({"execute", "copy_from_query", "copy_to_table"})
_MIGRATIONS = {"migrations.py", "migration_environment.py"}
"""SQLAlchemy's `execute` prepares what it is given; the driver's sends text by the simple protocol."""


def simple_protocol(path: Path) -> Iterator[str]:
    """Calls by which a driver's connection would run several statements in one text."""
    for node in nodes(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _SIMPLE:
            yield place(path, node)


def test_t2_nothing_is_sent_by_the_protocol_that_takes_several_statements() -> None:
    folder = [path for path in tracked("operator/*.py") if STATEMENTS in path.parents and path.name not in _MIGRATIONS]
    assert len(folder) > 10
    assert {found for path in folder for found in simple_protocol(path)} == set()


def test_t2_the_rule_above_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "module.py"
    path.write_text("await self._connection.execute(queries.BEGIN)\n")
    assert set(simple_protocol(path)) == {"module.py:1"}


def test_rem_3_refresh_stands_in_one_module() -> None:
    homes = {
        path.relative_to(OPERATOR).as_posix()
        for path in tracked("operator/*")
        if path.suffix in (".py", ".sql")
        for node in (nodes(path) if path.suffix == ".py" else [ast.Constant(path.read_text())])
        if isinstance(node, ast.expr) and _REFRESH.match(literal(node))
    }
    assert homes == {"adapters/postgres/sql/queries.py"}


_NO_FUNCTIONS = frozenset(
    """all and any array as by case coalesce conflict else end except exists extract filter from in intersect join
    lateral materialized not on or order over returning row select set then union using values when where
    with""".split()
)
"""Words before a bracket that call nothing, or nothing that a search path could change."""


def bare_calls(statement: str) -> set[str]:
    """Functions that a statement calls without their schema."""
    text = re.sub(r"'(?:[^']|'')*'", "''", statement)
    text = re.sub(r"\boperator\(pg_catalog\.[^()\w]+\)", "", text)
    own = set(re.findall(r"\b(?:with|recursive|as)\s+(\w+)\s*\(", text))
    own |= set(re.findall(r"\b(\w+)\s*\([^()]*\)\s+as\s+(?:materialized\s*)?\(", text))
    own |= set(re.findall(r"\b(?:join|from|into)\s+(?:\w+\.)?(\w+)\s+(?:\w+\s*)?\(", text))
    return set(re.findall(r"(?<![\w.])([a-z_]\w*)\s*\(", text)) - _NO_FUNCTIONS - own


def test_t6_our_own_statements_say_the_schema_of_each_function() -> None:
    statements = [
        (place(path, node), node.value)
        for path in tracked("operator/matview_operator/adapters/postgres/sql/*.py")
        for node in nodes(path)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"\bselect\b", node.value)
    ]
    assert len(statements) > 20
    assert {where: calls for where, text in statements if (calls := bare_calls(text))} == {}


@pytest.mark.parametrize(
    ("statement", "calls"),
    [
        ("select count(*) from t", {"count"}),
        ("select pg_catalog.max(array_agg(a)) from t where x in (select lower ('a') )", {"array_agg", "lower"}),
        ("select 1 operator(pg_catalog.+) 2 operator(-) 3 operator(public.+) 4", {"operator"}),
        ("select 1 operator(pg_catalog.+) 2, 3 operator(pg_catalog.>=) 4", set()),
        ("with recursive r(a) as (select pg_catalog.now()) select coalesce(a, 'f(x)') from r", set()),
    ],
)
def test_the_rule_on_schemas_sees(statement: str, calls: set[str]) -> None:
    assert bare_calls(statement) == calls


def test_only_the_postgres_adapter_sends_statements() -> None:
    drivers = {"asyncpg", "sqlalchemy", "alembic"}
    users = {
        path.relative_to(OPERATOR).as_posix()
        for path in tracked("operator/*.py")
        for node in nodes(path)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if name.partition(".")[0] in drivers
    }
    assert users
    assert {user for user in users if not user.startswith("adapters/postgres/")} == set()


_IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
    importlib.import_module(module.name)
print(*sys.modules)
"""


@pytest.mark.parametrize("package", ["matview_operator.api", "matview_operator.domain", "matview_operator.engine"])
def test_importing_the_core_loads_no_driver_and_no_client(package: str) -> None:
    command = [sys.executable, "-c", _IMPORT_ALL, package]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "pydantic" in loaded
    assert loaded & {"asyncpg", "kopf", "aiohttp", "kubernetes", "sqlalchemy", "alembic", "prometheus_client"} == set()


def test_source_roots_are_no_packages() -> None:
    """With an `__init__.py`, `python -m pytest` and `python -m alembic` would import these two folders instead."""
    assert [path for folder in ("operator", "alembic") if (path := ROOT / folder / "__init__.py").exists()] == []


def test_no_module_is_longer_than_300_lines() -> None:
    modules = [path for path in tracked("*.py", "*.sql") if not path.name.startswith("test_")]
    long = {path.relative_to(ROOT).as_posix(): n for path in modules if (n := len(path.read_text().splitlines())) > 300}
    assert len(modules) > 50
    assert long == {}


def test_every_exception_from_a_lint_rule_gives_its_reason() -> None:
    bare = re.compile(r"# noqa(?!: [A-Z]+[0-9]+(, [A-Z]+[0-9]+)* - \S)")
    assert [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked("operator/*.py", "sandbox/*.py", "alembic/*.py", "bench/*.py", "tests/*.py")
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if bare.search(line)
    ] == []


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    own = {str(ROOT), str(Path.home()), sys.prefix}
    # A checkout or a home such as `/` or `/src` says nothing about a machine.
    folders = [re.escape(folder) for folder in own if folder.count("/") > 1]
    somebodys = re.compile("|".join([*folders, r"/home/(?!\$)\w+/", r"/Users/\w+/", r"\b[A-Z]:\\\\Users\\\\"]))
    assert [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in tracked()
        if path != Path(__file__) and (match := somebodys.search(path.read_text(errors="replace")))
    ] == []


def test_what_ci_runs_is_a_program_that_bash_can_read() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111 == 0o111
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in script.read_text()
    subprocess.run(["bash", "-n", script], check=True, timeout=10)


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_name_versions_and_hashes_and_no_address(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()
    assert re.findall(r"://|^\s*-{1,2}(?!-?hash)\S+|\.whl|\.tar\.gz", text, re.MULTILINE) == []
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE | re.IGNORECASE)[1:]
    assert entries
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


@pytest.mark.parametrize(("lock", "group"), [("run.txt", None), ("dev.txt", "dev"), ("build.txt", "build")])
def test_locks_fit_what_the_project_asks_for(lock: str, group: str | None) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = pyproject["project"]["dependencies"] if group is None else pyproject["dependency-groups"][group]
    text = (ROOT / "requirements" / lock).read_text()
    locked = {canonicalize_name(match[1]): match[2] for match in re.finditer(r"^(\S+)==(\S+)", text, re.MULTILINE)}
    for line in wanted:
        if isinstance(line, str):
            requirement = Requirement(line)
            version = locked.get(canonicalize_name(requirement.name))
            assert version is not None, f"{line} is not in requirements/{lock}; run `make lock`"
            assert version in requirement.specifier, f"{line}: requirements/{lock} has {version}; run `make lock`"
