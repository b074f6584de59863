"""What a cluster tells of a namespace, through kubectl and the rights of whoever runs it.

Declared resources, what was made for them, events, logs of every container and of the one before it, what operator and
pods say of themselves.  Secrets are not asked for at all.  What this module does not do: change anything.
"""

import json
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from lakehouse.cli.support.bundle import Bundle
from lakehouse.core.errors import Invalid, Outcome, Unavailable

CALL_S_MAX = 60
LOG_LINES = 5_000
LOG_BYTES = 4 << 20
PODS_MAX = 200
GROUP = "lakehouse.agentview.dev"
DECLARED = ("vectorindexes", "datasets", "indexsnapshots")
MADE = ("deployments", "services", "endpointslices", "jobs", "pods", "poddisruptionbudgets", "leases")
SELECTOR = "app.kubernetes.io/name=lakehouse"
ROUTES_KEY = "routes.json"
PROBES = {"operator": (("healthz", 8080), ("metrics", 8080)), "": (("health", 3110), ("readyz", 3110))}
"""What a pod tells anybody, by its component."""


class Cluster:
    """Collects from one namespace."""

    def __init__(self, namespace: str | None, context: str | None, kubeconfig: str | None) -> None:
        """Raises `Invalid` when there is no kubectl."""
        program = shutil.which("kubectl")
        if program is None:
            raise Invalid("a report on a cluster needs kubectl on the PATH; on a server, use --url")
        given = {"--namespace": namespace, "--context": context, "--kubeconfig": kubeconfig}
        self._command = [program, *(f"{name}={value}" for name, value in given.items() if value)]

    def check(self) -> None:
        """Raises `Unavailable` when the cluster does not answer, or nothing of ours is known to it."""
        kinds = self._run("api-resources", f"--api-group={GROUP}", "-o", "name")
        if not kinds.strip():
            raise Invalid(f"the cluster does not know our resources: is the chart installed? group=`{GROUP}`")

    def collect(self, bundle: Bundle) -> None:
        """Everything; each part that cannot be had is noted."""
        bundle.collect("version", lambda: bundle.json("cluster/version.json", self._json("version")))
        bundle.collect(
            "nodes", lambda: bundle.text("cluster/nodes.txt", self._run("get", "nodes", "-o", "wide"))
        )
        for kind in DECLARED:
            self._objects(bundle, kind, f"{kind}.{GROUP}", ())
        for kind in MADE:
            self._objects(bundle, kind, kind, (f"--selector={SELECTOR}",))
        bundle.collect("routes", lambda: self._routes(bundle))
        bundle.collect("events", lambda: bundle.json("cluster/events.json", self._list("events", ())))
        bundle.collect("logs", lambda: self._pods(bundle))

    def _objects(self, bundle: Bundle, name: str, kind: str, more: Sequence[str]) -> None:
        bundle.collect(name, lambda: bundle.json(f"cluster/{name}.json", self._list(kind, more)))

    def _routes(self, bundle: Bundle) -> None:
        found = self._list("configmaps", (f"--selector={SELECTOR}",))
        found["items"] = [one for one in found["items"] if ROUTES_KEY in (one.get("data") or {})]
        bundle.json("cluster/routes.json", found)

    def _pods(self, bundle: Bundle) -> None:
        for pod in self._list("pods", (f"--selector={SELECTOR}",))["items"][:PODS_MAX]:
            name = pod["metadata"]["name"]
            status = pod.get("status", {})
            for state in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
                self._logs(bundle, name, state["name"], previous=False)
                if state.get("restartCount"):
                    self._logs(bundle, name, state["name"], previous=True)
            if status.get("phase") == "Running":
                component = pod["metadata"].get("labels", {}).get("app.kubernetes.io/component", "")
                for path, port in PROBES.get(component, PROBES[""]):
                    self._probe(bundle, pod["metadata"]["namespace"], name, path, port)

    def _logs(self, bundle: Bundle, pod: str, container: str, *, previous: bool) -> None:
        which = ".previous" if previous else ""
        more = ["--previous"] if previous else []

        def collecting() -> None:
            text = self._run(
                "logs", pod, "-c", container, "--timestamps", f"--tail={LOG_LINES}", f"--limit-bytes={LOG_BYTES}", *more
            )  # fmt: skip
            bundle.text(f"cluster/logs/{pod}/{container}{which}.log", text)

        bundle.collect(f"log of {pod} {container}{which}", collecting)

    def _probe(self, bundle: Bundle, namespace: str, pod: str, path: str, port: int) -> None:
        raw = f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/{path}"
        bundle.collect(
            f"{path} of {pod}",
            lambda: bundle.text(f"cluster/pods/{pod}/{path}.txt", self._run("get", "--raw", raw)),
        )

    def _list(self, kind: str, more: Sequence[str]) -> Any:
        return self._json("get", kind, *more)

    def _json(self, *arguments: str) -> Any:
        text = self._run(*arguments, "-o", "json")
        try:
            return json.loads(text)
        except ValueError as error:
            raise Unavailable(
                f"kubectl answered no JSON. command=`{' '.join(arguments)}`", outcome=Outcome.NOT_COMMITTED
            ) from error

    def _run(self, *arguments: str) -> str:
        """What kubectl prints.  Raises `Unavailable` with what it says instead."""
        asked = " ".join(arguments)
        try:
            done = subprocess.run(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=CALL_S_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(
                f"kubectl did not answer within {CALL_S_MAX} s. command=`{asked}`",
                outcome=Outcome.NOT_COMMITTED,
            ) from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise Unavailable(
                f"kubectl: {said[-1] if said else done.returncode}. command=`{asked}`",
                outcome=Outcome.NOT_COMMITTED,
            )
        return done.stdout.decode(errors="replace")
