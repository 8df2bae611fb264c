"""The manifests in a real API server: they apply, they confine the pod, and they grant what is listed and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.cluster.objects import establish_crds

from matview_operator.domain.reading import read_database, read_policy

if TYPE_CHECKING:
    from sandbox.controlplane import Cluster

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
SYSTEM = "matview-system"
ACCOUNT = "matview-operator"

VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
RESOURCES = (
    "matviewdatabases.matviews.skeldir.io",
    "matviewdatabases.matviews.skeldir.io/status",
    "matviewdatabases.matviews.skeldir.io/finalizers",
    "matviewrefreshpolicies.matviews.skeldir.io",
    "matviewrefreshpolicies.matviews.skeldir.io/status",
    "matviewrefreshpolicies.matviews.skeldir.io/finalizers",
    "secrets",
    "events.events.k8s.io",
    "events",
    "configmaps",
    "namespaces",
    "pods",
    "pods/exec",
    "pods/log",
    "serviceaccounts",
    "serviceaccounts/token",
    "deployments.apps",
    "leases.coordination.k8s.io",
    "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
    "clusterroles.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
    "customresourcedefinitions.apiextensions.k8s.io",
)


def build(cluster: Cluster, folder: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(cluster.run_kubectl("kustomize", str(folder)).stdout))


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


def create(cluster: Cluster, documents: list[dict[str, Any]], *options: str) -> list[dict[str, Any]]:
    """Create all of them at once and return what the API server made of each."""
    everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    done = cluster.run_kubectl("create", "-f", "-", "-o", "yaml", *options, input=everything)
    return list(yaml.safe_load_all(done.stdout))


def matrix(cluster: Cluster, *, account_namespace: str, namespace: str) -> str:
    """Ask the API server for each verb on each resource whether the operator may; one line a resource."""
    reviews = [
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{account_namespace}:{ACCOUNT}",
                "groups": [
                    "system:serviceaccounts",
                    f"system:serviceaccounts:{account_namespace}",
                    "system:authenticated",
                ],
                "resourceAttributes": {"namespace": namespace, "verb": verb, **attributes(resource)},
            },
        }
        for resource in RESOURCES
        for verb in VERBS
    ]
    answers = iter(create(cluster, reviews))
    lines = []
    for resource in RESOURCES:
        allowed = [verb for verb in VERBS if next(answers)["status"]["allowed"]]
        lines.append(f"{resource}: {' '.join(allowed) or '-'}\n")
    return "".join(lines)


def attributes(resource: str) -> dict[str, str]:
    name, _, subresource = resource.partition("/")
    plural, _, group = name.partition(".")
    return {"resource": plural, "group": group, "subresource": subresource}


def granted(cluster: Cluster, *, account_namespace: str, namespace: str) -> set[str]:
    """Return all that the operator may do to resources there, without what everybody may ask about himself."""
    done = cluster.run_kubectl(
        "auth",
        "can-i",
        "--list",
        f"--as=system:serviceaccount:{account_namespace}:{ACCOUNT}",
        "-n",
        namespace,
        "--no-headers",
    )
    lines = (" ".join(line.split()) for line in done.stdout.splitlines())
    return {line for line in lines if not line.startswith(("[", "selfsubject"))}


def golden(name: str) -> str:
    return (GOLDEN / name).read_text(encoding="utf-8")


@pytest.mark.usefixtures("installed")
def test_the_cluster_wide_installation_applies_again_without_a_change(control_plane: Cluster) -> None:
    folder = str(ROOT / "manifests/cluster")
    control_plane.run_kubectl("apply", "-k", folder)  # other tests apply the CRDs by themselves, without its labels
    dry = control_plane.run_kubectl("apply", "--dry-run=server", "-k", folder)
    assert dry.stderr == ""
    assert [line for line in dry.stdout.splitlines() if "unchanged" not in line and "configured" not in line] == []
    diff = control_plane.run_kubectl("diff", "-k", folder, check=False)
    assert (diff.returncode, diff.stdout) == (0, "")


@pytest.mark.usefixtures("installed")
def test_the_namespaced_installation_applies_in_the_users_namespace(
    control_plane: Cluster, namespace: str, overlay: Path
) -> None:
    before = control_plane.run_kubectl("get", "crd,clusterrole,clusterrolebinding", "-o", "name").stdout

    control_plane.run_kubectl("apply", "--dry-run=server", "-k", str(overlay))
    applied = control_plane.run_kubectl("apply", "-k", str(overlay)).stdout

    assert len(applied.splitlines()) == 7
    documents = build(control_plane, overlay)
    assert {document["metadata"]["namespace"] for document in documents} == {namespace}
    bindings = [document for document in documents if document["kind"] == "RoleBinding"]
    assert [document["metadata"]["name"] for document in bindings] == [ACCOUNT, f"{ACCOUNT}-lease"]
    for document in bindings:
        assert document["subjects"] == [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}]
    assert control_plane.run_kubectl("get", "crd,clusterrole,clusterrolebinding", "-o", "name").stdout == before
    control_plane.run_kubectl("delete", "-k", str(overlay))
    control_plane.run_kubectl("get", "namespace", namespace)


@pytest.mark.usefixtures("installed")
def test_rights_of_the_cluster_wide_installation(control_plane: Cluster, namespace: str) -> None:
    assert matrix(control_plane, account_namespace=SYSTEM, namespace=namespace) == golden("rights-granted.txt")
    assert granted(control_plane, account_namespace=SYSTEM, namespace=namespace) == set(
        golden("rights-listed.txt").splitlines()
    )
    # Leases in its own namespace only.
    assert granted(control_plane, account_namespace=SYSTEM, namespace=SYSTEM) == set(
        (golden("rights-listed.txt") + golden("rights-listed-lease.txt")).splitlines()
    )


@pytest.mark.usefixtures("installed")
def test_rights_of_the_namespaced_installation(control_plane: Cluster, namespace: str, overlay: Path) -> None:
    control_plane.run_kubectl("apply", "-k", str(overlay))

    # What may be created cannot be told by its name; read and written is one Lease alone.
    with_leases = golden("rights-granted.txt").replace(
        "leases.coordination.k8s.io: -", "leases.coordination.k8s.io: create"
    )
    assert matrix(control_plane, account_namespace=namespace, namespace=namespace) == with_leases
    assert granted(control_plane, account_namespace=namespace, namespace=namespace) == set(
        (golden("rights-listed.txt") + golden("rights-listed-lease.txt")).splitlines()
    )
    nothing = "".join(f"{resource}: -\n" for resource in RESOURCES)
    assert matrix(control_plane, account_namespace=namespace, namespace="default") == nothing
    assert granted(control_plane, account_namespace=namespace, namespace="default") == set()


@pytest.mark.usefixtures("installed")
def test_the_accounts_own_token_reads_one_secret_and_lists_none(
    control_plane: Cluster, namespace: str, tmp_path: Path
) -> None:
    secret = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "analytics-app"}, "stringData": {"a": "b"}}
    control_plane.run_kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(secret))
    own = control_plane.service_account_kubeconfig(namespace=SYSTEM, name=ACCOUNT, path=tmp_path / "kubeconfig")

    read = control_plane.run_kubectl("get", "secret", "analytics-app", "-n", namespace, "-o", "name", kubeconfig=own)
    listed = control_plane.run_kubectl("get", "secrets", "-n", namespace, kubeconfig=own, check=False)

    assert read.stdout == "secret/analytics-app\n"
    assert listed.returncode == 1
    assert 'cannot list resource "secrets"' in listed.stderr


@pytest.mark.parametrize("installation", ["cluster", "namespaced"])
def test_the_pod_passes_the_restricted_pod_security_standard(
    control_plane: Cluster, namespace: str, installation: str
) -> None:
    control_plane.run_kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    deployment = of_kind(build(control_plane, ROOT / "manifests" / installation), "Deployment")
    template = deployment["spec"]["template"]

    def refused(spec: dict[str, Any]) -> str:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator"}, "spec": spec}
        arguments = ("create", "-n", namespace, "--dry-run=server", "-f", "-")
        return control_plane.run_kubectl(*arguments, input=json.dumps(pod), check=False).stderr

    assert refused(template["spec"]) == ""
    (container,) = template["spec"]["containers"]
    loose = container | {"securityContext": {}}
    assert "violates PodSecurity" in refused(template["spec"] | {"containers": [loose]}), "nothing was enforced"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert template["spec"]["securityContext"]["runAsUser"] == 65532
    assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_network_policy_of_the_documents_is_taken_and_is_about_the_operators_pods(control_plane: Cluster) -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    policy = next(block for block in text.split("```yaml\n")[1:] if "kind: NetworkPolicy" in block).partition("```")[0]
    taken = control_plane.run_kubectl(
        "create", "--dry-run=server", "-n", "default", "-o", "yaml", "-f", "-", input=policy.replace(SYSTEM, "default")
    )
    wanted = yaml.safe_load(taken.stdout)["spec"]["podSelector"]["matchLabels"].items()
    pod = of_kind(build(control_plane, ROOT / "manifests" / "cluster"), "Deployment")["spec"]["template"]
    assert wanted <= pod["metadata"]["labels"].items()


def test_the_namespaced_operator_is_told_its_namespace(control_plane: Cluster) -> None:
    wide, narrow = (
        of_kind(build(control_plane, ROOT / "manifests" / installation), "Deployment")["spec"]["template"]["spec"]
        for installation in ("cluster", "namespaced")
    )
    assert wide["containers"][0]["args"] == ["run", "--leader-elect"]
    (container,) = narrow["containers"]
    assert container["args"] == ["run", "--leader-elect", "--namespace", "$(POD_NAMESPACE)"]
    assert container["env"] == [
        {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}
    ]
    # All but that is the same.
    del container["args"], container["env"], wide["containers"][0]["args"]
    assert narrow == wide


@pytest.mark.usefixtures("installed")
def test_the_sharded_installation_is_the_cluster_wide_one_with_a_number_for_each_pod(control_plane: Cluster) -> None:
    sharded, plain = build(control_plane, ROOT / "manifests/sharded"), build(control_plane, ROOT / "manifests/cluster")
    stateful, deployment = of_kind(sharded, "StatefulSet"), of_kind(plain, "Deployment")
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    assert container.pop("env") == [{"name": "MATVIEW_SHARD_COUNT", "value": str(stateful["spec"]["replicas"])}]
    assert stateful["spec"]["template"] == deployment["spec"]["template"]
    (role,) = (each for each in sharded if each["kind"] == "Role")
    names = role["rules"][1]["resourceNames"]
    assert names == [f"{stateful['metadata']['name']}-{number}" for number in range(16)]
    control_plane.run_kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(stateful))
    of_both = ("StatefulSet", "Deployment", "Role")
    assert [each for each in sharded if each["kind"] not in of_both] == [
        each for each in plain if each["kind"] not in of_both
    ]


@pytest.mark.parametrize("installation", ["cluster", "namespaced"])
def test_the_service_reaches_the_pods_metrics(control_plane: Cluster, installation: str) -> None:
    documents = build(control_plane, ROOT / "manifests" / installation)
    service, template = of_kind(documents, "Service"), of_kind(documents, "Deployment")["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    (container,) = template["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert probes == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


@pytest.mark.parametrize("tenant", ["tenant-a", "tenant-b"])
def test_the_samples_are_taken_by_the_server_and_by_the_operator(
    control_plane: Cluster, namespace: str, tenant: str
) -> None:
    documents = [
        document
        for document in build(control_plane, ROOT / "manifests/samples")
        if document["metadata"].get("namespace") == tenant
    ]
    for document in documents:
        document["metadata"]["namespace"] = namespace

    establish_crds(control_plane)
    stored = create(control_plane, documents, "--dry-run=server")

    databases = [read_database(body) for body in stored if body["kind"] == "MatviewDatabase"]
    policies = [read_policy(body) for body in stored if body["kind"] == "MatviewRefreshPolicy"]
    assert [database.metadata.name for database in databases] == ["analytics"]
    assert {policy.spec.database_ref.name for policy in policies} == {"analytics"}
    digit = "1" if tenant == "tenant-a" else "2"
    assert {policy.spec.tenant_id for policy in policies} == {
        f"{digit * 8}-{digit * 4}-{digit * 4}-{digit * 4}-{digit * 12}"
    }
    assert len(policies) >= 3
    assert {view.name for policy in policies for view in policy.spec.views} >= {
        "mv_channel_performance",
        "mv_daily_revenue_summary",
        "mv_realtime_revenue",
        "mv_reconciliation_status",
    }
    # The demo ends after some 30 s, and shows both ways to write a schedule.
    assert any(policy.spec.schedule.cron for policy in policies)
    assert all(policy.spec.schedule.cron or (policy.spec.schedule.every_seconds or 99) <= 20 for policy in policies)


def test_the_samples_hold_no_secret_and_say_how_to_write_one(control_plane: Cluster) -> None:
    kinds = {document["kind"] for document in build(control_plane, ROOT / "manifests/samples")}
    assert kinds == {"Namespace", "MatviewDatabase", "MatviewRefreshPolicy"}
    example = yaml.safe_load((ROOT / "manifests/samples/secret.example.yaml").read_text())
    assert example["metadata"]["name"] == "analytics-app"
    assert set(example["stringData"]) == {"host", "port", "dbname", "username", "password"}
    assert example["stringData"]["password"] == "replace-me"
