"""docs/policies.md says what the models and the code say: each field, outcome, condition and reason."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from matview_operator.api.crd import RESOURCES, crd
from matview_operator.api.outcome import RefreshOutcome, RefreshReason
from matview_operator.domain import conditions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matview_operator.api.crd import Resource

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "policies.md").read_text()
CHAPTERS = {"MatviewRefreshPolicy": "Fields of a policy", "MatviewDatabase": "Fields of a database"}


class Field(NamedTuple):
    """The first three columns of a table of fields."""

    path: str
    values: str
    default: str


def chapter(title: str) -> str:
    return TEXT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def table(text: str) -> list[list[str]]:
    """All rows of a chapter's tables, without their heads."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    return [row for row in rows if row[0].startswith("`")]


def first_column(title: str) -> list[str]:
    return sorted(row[0].strip("`") for row in table(chapter(title)))


def fields_of(schema: dict[str, Any], prefix: str = "") -> Iterator[Field]:
    for name, part in schema["properties"].items():
        path = f"{prefix}{name}"
        default = "none"
        if name in schema.get("required", ()):
            default = "required"
        elif "default" in part:
            default = f"`{str(part['default']).lower() if isinstance(part['default'], bool) else part['default']}`"
        yield Field(f"`{path}`", _values(part), default)
        if part["type"] == "object":
            yield from fields_of(part, f"{path}.")
        elif part["type"] == "array" and "properties" in part["items"]:
            yield from fields_of(part["items"], f"{path}[].")


def _values(part: dict[str, Any]) -> str:
    match part["type"]:
        case "object":
            return "object"
        case "boolean":
            return "`true`, `false`"
        case "integer":
            return f"{part['minimum']} to {part['maximum']}"
        case "array":
            return f"{part.get('minItems', 0)} to {part['maxItems']} items"
        case _ if "enum" in part:
            return ", ".join(f"`{value}`" for value in part["enum"])
        case _:
            return f"{part['minLength']} to {part['maxLength']} characters"


def said_in_code() -> set[str]:
    """The reasons that conditions and events are given by name, besides those of RefreshReason."""
    found: set[str] = set()
    for path in (ROOT / "operator").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            place = {"Statement": 2, "Transition": 1}.get(node.func.id, len(node.args))
            match node.args[place : place + 1]:
                case [ast.Constant(value=str(reason))]:
                    found.add(reason)
                case [ast.Name(id=name)] if name.isupper():
                    found.add(getattr(conditions, name))
    return found


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.model.KIND)
def test_every_field_is_documented_with_its_values_and_its_default(resource: Resource) -> None:
    version = crd(resource)["spec"]["versions"][0]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    documented = [Field(*row[:3]) for row in table(chapter(CHAPTERS[resource.model.KIND]))]
    assert documented == list(fields_of(spec))


def test_every_outcome_is_documented() -> None:
    assert first_column("Outcomes") == sorted(RefreshOutcome)


def test_every_reason_is_documented_with_what_to_do() -> None:
    assert first_column("Reasons, and what to do") == sorted(RefreshReason)
    assert [row for row in table(chapter("Reasons, and what to do")) if len(row) != 3 or not all(row)] == []


def test_reasons_that_need_a_person_are_marked() -> None:
    marked = {row[0] for row in table(chapter("Reasons, and what to do")) if row[1].startswith("*person*")}
    assert marked == {f"`{reason}`" for reason in conditions.NEEDS_A_PERSON}


def test_the_other_reasons_of_conditions_and_events_are_documented() -> None:
    code = said_in_code()
    assert {"Connected", "NotYetRun", "InvalidRequest", "BlockingRefresh"} <= code
    documented = set(re.findall(r"`(\w+)`", chapter("Conditions") + chapter("Events")))
    assert code - documented == set()
