"""How the API server is spoken to: by kubernetes' client and by kopf alike."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest
from kubernetes.aio.client.rest import RESTClientObject

from matview_operator.adapters.kube.client import kopf_login, load_configuration

if TYPE_CHECKING:
    from pathlib import Path

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: it
contexts: [{name: it, context: {cluster: it, user: it}}]
clusters: [{name: it, cluster: {server: "https://127.0.0.1:6443"}}]
users: [{name: it, user: {token: secret}}]
"""


async def test_a_clusters_ca_need_not_have_what_newer_pythons_want_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = ssl.create_default_context

    def of_python_3_13(*arguments: Any, **named: Any) -> ssl.SSLContext:
        context = default(*arguments, **named)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", of_python_3_13)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
    configuration = await load_configuration()
    session = (await kopf_login(configuration)).aiohttp_session
    assert session is not None
    connector: Any = session.connector
    for context in (connector._ssl, RESTClientObject(configuration).ssl_context):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    await session.close()
