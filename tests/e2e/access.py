"""The cluster as tests see it: objects by kind and name, kubectl, helm, and Services as addresses.

Reads go through one `kubectl proxy`, which costs less than a kubectl per look.  What this does not know: what
is installed.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from e2e.engines import Engine
from e2e.waiting import until

Body = dict[str, Any]

GROUP = "lakehouse.agentview.dev"
PATHS = {
    "Pod": "api/v1/{}/pods",
    "Service": "api/v1/{}/services",
    "Secret": "api/v1/{}/secrets",
    "ConfigMap": "api/v1/{}/configmaps",
    "Event": "api/v1/{}/events",
    "Deployment": "apis/apps/v1/{}/deployments",
    "ReplicaSet": "apis/apps/v1/{}/replicasets",
    "Job": "apis/batch/v1/{}/jobs",
    "PodDisruptionBudget": "apis/policy/v1/{}/poddisruptionbudgets",
    "Lease": "apis/coordination.k8s.io/v1/{}/leases",
    "VectorIndex": f"apis/{GROUP}/v1alpha1/{{}}/vectorindexes",
    "Dataset": f"apis/{GROUP}/v1alpha1/{{}}/datasets",
    "IndexSnapshot": f"apis/{GROUP}/v1alpha1/{{}}/indexsnapshots",
}


class Refused(AssertionError):
    """kubectl or helm ended with an error; the text is what it said."""


class Cluster:
    """One cluster, reached through an engine; use it as a context manager."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._stack = contextlib.ExitStack()
        self._api: httpx.Client

    def __enter__(self) -> "Cluster":
        proxy = subprocess.Popen(
            [*self.engine.kubectl, "proxy", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._stack.callback(_end, proxy)
        assert proxy.stdout is not None
        line = proxy.stdout.readline()
        found = re.search(r"127\.0\.0\.1:\d+", line)
        assert found, f"kubectl proxy said: {line}"
        self._api = self._stack.enter_context(httpx.Client(base_url=f"http://{found[0]}", timeout=30))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # --- reading

    def get(self, kind: str, namespace: str, name: str) -> Body | None:
        """The object, or None where there is none."""
        answer = self._api.get(f"/{PATHS[kind].format(f'namespaces/{namespace}')}/{name}")
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        return dict(answer.json())

    def all(self, kind: str, namespace: str, labels: str = "") -> list[Body]:
        """The objects of a kind in a namespace (all namespaces where it is empty) that carry these labels."""
        where = f"namespaces/{namespace}" if namespace else ""
        path = "/" + PATHS[kind].format(where).replace("//", "/")
        answer = self._api.get(path, params={"labelSelector": labels} if labels else {})
        answer.raise_for_status()
        return list(answer.json()["items"])

    def namespace_exists(self, name: str) -> bool:
        return self._api.get(f"/api/v1/namespaces/{name}").status_code == 200

    def status(self, kind: str, namespace: str, name: str) -> Body:
        """Its status; empty where there is none."""
        return dict((self.get(kind, namespace, name) or {}).get("status") or {})

    def condition(self, kind: str, namespace: str, name: str, type_: str) -> Body:
        """One condition; empty where it is not there."""
        conditions = self.status(kind, namespace, name).get("conditions", [])
        return next((dict(found) for found in conditions if found["type"] == type_), {})

    # --- changing

    def kubectl(self, *arguments: str, text: str = "", namespace: str = "") -> str:
        """Run kubectl; raises `Refused` with its complaint."""
        where = ["--namespace", namespace] if namespace else []
        return _run([*self.engine.kubectl, *where, *arguments], text)

    def helm(self, *arguments: str, text: str = "") -> str:
        return _run([*self.engine.helm, *arguments], text)

    def apply(self, body: Body | list[Body] | str, namespace: str = "") -> str:
        """Apply objects, given as such or as YAML."""
        return self.kubectl("apply", "-f", "-", text=_text(body), namespace=namespace)

    def patch(self, kind: str, namespace: str, name: str, patch: Body) -> None:
        """Merge into an object."""
        self.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps(patch), namespace=namespace)

    def delete(self, kind: str, namespace: str, name: str, *flags: str) -> None:
        self.kubectl("delete", kind, name, "--ignore-not-found", *flags, namespace=namespace)

    def make_namespace(self, name: str, *, restricted: bool = True) -> None:
        """Make it, or leave it as it is; `restricted` has the API server enforce Pod Security's strictest level."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"} if restricted else {}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})

    def fresh_namespace(self, name: str, *, restricted: bool = True) -> None:
        """Make it, after deleting one that an earlier session left."""
        self.kubectl("delete", "namespace", name, "--ignore-not-found", "--timeout=120s")
        self.make_namespace(name, restricted=restricted)

    # --- waiting

    def wait_for_condition(
        self,
        kind: str,
        namespace: str,
        name: str,
        type_: str,
        *,
        status: str = "True",
        reason: str = "",
        seconds: float = 90.0,
    ) -> Body:
        """Until the condition has this status, and this reason if one is named; about the newest spec."""

        def holds(body: Body | None) -> bool:
            found = _condition_of(body, type_)
            return (
                body is not None
                and found.get("status") == status
                and found.get("observedGeneration") == body["metadata"]["generation"]
                and reason in ("", found.get("reason"))
            )

        what = f"{kind} {namespace}/{name} to be {type_}={status} {reason}"
        body = until(what, lambda: self._brief(kind, namespace, name), holds, seconds=seconds)
        assert body is not None
        return _condition_of(body, type_)

    def wait_for_rollout(self, namespace: str, *deployments: str, seconds: float = 180.0) -> None:
        for name in deployments:
            limit = f"--timeout={seconds:.0f}s"
            self.kubectl("rollout", "status", f"deployment/{name}", limit, namespace=namespace)

    def wait_until_gone(self, kind: str, namespace: str, name: str, *, seconds: float = 60.0) -> None:
        until(
            f"{kind} {namespace}/{name} to be gone",
            lambda: self.get(kind, namespace, name),
            lambda body: body is None,
            seconds=seconds,
        )

    def _brief(self, kind: str, namespace: str, name: str) -> Body | None:
        """What is worth reading in a failure: generation and status."""
        body = self.get(kind, namespace, name)
        if body is None:
            return None
        return {
            "metadata": {"generation": body["metadata"].get("generation")},
            "status": body.get("status", {}),
        }

    # --- reaching

    @contextlib.contextmanager
    def reach(self, namespace: str, service: str, port: int) -> Iterator[str]:
        """`host:port` of a Service: its ClusterIP where this machine reaches it, else a forwarded port."""
        if self.engine.services_reachable:
            body = until(f"Service {service}", lambda: self.get("Service", namespace, service))
            assert body is not None
            yield f"{body['spec']['clusterIP']}:{port}"
            return
        with _forwarded(self.engine, namespace, f"service/{service}", port) as address:
            yield address

    @contextlib.contextmanager
    def reach_pod(self, pod: Body, port: int) -> Iterator[str]:
        """`host:port` of one pod."""
        if self.engine.services_reachable:
            yield f"{pod['status']['podIP']}:{port}"
            return
        metadata = pod["metadata"]
        with _forwarded(self.engine, metadata["namespace"], f"pod/{metadata['name']}", port) as address:
            yield address


def _condition_of(body: Mapping[str, Any] | None, type_: str) -> Body:
    conditions = ((body or {}).get("status") or {}).get("conditions", [])
    return next((dict(found) for found in conditions if found["type"] == type_), {})


def _text(body: Body | list[Body] | str) -> str:
    if isinstance(body, str):
        return body
    bodies = body if isinstance(body, list) else [body]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": bodies})


def _run(command: list[str], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shown = " ".join(command[2:])[:200]
        raise Refused(f"`{shown}` ended with {done.returncode}: {done.stderr.strip()} {done.stdout.strip()}")
    return done.stdout


@contextlib.contextmanager
def _forwarded(engine: Engine, namespace: str, target: str, port: int) -> Iterator[str]:
    """A local port that kubectl forwards, made anew whenever it breaks off (its pod went)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        local = probe.getsockname()[1]
    command = [*engine.kubectl, "--namespace", namespace, "port-forward", target, f"{local}:{port}"]
    loop = 'while true; do "$@" >/dev/null 2>&1; sleep 0.3; done'
    process = subprocess.Popen(["bash", "-c", loop, "bash", *command], start_new_session=True)
    try:
        yield f"127.0.0.1:{local}"
    finally:
        _end_group(process)


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.communicate(timeout=10)


def _end_group(process: "subprocess.Popen[bytes]") -> None:

    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=10)
