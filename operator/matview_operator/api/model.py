"""What every part of a custom resource is built from: frozen models, closed sets, metadata.

`kube_custom_resource` turns pydantic models into structural schemas; what it lacks for this project is added
here and in `crd.py`, nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self, TypeVar

from kube_custom_resource.schema import BaseModel, Nullable
from pydantic import BaseModel as PydanticModel
from pydantic import BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from matview_operator.api.scalar import OneOf

GROUP = "matviews.skeldir.io"
VERSION = "v1beta1"
API_VERSION = f"{GROUP}/{VERSION}"
REQUESTED_AT = f"{GROUP}/requestedAt"
"""The annotation that asks for a refresh now; its value is the request's token."""

_FIELDS_SET: set[str] = set()

T = TypeVar("T")
Optional = Annotated[T | None, Nullable]
"""A value or nothing, without the `anyOf … null` that is no structural schema. As the library's own, but
visible to mypy."""


class Undescribed:
    """A part whose docstring is for developers and stays out of the CRD, else it would replace the description of
    the field that holds it.
    """

    __slots__ = ()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        return {key: value for key, value in schema.items() if key not in ("title", "description")}


class Model(Undescribed, BaseModel):
    """A frozen part of a custom resource: camelCase on the wire, snake_case in Python, unknown fields
    dropped.

    The docstring of a field is its description in the CRD and so in `kubectl explain`.
    """

    model_config = ConfigDict(
        frozen=True, use_attribute_docstrings=True, validate_assignment=False, hide_input_in_errors=True
    )

    def model_post_init(self, _context: Any, /) -> None:
        """Forget which fields were given: nobody asks, and of 5,000 policies that is a quarter of the memory."""
        object.__setattr__(self, "__pydantic_fields_set__", _FIELDS_SET)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As the base's, and forget too."""
        copied = super().model_copy(update=update, deep=deep)
        copied.model_post_init(None)
        return copied

    def to_document(self) -> dict[str, Any]:
        """Return it as the API server takes it: camelCase, times as text, without what is not known."""
        return PydanticModel.model_dump(self, mode="json", by_alias=True, exclude_none=True)


class ClosedSet(Undescribed, StrEnum):
    """An enumeration whose members are the words on the wire."""


def _own_annotations(annotations: Any) -> Any:
    """Keep only this group's: `kubectl apply` stores whole manifests in annotations, times 5,000 policies in
    memory.
    """
    if not isinstance(annotations, dict):
        return annotations
    return {key: value for key, value in annotations.items() if isinstance(key, str) and key.startswith(f"{GROUP}/")}


class ObjectMeta(Model):
    """The metadata of an object that this operator uses; the API server owns it."""

    name: str = Field(min_length=1)
    namespace: OneOf[str] = Field(min_length=1)
    uid: str = Field(min_length=1)
    generation: int = 0
    resource_version: Optional[str] = None
    creation_timestamp: Optional[datetime] = None
    deletion_timestamp: Optional[datetime] = None
    annotations: Annotated[dict[str, str], BeforeValidator(_own_annotations)] = Field(default_factory=dict)


class CustomObject(Model):
    """A whole custom resource. apiVersion and kind are known by the class, metadata is the API server's
    business.
    """

    KIND: ClassVar[str]
    PLURAL: ClassVar[str]

    metadata: ObjectMeta

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        del schema["properties"]["metadata"]
        schema["required"].remove("metadata")
        return schema | {"description": cls.__doc__}
