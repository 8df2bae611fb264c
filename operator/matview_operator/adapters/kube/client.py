"""The API client: one configuration and two bounded connection pools, ours and kopf's."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import aiohttp
import kopf
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from matview_operator.domain.errors import MatviewError
from matview_operator.engine.ports import ApiUnavailable

CONNECTIONS = 8
REQUEST_SECONDS = 15
_KOPF_CONNECTIONS = 16
_LOGIN_LASTS = timedelta(minutes=10)
"""A ServiceAccount's token is renewed within an hour; kopf's session carries it as it was at login."""


class NoCluster(MatviewError):
    """Nothing says which Kubernetes cluster to work in."""


async def load_configuration() -> client.Configuration:
    """Read KUBECONFIG if it is set, else the pod's own ServiceAccount, else the user's kubeconfig; raises NoCluster."""
    configuration = client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        raise NoCluster(
            "There is no Kubernetes cluster to work in: this is no pod with a ServiceAccount's token, and neither "
            "KUBECONFIG nor .kube/config of the home folder names a cluster."
        ) from None
    configuration.connection_pool_maxsize = CONNECTIONS
    # From Python 3.13 on it would refuse CAs that lack an extension of RFC 5280, as some clusters'; kubectl does not.
    configuration.disable_strict_ssl_verification = True
    return configuration


async def api_addresses(configuration: client.Configuration) -> list[str]:
    """Return the addresses of the API server as they are now; none if its name is unknown, and so out of reach."""
    host = urlsplit(configuration.host).hostname or ""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(entry[4][0]) for entry in found})


async def kopf_login(configuration: client.Configuration) -> kopf.AiohttpSession:
    """Give kopf a session of its own whose connections are bounded; by default they are not."""
    header = await configuration.get_api_key_with_prefix("BearerToken")
    connector = aiohttp.TCPConnector(limit=_KOPF_CONNECTIONS, ssl=_tls(configuration))
    session = aiohttp.ClientSession(
        connector=connector, headers={"Authorization": header} if header else {}, trust_env=False
    )
    return kopf.AiohttpSession(
        server=configuration.host, aiohttp_session=session, expiration=datetime.now(UTC) + _LOGIN_LASTS
    )


@contextmanager
def api_errors() -> Iterator[None]:
    """Turn a network failure, a 429 or a 5xx into ApiUnavailable; let other answers of the server through."""
    try:
        yield
    except ApiException as error:
        if error.status == 429 or error.status is None or error.status >= 500:  # noqa: PLR2004 - HTTP's own numbers
            raise ApiUnavailable(f"the API server answers {error.status}", retry_after=_retry_after(error)) from None
        raise
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ApiUnavailable(f"the API server is out of reach ({type(error).__name__})") from None


def _retry_after(error: ApiException) -> float | None:
    value = (error.headers or {}).get("Retry-After", "")
    return float(value) if value.isdecimal() else None


def _tls(configuration: client.Configuration) -> ssl.SSLContext | bool:
    if not configuration.verify_ssl:
        return False
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.disable_strict_ssl_verification:
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context
