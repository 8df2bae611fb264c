"""Reads one Secret by name when it is asked to. Never lists, never keeps."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from matview_operator.adapters.kube.client import REQUEST_SECONDS, api_errors
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.errors import Problem
from matview_operator.engine.ports import ApiUnavailable, SecretUnread

_PATH = "/api/v1/namespaces/{namespace}/secrets/{name}"
"""Asked for without CoreV1Api, whose import takes 24 MB."""
_NOT_FOUND = 404
_FORBIDDEN = 403


class SecretReader:
    """Secrets of the namespaces that the operator's role may read from."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    async def read(self, *, namespace: str, name: str, field: str) -> Mapping[str, bytes]:
        """Return the data, decoded from base64; raises Problem that names the Secret, never a value.

        `field` of the MatviewDatabase is where the name comes from.
        """
        try:
            with api_errors():
                secret = await self._get({"namespace": namespace, "name": name})
        except ApiUnavailable as error:
            raise SecretUnread(
                RefreshReason.CONNECTION_FAILED, f"Secret {name} could not be read: {error}. It is tried again."
            ) from None
        except ApiException as error:
            raise _problem(error.status, namespace, name, field) from None
        return {key: _decoded(name, key, value) for key, value in (secret.get("data") or {}).items()}

    async def _get(self, place: Mapping[str, str]) -> Any:
        request = await self._api.param_serialize(
            "GET",
            _PATH,
            path_params=place,
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        response = await self._api.call_api(*request, _request_timeout=REQUEST_SECONDS)
        await response.read()  # type: ignore[no-untyped-call]
        return self._api.response_deserialize(response, {"200": "object"}).data


def _problem(status: int | None, namespace: str, name: str, field: str) -> Problem:
    if status == _NOT_FOUND:
        return Problem(
            RefreshReason.SECRET_NOT_FOUND,
            f"There is no Secret {name} in namespace {namespace}. Create it, or correct {field}.",
        )
    if status == _FORBIDDEN:
        return Problem(
            RefreshReason.SECRET_FORBIDDEN,
            f"The operator's role may not get Secret {name} in namespace {namespace}. Grant it `get` on secrets there.",
        )
    return Problem(RefreshReason.CONNECTION_FAILED, f"Secret {name} could not be read: the API server says {status}.")


def _decoded(name: str, key: str, value: str | bytes) -> bytes:
    try:
        return base64.b64decode(value or "", validate=True)
    except binascii.Error:
        raise Problem(RefreshReason.SECRET_INVALID, f"Key {key} of Secret {name} is not base64.") from None
