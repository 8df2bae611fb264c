"""Writes the status subresource: one guarded merge patch per document."""

from __future__ import annotations

from typing import Any

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from matview_operator.adapters.kube.client import REQUEST_SECONDS, api_errors
from matview_operator.api.database import MatviewDatabase
from matview_operator.api.model import GROUP, VERSION
from matview_operator.api.policy import MatviewRefreshPolicy
from matview_operator.engine.ports import ObjectGone, ObjectRef, Status, StatusConflict, StatusRefused

PLURALS = {MatviewRefreshPolicy.KIND: MatviewRefreshPolicy.PLURAL, MatviewDatabase.KIND: MatviewDatabase.PLURAL}
_NOT_FOUND = 404
_CONFLICT = 409
_MERGE_PATCH = "application/merge-patch+json"
_METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""What is answered: the object itself we have just sent, and the watch tells it again."""


class KubeStatusWriter:
    """The only writer of this group's objects, and of their status only."""

    def __init__(self, api: client.ApiClient) -> None:
        self._objects = client.CustomObjectsApi(api)

    async def write(self, ref: ObjectRef, status: Status, *, resource_version: str) -> str:
        """Return the new resourceVersion; raises ObjectGone, StatusConflict, StatusRefused or ApiUnavailable."""
        place = (GROUP, VERSION, ref.key.namespace, PLURALS[ref.kind], ref.key.name)
        body = {
            # The UID makes the patch fail on another object of the same name.
            "metadata": {"uid": ref.uid, "resourceVersion": resource_version},
            "status": status_document(status),
        }
        try:
            with api_errors():
                written: Any = await self._objects.patch_namespaced_custom_object_status(
                    *place,
                    body,
                    _content_type=_MERGE_PATCH,
                    _headers={"Accept": _METADATA_ONLY},
                    _request_timeout=REQUEST_SECONDS,
                )
        except ApiException as error:
            if error.status == _NOT_FOUND:
                raise ObjectGone(str(ref.key)) from None
            if error.status != _CONFLICT:
                raise StatusRefused(f"{error.status} {error.reason}") from None
            raise await self._conflict(ref, place) from None
        return str(written["metadata"]["resourceVersion"])

    async def _conflict(self, ref: ObjectRef, place: tuple[str, str, str, str, str]) -> Exception:
        try:
            with api_errors():
                stored: Any = await self._objects.get_namespaced_custom_object_status(
                    *place, _request_timeout=REQUEST_SECONDS
                )
        except ApiException as error:
            return ObjectGone(str(ref.key)) if error.status == _NOT_FOUND else StatusRefused(f"{error.status}")
        if stored["metadata"]["uid"] != ref.uid:
            return ObjectGone(str(ref.key))
        return StatusConflict(resource_version=str(stored["metadata"]["resourceVersion"]), stored=stored)


def status_document(status: Status) -> dict[str, Any]:
    """The whole status as a merge patch: what is absent now is null, so that it is removed there too."""
    document: dict[str, Any] = status.to_document()
    absent = {field.alias or name for name, field in type(status).model_fields.items()} - document.keys()
    return document | dict.fromkeys(absent)
