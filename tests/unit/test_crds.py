"""The CRDs are what the models say, and what the API server and kubectl need them to be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from matview_operator.api.condition import Condition
from matview_operator.api.crd import RESOURCES, Resource, crd, crd_files, crds_yaml, main
from matview_operator.api.database import MatviewDatabase, MatviewDatabaseSpec
from matview_operator.api.policy import MatviewRefreshPolicy, MatviewRefreshPolicySpec
from matview_operator.api.policy_status import ViewStatus

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "crds"

every_resource = pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.model.KIND)


def schema_of(resource: Resource) -> dict[str, Any]:
    schema: dict[str, Any] = crd(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def walk(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every schema inside with its path; `[]` is an item of a list."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from walk(part, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")


def test_the_committed_files_are_what_the_models_say() -> None:
    committed = {path.name: path.read_text() for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml"}
    assert committed == crd_files(), "run `make crds` and commit the result"
    assert yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"] == sorted(committed)


def test_check_names_a_file_that_differs_and_writing_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def generate(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", ["crd", str(tmp_path), *options])
        return main()

    assert generate() == 0
    assert generate("--check") == 0
    changed = tmp_path / "matviews.skeldir.io_matviewdatabases.yaml"
    changed.write_text(changed.read_text() + "# by hand\n")

    assert generate("--check") == 1
    said = capsys.readouterr().err
    assert said == f"{changed} differs from the models: run `make crds` and commit the result.\n"
    assert generate() == 0
    assert generate("--check") == 0


def test_the_printed_stream_holds_both() -> None:
    assert [document["spec"]["names"]["kind"] for document in yaml.safe_load_all(crds_yaml())] == [
        "MatviewDatabase",
        "MatviewRefreshPolicy",
    ]


@every_resource
def test_the_schema_is_structural(resource: Resource) -> None:
    for path, schema in walk(schema_of(resource)):
        assert "type" in schema, path
        refused = {"anyOf", "oneOf", "allOf", "$ref", "$defs", "title", "nullable", "additionalProperties", "const"}
        assert not refused & schema.keys(), path
        assert schema.get("default", "none") is not None, f"{path}: `default: null` is no default"


@every_resource
def test_everything_has_bounds(resource: Resource) -> None:
    for path, schema in walk(schema_of(resource)):
        match schema["type"]:
            case "string":
                assert "enum" in schema or "maxLength" in schema, path
            case "integer":
                assert {"minimum", "maximum", "format"} <= schema.keys(), path
            case "array":
                assert "maxItems" in schema, path
                assert schema["x-kubernetes-list-type"] in ("map", "atomic"), path
            case "object":
                assert schema["properties"], path
            case other:
                assert other == "boolean", path


@every_resource
def test_every_field_is_explained(resource: Resource) -> None:
    for path, schema in walk(schema_of(resource)):
        if path.endswith("[]"):
            assert "description" not in schema, f"{path}: the list says it, to users; a class says it to developers"
            continue
        description = schema.get("description", "")
        assert len(description) > 15, f"{path}: {description}"
        assert description.endswith("."), f"{path}: {description}"
        assert "\n" not in description, path


@every_resource
def test_keys_of_lists_are_there_in_every_item(resource: Resource) -> None:
    keyed = 0
    for path, schema in walk(schema_of(resource)):
        for key in schema.get("x-kubernetes-list-map-keys", ()):
            keyed += 1
            item = schema["items"]
            assert key in item.get("required", ()) or "default" in item["properties"][key], f"{path}: {key}"
    assert keyed


@every_resource
def test_rules_have_messages_that_name_their_field(resource: Resource) -> None:
    names = {path.rpartition(".")[2].removesuffix("[]") for path, _ in walk(schema_of(resource))}
    for path, schema in walk(schema_of(resource)):
        for rule in schema.get("x-kubernetes-validations", ()):
            words = set(rule["message"].replace(".", " ").replace(",", " ").split())
            assert words & names or "PostgreSQL name" in rule["message"], f"{path}: {rule['message']}"


@every_resource
def test_selectable_fields_are_legal(resource: Resource) -> None:
    fields = dict(walk(schema_of(resource)))
    for path in resource.selectable:
        assert fields[path]["type"] in ("string", "integer", "boolean")


@every_resource
def test_columns_read_fields_that_exist(resource: Resource) -> None:
    paths = {path for path, _ in walk(schema_of(resource))} | {".metadata.creationTimestamp"}
    for name, _, path in resource.columns:
        plain = path.replace('[?(@.type=="Ready")]', "[]").replace('[?(@.type=="Fresh")]', "[]")
        assert plain in paths, name


def test_columns_of_a_policy() -> None:
    (policy,) = (crd(resource) for resource in RESOURCES if resource.short_name == "mvrp")
    columns = policy["spec"]["versions"][0]["additionalPrinterColumns"]
    assert [(column["name"].upper(), column["type"]) for column in columns] == [
        ("READY", "string"),
        ("FRESH", "string"),
        ("REASON", "string"),
        ("TENANT", "string"),
        ("SCHEDULE", "string"),
        ("SUSPENDED", "boolean"),
        ("LAST SUCCESS", "date"),
        ("NEXT", "string"),
        ("AGE", "date"),
    ]


def with_defaults(value: Any, schema: dict[str, Any]) -> Any:
    """Fill in the schema's defaults as the API server does."""
    if isinstance(value, dict):
        filled = {name: part["default"] for name, part in schema["properties"].items() if "default" in part} | value
        return {name: with_defaults(part, schema["properties"][name]) for name, part in filled.items()}
    return [with_defaults(item, schema["items"]) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("model", "spec"),
    [
        (MatviewDatabaseSpec, {"secretRef": {"name": "analytics-app"}}),
        (
            MatviewRefreshPolicySpec,
            {"databaseRef": {"name": "analytics"}, "views": [{"name": "mv"}], "schedule": {"everySeconds": 30}},
        ),
    ],
)
def test_the_schema_defaults_what_the_model_defaults(
    model: type[MatviewDatabaseSpec | MatviewRefreshPolicySpec], spec: dict[str, Any]
) -> None:
    (resource,) = (each for each in RESOURCES if each.model.model_fields["spec"].annotation is model)
    stored = with_defaults(spec, schema_of(resource)["properties"]["spec"])

    assert stored != spec
    assert stored == model.model_validate(spec).to_document()


@every_resource
def test_a_status_has_no_defaults(resource: Resource) -> None:
    for path, schema in walk(schema_of(resource)["properties"]["status"]):
        assert "default" not in schema, path


def test_a_view_defaults_nothing_that_would_mask_the_policy() -> None:
    (resource,) = (each for each in RESOURCES if each.model is MatviewRefreshPolicy)
    view = schema_of(resource)["properties"]["spec"]["properties"]["views"]["items"]["properties"]
    assert {name for name, part in view.items() if "default" in part} == {"schema"}


def test_models_are_frozen_and_speak_both_spellings() -> None:
    database = MatviewDatabase.model_validate(
        {
            "metadata": {"name": "analytics", "namespace": "tenant-a", "uid": "1"},
            "spec": {"secretRef": {"name": "analytics-app"}, "fromTheFuture": True},
        }
    )
    assert database.spec == MatviewDatabaseSpec.model_validate({"secret_ref": {"name": "analytics-app"}})
    with pytest.raises(ValidationError, match="frozen"):
        database.spec.suspend = True  # type: ignore[misc]  # the point of this test


def test_annotations_of_others_are_not_kept_in_memory() -> None:
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": "{…}", "matviews.skeldir.io/requestedAt": "now"}
    policy = MatviewRefreshPolicy.model_validate(
        {
            "metadata": {"name": "revenue", "namespace": "tenant-a", "uid": "1", "annotations": annotations},
            "spec": {"databaseRef": {"name": "a"}, "views": [{"name": "mv"}], "schedule": {"everySeconds": 30}},
        }
    )
    assert policy.metadata.annotations == {"matviews.skeldir.io/requestedAt": "now"}


def test_a_long_message_is_cut_rather_than_refused() -> None:
    condition = Condition(
        type="Ready",
        status="False",
        reason="ViewNotFound",
        message="x" * 5000,
        last_transition_time=datetime(2026, 11, 22, tzinfo=UTC),
    )
    view = ViewStatus(schema_name="public", name="mv", message="é" * 2000)

    assert condition.message == "x" * 4095 + "…"
    assert view.message == "é" * 1023 + "…"
    assert view.to_document().keys() == {"schema", "name", "message"}


def test_the_models_load_no_adapters() -> None:
    code = (
        "import sys, matview_operator.api.crd\n"
        "print(sorted({'asyncpg', 'kopf', 'aiohttp', 'kubernetes', 'sqlalchemy'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "operator", capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
