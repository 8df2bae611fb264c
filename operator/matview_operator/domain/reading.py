"""Raw objects from the API server as models. Whatever is stored there, reading ends in a model or in InvalidObject."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from matview_operator.api.database import MatviewDatabase, MatviewDatabaseStatus
from matview_operator.api.model import CustomObject, ObjectMeta
from matview_operator.api.policy import MatviewRefreshPolicy
from matview_operator.api.policy_status import MatviewRefreshPolicyStatus
from matview_operator.domain.errors import MatviewError
from matview_operator.domain.spec_check import check_database, check_policy

_PROBLEMS_SHOWN = 10

Status = TypeVar("Status", bound=BaseModel)
Object = TypeVar("Object", bound=CustomObject)


class InvalidObject(MatviewError):
    """An object that the operator cannot act on until a person mends it.

    `metadata` is there whenever the object can be addressed, so that its status can say what is wrong.
    """

    def __init__(self, problems: Sequence[str], *, metadata: ObjectMeta | None) -> None:
        self.problems = tuple(problems)
        self.metadata = metadata
        shown = " ".join(self.problems[:_PROBLEMS_SHOWN])
        more = len(self.problems) - _PROBLEMS_SHOWN
        super().__init__(f"{shown} And {more} more." if more > 0 else shown)


def read_policy(body: object) -> MatviewRefreshPolicy:
    """Read a policy and check its spec; raises InvalidObject. A status that cannot be read is dropped in parts."""
    policy = _read(MatviewRefreshPolicy, body, status=read_policy_status(body))
    return _checked(policy, check_policy(policy.spec))


def read_database(body: object) -> MatviewDatabase:
    """Read a database and check its spec; raises InvalidObject. A status that cannot be read is dropped in parts."""
    database = _read(MatviewDatabase, body, status=read_database_status(body))
    return _checked(database, check_database(database.spec))


def read_policy_status(body: object) -> MatviewRefreshPolicyStatus:
    """Read what can be read of a policy's status, unless that was done before; never raises."""
    return _salvage(MatviewRefreshPolicyStatus, _part(body, "status"))


def read_database_status(body: object) -> MatviewDatabaseStatus:
    """Read what can be read of a database's status; never raises."""
    return _salvage(MatviewDatabaseStatus, _part(body, "status"))


def read_metadata(body: object) -> ObjectMeta:
    """Read the metadata alone; raises InvalidObject."""
    try:
        return ObjectMeta.model_validate(_part(body, "metadata"))
    except ValidationError as error:
        raise InvalidObject(_in_words(error, root="metadata"), metadata=None) from None


def read_database_name(body: object) -> str:
    """Read what a policy names as its database, be the rest as it may; never raises."""
    match body:
        case {"spec": {"databaseRef": {"name": str(name)}}}:
            return name
        case _:
            return ""


def _part(body: object, name: str) -> object:
    part = body.get(name) if isinstance(body, Mapping) else None
    return dict(part) if isinstance(part, Mapping) else part


def _read(model: type[Object], body: object, *, status: BaseModel) -> Object:
    metadata = read_metadata(body)
    try:
        return model.model_validate({"metadata": metadata, "spec": _part(body, "spec"), "status": status})
    except ValidationError as error:
        raise InvalidObject(_in_words(error), metadata=metadata) from None


def _checked(found: Object, problems: Sequence[str]) -> Object:
    if problems:
        raise InvalidObject(problems, metadata=found.metadata)
    return found


def _salvage(model: type[Status], raw: object) -> Status:
    """Drop what does not fit, the single item of a list or else the whole field, and keep the rest."""
    if isinstance(raw, model):
        return raw
    kept: dict[str, Any] = dict(raw) if isinstance(raw, dict) else {}
    try:
        return model.model_validate(kept)
    except ValidationError as error:
        bad_items: dict[str, set[int]] = {}
        for detail in error.errors(include_url=False, include_context=False, include_input=False):
            match detail["loc"]:
                case (str(field), int(index), *_):
                    bad_items.setdefault(field, set()).add(index)
                case (str(field), *_):
                    kept.pop(field, None)
        for field in bad_items.keys() & kept.keys():
            kept[field] = [item for index, item in enumerate(kept[field]) if index not in bad_items[field]]
        return model.model_validate(kept)


def _in_words(error: ValidationError, *, root: str = "") -> list[str]:
    """Say what does not fit, where, and what would; without the value, which may be long or secret."""
    details = error.errors(include_url=False, include_input=False)
    # A list whose entries are wrong is called too short as well: say it once, where it can be mended.
    covered = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
    return [
        f"{_path(root, detail['loc'])}: {_WORDS.get(detail['type'], _other)(detail)}."
        for detail in details
        if detail["loc"] not in covered
    ]


def _path(root: str, location: tuple[int | str, ...]) -> str:
    path = root
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return path.removeprefix(".")


def _other(_: ErrorDetails) -> str:
    return "is not valid"


def _says(text: str) -> Callable[[ErrorDetails], str]:
    return lambda detail: text.format_map(detail.get("ctx", {}))


_WHOLE_NUMBER = _says("must be a whole number")
_OBJECT = _says("must be an object with fields")
_TRUE_OR_FALSE = _says("must be true or false")

_WORDS: Mapping[str, Callable[[ErrorDetails], str]] = {
    "missing": _says("is missing; write it"),
    "enum": _says("must be one of {expected}"),
    "value_error": _says("{error}"),
    "string_type": _says("must be text; put it in quotes"),
    "string_too_short": _says("must have at least {min_length} characters"),
    "string_too_long": _says("must have at most {max_length} characters"),
    "too_short": _says("must not be empty"),
    "too_long": _says("must have at most {max_length} entries"),
    "greater_than_equal": _says("must be at least {ge}"),
    "less_than_equal": _says("must be at most {le}"),
    "tuple_type": _says("must be a list"),
    "model_type": _OBJECT,
    "dict_type": _OBJECT,
    "int_type": _WHOLE_NUMBER,
    "int_parsing": _WHOLE_NUMBER,
    "int_parsing_size": _WHOLE_NUMBER,
    "int_from_float": _WHOLE_NUMBER,
    "bool_type": _TRUE_OR_FALSE,
    "bool_parsing": _TRUE_OR_FALSE,
}
