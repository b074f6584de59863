"""The chart, installed by helm into a real API server (nothing runs there): what is kept, refused and allowed."""

import base64
import hashlib
import json
import subprocess

import pytest

from chart.rendering import CHART, Body, environment, helm, objects, pods, sets, values
from kube_api_server import KubeApiServer
from lakehouse_operator import peers

OPERATOR = "system:serviceaccount:{}:lake-operator"
GATEWAY = "system:serviceaccount:{}:lake-gateway"
GROUP = "lakehouse.agentview.dev"


class Cluster:
    """One namespace of the API server, and the release `lake` in it."""

    def __init__(self, server: KubeApiServer, namespace: str) -> None:
        self.server, self.namespace = server, namespace
        self.server.kubectl("create", "namespace", namespace)

    def helm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        kubeconfig = str(self.server.kubeconfig())
        return helm(*arguments, "--namespace", self.namespace, "--kubeconfig", kubeconfig)

    def upgrade(self, *arguments: str, crds: bool = False) -> str:
        """Install or upgrade; the notes it prints."""
        options = ["--take-ownership"] if crds else ["--set", "crds.enabled=false"]
        done = self.helm("upgrade", "--install", "lake", str(CHART), *options, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def roll_back(self, revision: int) -> None:
        done = self.helm("rollback", "lake", str(revision))
        assert done.returncode == 0, done.stderr

    def uninstall(self) -> None:
        done = self.helm("uninstall", "lake")
        assert done.returncode == 0, done.stderr

    def get(self, kind: str, name: str) -> Body:
        found = self.server.kubectl(
            "-n", self.namespace, "get", kind, name, "--ignore-not-found", "-o", "json"
        )
        body: Body = json.loads(found) if found else {}
        return body

    def secret(self, name: str) -> dict[str, str]:
        data = self.get("secret", name).get("data", {})
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def allowed(self, account: str, *asked: str, namespace: str = "") -> list[str]:
        """Those of `asked` that a ServiceAccount may do: `verb resource.group/subresource:name`."""
        reviews = [_review(one, account.format(self.namespace), namespace or self.namespace) for one in asked]
        document = "\n---\n".join(map(json.dumps, reviews))
        command = ("create", "-o", 'jsonpath={.status.allowed}{"\\n"}', "-f", "-")
        answers = self.server.kubectl(*command, document=document).split()
        return [one for one, answer in zip(asked, answers, strict=True) if answer == "true"]


def _review(asked: str, user: str, namespace: str) -> Body:
    verb, _, what = asked.partition(" ")
    what, _, name = what.partition(":")
    what, _, subresource = what.partition("/")
    resource, _, group = what.partition(".")
    attributes = {"verb": verb, "group": group, "resource": resource, "namespace": namespace}
    attributes |= {"subresource": subresource, "name": name}
    groups = ["system:serviceaccounts", "system:authenticated"]
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": groups, "resourceAttributes": attributes},
    }


@pytest.fixture
def cluster(kube_api: KubeApiServer, request: pytest.FixtureRequest) -> Cluster:
    digest = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]
    return Cluster(kube_api, f"chart-{digest}")


def test_keys_are_made_once_and_kept_over_upgrades_and_uninstalling(cluster: Cluster) -> None:
    cluster.upgrade()
    keys, shared = cluster.secret("lake-keys"), cluster.secret("lakehouse-peer-key")
    assert len({keys["admin"], keys["write"], keys["read"], shared["peer-key"]}) == 4
    assert all(len(key) == 43 for key in (keys["admin"], keys["write"], keys["read"], shared["peer-key"]))
    assert json.loads(keys["keys.json"]) == [
        _hashed(right, keys[right]) for right in ("admin", "read", "write")
    ]

    generation = cluster.get("deployment", "lake-pool")["metadata"]["generation"]
    cluster.upgrade()
    assert cluster.secret("lake-keys") == keys
    assert cluster.secret("lakehouse-peer-key") == shared
    assert cluster.get("deployment", "lake-pool")["metadata"]["generation"] == generation

    cluster.uninstall()
    assert cluster.get("deployment", "lake-pool") == {}
    cluster.upgrade()
    assert cluster.secret("lake-keys") == keys
    assert cluster.secret("lakehouse-peer-key") == shared


def _hashed(right: str, key: str) -> dict[str, str]:
    return {"name": right, "right": right, "sha256": hashlib.sha256(key.encode()).hexdigest()}


def test_a_key_more_starts_pods_anew_and_leaves_the_others(cluster: Cluster) -> None:
    cluster.upgrade()
    before, pool = cluster.secret("lake-keys"), cluster.get("deployment", "lake-pool")
    extra = {"name": "ci", "right": "write", "sha256": "3" * 64}
    cluster.upgrade("--set-json", f"keys.extra=[{json.dumps(extra)}]")
    after = cluster.secret("lake-keys")
    assert {key: after[key] for key in ("admin", "write", "read")} == {
        key: before[key] for key in ("admin", "write", "read")
    }
    assert json.loads(after["keys.json"]) == [*json.loads(before["keys.json"]), extra]
    assert cluster.get("deployment", "lake-pool")["metadata"]["generation"] > pool["metadata"]["generation"]


def test_a_key_that_the_operator_made_is_used_and_not_taken(cluster: Cluster) -> None:
    made = ("create", "secret", "generic", "lakehouse-peer-key", "--from-literal=peer-key=0123456789abcdef")
    cluster.server.kubectl("-n", cluster.namespace, *made)
    cluster.upgrade()
    cluster.upgrade()
    assert cluster.secret("lakehouse-peer-key") == {"peer-key": "0123456789abcdef"}
    assert "annotations" not in cluster.get("secret", "lakehouse-peer-key")["metadata"]


def test_after_the_operator_made_the_peer_key_again_helm_upgrades_and_rolls_back(cluster: Cluster) -> None:
    cluster.upgrade()
    for act in (lambda: cluster.roll_back(1), cluster.upgrade, lambda: cluster.roll_back(2)):
        cluster.server.kubectl("-n", cluster.namespace, "delete", "secret", "lakehouse-peer-key")
        made = peers.secret(cluster.namespace, "made-by-the-operator", _release_told(cluster))
        cluster.server.kubectl("create", "-f", "-", document=json.dumps(made))
        act()
        assert len(cluster.secret("lakehouse-peer-key")["peer-key"]) > 0
    cluster.upgrade()
    cluster.uninstall()
    assert "peer-key" in cluster.secret("lakehouse-peer-key")


def _release_told(cluster: Cluster) -> str:
    """What the chart tells the operator of the release."""
    (container,) = cluster.get("deployment", "lake-operator")["spec"]["template"]["spec"]["containers"]
    return str(environment(container)["LAKEHOUSE_OPERATOR_HELM_RELEASE"])


def test_the_stores_credentials_are_kept_with_what_they_guard(cluster: Cluster) -> None:
    arguments = values("namespaces")
    cluster.server.kubectl("create", "namespace", "search")
    cluster.upgrade(*arguments, "--set", f"watchNamespaces={{{cluster.namespace},search}}", *UNKNOWN)
    before = cluster.secret("lake-minio")
    assert before["AWS_ACCESS_KEY_ID"].startswith("lakehouse")
    cluster.uninstall()
    assert cluster.secret("lake-minio") == before
    assert cluster.get("persistentvolumeclaim", "lake-minio")["status"]["phase"] == "Pending"


UNKNOWN = ("--set", "metrics.serviceMonitor.enabled=false,metrics.prometheusRule.enabled=false")
"""The API server has no definitions of the Prometheus operator's kinds."""


def test_uninstalling_leaves_the_crds_and_what_is_declared(cluster: Cluster) -> None:
    cluster.upgrade(crds=True)
    document = f"{{apiVersion: {GROUP}/v1alpha1, kind: VectorIndex, metadata: {{name: kept}}, spec: {{dimension: 3}}}}"
    cluster.server.kubectl("-n", cluster.namespace, "apply", "-f", "-", document=document)
    cluster.uninstall()
    assert cluster.get("vectorindex", "kept")["spec"]["dimension"] == 3


@pytest.mark.parametrize("name", sets())
def test_a_real_api_server_takes_every_value_set(cluster: Cluster, name: str) -> None:
    shop = ("--set", f"watchNamespaces={{{cluster.namespace}}}") if name == "namespaces" else ()
    notes = cluster.upgrade(*values(name), *shop, *UNKNOWN)
    assert ("keys.required is false" in notes) is (name == "cluster")
    assert ("gone when its pod is" in notes) is (name == "evaluation")
    cluster.uninstall()


@pytest.mark.parametrize("name", sets())
def test_a_namespace_that_enforces_restricted_takes_every_pod(cluster: Cluster, name: str) -> None:
    label = "pod-security.kubernetes.io/enforce=restricted"
    cluster.server.kubectl("label", "namespace", cluster.namespace, label)
    made = []
    for number, (_, spec) in enumerate(pods(objects(*values(name)))):
        without_class = {key: value for key, value in spec.items() if key != "priorityClassName"}
        made.append(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}"}, "spec": without_class}
        )
    command = ("-n", cluster.namespace, "create", "--dry-run=server", "-o", "name", "-f", "-")
    taken = cluster.server.kubectl(*command, document="\n---\n".join(map(json.dumps, made))).split()
    assert taken == [f"pod/pod-{number}" for number in range(len(made))]


# --- what the operator and the gateway may do

VERBS = ("get", "list", "watch", "create", "patch", "delete")
CHILDREN = ("deployments.apps", "jobs.batch", "poddisruptionbudgets.policy", "services", "configmaps")
KINDS = (f"vectorindexes.{GROUP}", f"datasets.{GROUP}", f"indexsnapshots.{GROUP}")
WORK = (
    *(f"{verb} {kind}" for kind in CHILDREN for verb in VERBS if (verb, kind) != ("patch", "jobs.batch")),
    *(f"{verb} {kind}" for kind in KINDS for verb in ("get", "list", "watch", "patch")),
    *(f"patch {kind}/status" for kind in KINDS),
    *(f"update {kind}/finalizers" for kind in KINDS),
    f"create indexsnapshots.{GROUP}",
    f"delete indexsnapshots.{GROUP}",
    "list pods",
    "watch pods",
    "get secrets:lake-s3",
    "create secrets",
    "create events",
    "patch events",
    "list events",
)
OWN = (
    "create leases.coordination.k8s.io",
    "get leases.coordination.k8s.io:lake-operator",
    "update leases.coordination.k8s.io:lake-operator",
    "get configmaps:lake-routes",
    "patch configmaps:lake-routes",
    "create configmaps",
    "get configmaps:lake-cluster",
    "get secrets:lakehouse-peer-key",
    "create secrets",
)
AT_THE_END = tuple(f"delete {kind}" for kind in KINDS)
"""Where the operator lives, if it keeps resources there: with its own namespace they go before it does."""
NEVER = (
    *(f"{verb} secrets" for verb in ("list", "watch", "update", "patch", "delete")),
    f"create vectorindexes.{GROUP}",
    "get pods",
    "create pods",
    "delete pods",
    "create pods/exec",
    "get pods/log",
    "create serviceaccounts/token",
    "get serviceaccounts",
    "update leases.coordination.k8s.io:another",
    "create roles.rbac.authorization.k8s.io",
    "get nodes",
    "list namespaces",
)


def test_the_operator_may_do_its_work_in_its_namespace_alone(cluster: Cluster) -> None:
    cluster.upgrade()
    assert cluster.allowed(OPERATOR, *WORK, *OWN, *AT_THE_END) == [*WORK, *OWN, *AT_THE_END]
    itself = f"get namespaces:{cluster.namespace}"
    assert cluster.allowed(OPERATOR, itself, "get namespaces:kube-system") == [itself]
    assert cluster.allowed(OPERATOR, *NEVER) == []
    assert cluster.allowed(OPERATOR, *WORK, *OWN, *NEVER, namespace="default") == []


def test_the_operator_of_several_namespaces_may_work_in_each_and_lead_in_its_own(cluster: Cluster) -> None:
    other = f"{cluster.namespace}-other"
    cluster.server.kubectl("create", "namespace", other)
    notes = cluster.upgrade("--set", f"watchNamespaces={{{other}}}")
    assert f"kubectl -n {other} apply" in notes
    assert cluster.allowed(OPERATOR, *WORK, namespace=other) == list(WORK)
    assert cluster.allowed(OPERATOR, *NEVER, *AT_THE_END[:2], *OWN[:3], namespace=other) == []
    assert cluster.allowed(OPERATOR, *OWN) == list(OWN)
    assert cluster.allowed(OPERATOR, *AT_THE_END, "create deployments.apps", "get secrets:lake-s3") == []
    # With a namespace goes its Role, and what is left there must be let go all the same.
    freed = [f"{verb} {kind}" for kind in KINDS for verb in ("get", "list", "watch", "patch")]
    freed += [f"patch {kind}/status" for kind in KINDS]
    cluster.server.kubectl("-n", other, "delete", "rolebinding", "lake-operator")
    assert cluster.allowed(OPERATOR, *WORK, namespace=other) == [one for one in WORK if one in freed]


def test_the_operator_of_every_namespace_may_work_in_all(cluster: Cluster) -> None:
    cluster.upgrade("--set", "watchNamespaces={*}")
    assert cluster.allowed(OPERATOR, *WORK, namespace="default") == list(WORK)
    assert cluster.allowed(OPERATOR, *NEVER, *AT_THE_END[:2], *OWN[:3], namespace="default") == []
    assert cluster.allowed(OPERATOR, *AT_THE_END) == list(AT_THE_END)
    assert cluster.allowed(OPERATOR, "get namespaces:kube-system") != []
    cluster.uninstall()
    assert cluster.allowed(OPERATOR, *WORK, namespace="default") == []


def test_the_gateway_may_read_the_routing_table_and_nothing_else(cluster: Cluster) -> None:
    cluster.upgrade()
    table = [f"{verb} configmaps:lake-routes" for verb in ("get", "list", "watch")]
    more = [*WORK, *NEVER, "update configmaps:lake-routes", "get configmaps:another"]
    assert cluster.allowed(GATEWAY, *table) == table
    assert cluster.allowed(GATEWAY, *more) == []


def test_whoever_may_edit_a_namespace_may_declare_in_it(cluster: Cluster) -> None:
    cluster.upgrade()
    prefix = f"{cluster.namespace}-lake"
    view, edit = (cluster.get("clusterrole", f"{prefix}-{role}") for role in ("view", "edit"))
    aggregated = {
        f"rbac.authorization.k8s.io/aggregate-to-{role}": "true" for role in ("view", "edit", "admin")
    }
    assert view["metadata"]["labels"].items() >= aggregated.items()
    assert "rbac.authorization.k8s.io/aggregate-to-view" not in edit["metadata"]["labels"]
    assert [rule["verbs"] for rule in view["rules"]] == [["get", "list", "watch"]]
    assert {"create", "delete"} <= set(edit["rules"][0]["verbs"])
