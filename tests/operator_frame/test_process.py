"""The operator as a process: its end, its successor, its health, its rights."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from kube_api_server import REPOSITORY, KubeApiServer
from lakehouse.control.kinds import VECTOR_INDEX
from lakehouse_operator import main
from lakehouse_operator.kube import KINDS, LEASE, SERVICE
from lakehouse_operator.watching import NamespacesChanged
from operator_frame.plain_domain import PlainDomain
from operator_frame.running import Place, condition, place, running, until

pytestmark = pytest.mark.kubernetes
PROGRAM = Path(__file__).with_name("plain_domain.py")
LEASE_NAME = "lakehouse-operator"


class Process:
    """One replica."""

    def __init__(self, server: KubeApiServer, where: Place, name: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        paths = [str(REPOSITORY / "operator"), str(REPOSITORY / "dataplane")]
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            stderr=subprocess.PIPE,
            env=os.environ
            | {
                "KUBECONFIG": str(server.kubeconfig()),
                "PYTHONPATH": os.pathsep.join(paths),
                "LAKEHOUSE_OPERATOR_NAMESPACE": where.namespace,
                "LAKEHOUSE_OPERATOR_CLUSTER": "test",
                "LAKEHOUSE_OPERATOR_IDENTITY": name,
                "LAKEHOUSE_OPERATOR_HEALTH_HOST": "127.0.0.1",
                "LAKEHOUSE_OPERATOR_HEALTH_PORT": str(self.port),
            },
        )

    def ask(self, path: str) -> tuple[int, str]:
        """Status and text; 0 when nobody answers."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=5)
        except httpx.HTTPError:
            return 0, ""
        return answer.status_code, answer.text

    def metric(self, name: str) -> float | None:
        lines = self.ask("/metrics")[1].splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), None)

    def leads(self) -> bool:
        return self.metric("lakehouse_operator_leader") == 1 and self.ask("/readyz")[0] == 200

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Exit status and log."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=120)
        return self.process.returncode, log.decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


async def holder(where: Place) -> str:
    body = await where.kube.get(LEASE, where.namespace, LEASE_NAME)
    return str((body or {})["spec"]["holderIdentity"])


async def test_the_second_stands_by_and_takes_over_at_once_when_the_first_ends(
    kube_api: KubeApiServer, where: Place
) -> None:
    first, second = Process(kube_api, where, "first"), None
    try:
        await until(first.leads, "the first leads")
        second = Process(kube_api, where, "second")
        await until(lambda: second.ask("/readyz")[0] == 200, "the second is ready")
        assert second.metric("lakehouse_operator_leader") == 0
        assert second.ask("/healthz") == (200, "ok\n")
        await where.index()
        await where.ready()
        status, log = first.end()
        assert status == 0, log
        assert not (await holder(where)).startswith("first_")  # let go: it does not have to run out
        lines = [json.loads(line) for line in log.splitlines()]
        assert lines[-1]["message"] == "ended"
        assert {line["level"] for line in lines} == {"INFO"}
        await until(second.leads, "the second leads")
        assert (await holder(where)).startswith("second_")
        await where.index("later")
        await where.ready("later")
        assert second.end()[0] == 0
        assert await holder(where) == ""
    finally:
        first.close()
        if second is not None:
            second.close()


async def test_a_leader_that_lost_its_lease_ends_with_an_error(kube_api: KubeApiServer, where: Place) -> None:
    process = Process(kube_api, where, "first")
    try:
        await until(process.leads)

        async def stolen() -> bool:
            body = await where.kube.get(LEASE, where.namespace, LEASE_NAME)
            assert body is not None
            body["spec"]["holderIdentity"] = "thief"
            try:
                await where.kube.replace(body)
            except Exception:  # noqa: BLE001  it was renewed meanwhile
                return False
            return True

        await until(stolen)
        _, log = process.process.communicate(timeout=120)
        assert process.process.returncode == 1
        assert "another replica leads now" in log.decode()
        assert await holder(where) == "thief"
    finally:
        process.close()


async def test_settings_that_are_wrong_end_it_at_once() -> None:
    paths = os.pathsep.join([str(REPOSITORY / "operator"), str(REPOSITORY / "dataplane")])
    environment = os.environ | {"LAKEHOUSE_OPERATOR_WORKERS": "none", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "LAKEHOUSE_OPERATOR_WORKERS" in done.stderr
    assert "Traceback" not in done.stderr


async def test_without_a_cluster_it_says_so_and_ends(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(REPOSITORY / "operator"), str(REPOSITORY / "dataplane")])
    clean = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    environment = clean | {"PYTHONPATH": paths, "HOME": str(tmp_path)}
    (tmp_path / "empty").write_text("{}")
    for kubeconfig, why in (
        (None, "there are no credentials for a cluster"),
        ("nothing", "No such file"),
        ("empty", "context"),
    ):
        given = {} if kubeconfig is None else {"KUBECONFIG": str(tmp_path / kubeconfig)}
        command = [sys.executable, "-m", "lakehouse_operator"]
        done = subprocess.run(command, env=environment | given, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1, done.stderr
        (line,) = done.stderr.splitlines()
        assert why in json.loads(line)["message"]


# ---- rights ---------------------------------------------------------------------------------------------------

RULES = """
- {apiGroups: [lakehouse.agentview.dev], resources: [vectorindexes, datasets, indexsnapshots],
   verbs: [get, list, watch, patch]}
- {apiGroups: [lakehouse.agentview.dev], verbs: [get, patch, update],
   resources: [vectorindexes/status, datasets/status, indexsnapshots/status]}
- {apiGroups: [apps], resources: [deployments], verbs: [get, list, watch]}
- {apiGroups: [batch], resources: [jobs], verbs: [get, list, watch]}
- {apiGroups: [policy], resources: [poddisruptionbudgets], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [pods, services, configmaps], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [events], verbs: [create, patch]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}
- {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [lakehouse-operator],
   verbs: [get, update, patch]}
"""


def grant(server: KubeApiServer, where: Place) -> None:
    """What the chart's Role grants, save making Services."""
    rules = "".join(f"\n  {line}" for line in RULES.strip().splitlines())
    server.kubectl(
        "apply", "-n", where.namespace, "-f", "-",
        document=f"""
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: operator}}
rules:{rules}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: operator}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: operator}}
subjects: [{{kind: User, name: operator}}]
""",
    )  # fmt: skip


def allow(server: KubeApiServer, where: Place, resource: str, verbs: str) -> None:
    """One more right."""
    name = resource.partition(".")[0]
    there = ("-n", where.namespace)
    server.kubectl("create", "role", name, *there, f"--verb={verbs}", f"--resource={resource}")
    server.kubectl("create", "rolebinding", name, *there, f"--role={name}", "--user=operator")


async def test_a_missing_right_is_told_where_people_look_and_the_rest_goes_on(
    kube_api: KubeApiServer, where: Place
) -> None:
    def prepared(domain: PlainDomain) -> None:
        domain.makes_children = True

    grant(kube_api, where)
    async with running(kube_api, where, user="operator", prepared=prepared) as it:
        await where.index()
        body = await where.has(VECTOR_INDEX, "products", "Accepted", "True")
        assert body["status"]["observedGeneration"] == 1

        async def told() -> bool:
            found = [one for one in await where.events() if one["reason"] == "ApplyFailed"]
            return bool(found) and 'cannot patch resource "services"' in found[0]["message"]

        await until(told)

        async def in_status() -> bool:
            found = condition(await where.get(VECTOR_INDEX, "products"), "UpToDate")
            return found.get("reason") == "ApplyFailed" and "services" in found["message"]

        await until(in_status)
        assert (
            'reconcile_failures_total{kind="VectorIndex"} 0.0'
            not in it.operator.metrics.exposition().decode()
        )
        allow(kube_api, where, "services", "create,patch")
        # Children that block their owner's deletion need a right on its finalizers, too.
        allow(kube_api, where, "vectorindexes.lakehouse.agentview.dev/finalizers", "update")
        await where.ready()
        assert await where.kube.get(SERVICE, where.namespace, "products") is not None


async def test_a_namespace_that_is_lost_ends_nothing_else(
    kube_api: KubeApiServer, where: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "NAMESPACES_S", 0.2)
    grant(kube_api, where)
    async with place(kube_api) as other:
        grant(kube_api, other)
        both = f"{where.namespace},{other.namespace}"
        await other.index("elsewhere")

        role = f"kinds-{other.namespace}"  # as the chart's, which no namespace takes with it
        kinds = "vectorindexes,datasets,indexsnapshots"
        resources = ",".join(f"{kind}.lakehouse.agentview.dev" for kind in kinds.split(","))
        kube_api.kubectl("create", "clusterrole", role, "--verb=get,list,watch", f"--resource={resources}")
        kube_api.kubectl("create", "clusterrolebinding", role, f"--clusterrole={role}", "--user=operator")

        async def until_it_is_lost() -> None:
            async with running(kube_api, where, user="operator", watch_namespaces=both) as it:
                await other.ready("elsewhere")
                kube_api.kubectl("delete", "-n", other.namespace, "rolebinding", "operator")
                for _ in range(5):  # what is left there is not given up
                    await it.operator._watcher.check_namespaces()
                assert it.operator.cache.resource(other.key(VECTOR_INDEX, "elsewhere")) is not None
                await other.kube.delete(KINDS[VECTOR_INDEX], other.namespace, "elsewhere")
                await until(it.task.done)

        with pytest.raises(NamespacesChanged, match=other.namespace):
            await until_it_is_lost()
        kube_api.kubectl("delete", "clusterrolebinding", role)
        async with running(kube_api, where, user="operator", watch_namespaces=both) as it:  # its successor
            assert it.operator._watcher.lost == {other.namespace}
            await where.index()
            await where.ready()


async def test_without_the_right_to_list_it_says_so_and_waits(
    kube_api: KubeApiServer, where: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(kube_api, where, user="stranger", leads=False) as it:
        await until(lambda: 'User "stranger" cannot get resource "leases"' in caplog.text)
        assert it.operator._ready() != ""
        assert it.operator._alive() == ""
        assert not it.task.done()


async def test_definitions_that_come_later_are_waited_for(
    kube_api: KubeApiServer, where: Place, caplog: pytest.LogCaptureFixture
) -> None:
    name = "indexsnapshots.lakehouse.agentview.dev"
    served, unserved = (
        json.dumps([{"op": "replace", "path": "/spec/versions/0/served", "value": value}])
        for value in (True, False)
    )
    kube_api.kubectl("patch", "crd", name, "--type=json", f"-p={unserved}")
    try:
        async with running(kube_api, where, leads=False) as it:
            await until(lambda: "does not serve that" in caplog.text)
            assert it.operator._ready() == "leading, but not everything has been listed yet"
            kube_api.kubectl("patch", "crd", name, "--type=json", f"-p={served}")
            await where.index()
            await where.ready()
            assert it.operator._ready() == ""
    finally:
        kube_api.kubectl("patch", "crd", name, "--type=json", f"-p={served}")
        kube_api.kubectl("wait", "--for=condition=Established", f"crd/{name}")


async def test_an_index_is_served_with_no_more_rights_than_the_chart_grants(
    kube_api: KubeApiServer, where: Place
) -> None:
    grant(kube_api, where)
    async with running(kube_api, where, user="operator"):
        await where.index()
        await where.ready()

        async def told() -> bool:
            return {one["reason"] for one in await where.events()} >= {"AllReplicasServing"}

        await until(told)
        await where.kube.delete(KINDS[VECTOR_INDEX], where.namespace, "products")
