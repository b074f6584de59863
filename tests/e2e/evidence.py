"""What holds after every test, and what is kept when one fails.

The operator has not restarted, nor logged an error that nobody expected.  What this does not do: decide
whether a test passed.
"""

import json
import os
import re
from pathlib import Path

from e2e.access import Body, Cluster
from e2e.release import Release

ALLOWED: tuple[tuple[str, str], ...] = (
    (
        "cannot set blockOwnerDeletion in this case because cannot find RESTMapping",
        "the API server's admission learns of a kind some seconds after its CRD was made; tried again until then",
    ),
)
"""Patterns of error lines that may be logged, and why each one is no fault."""

ERROR = re.compile(
    r'"level":\s*"(error|critical)"|\b(ERROR|CRITICAL)\b|Traceback \(most recent call last\)', re.IGNORECASE
)


class OperatorWatch:
    """The operator's pods as they were, and its log from then on."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self.pods = _restarts(release.operator_pods())
        self.lines = {name: len(self._log(name).splitlines()) for name in self.pods}

    def complaints(self, *, replaced: bool, allowed: tuple[tuple[str, str], ...] = ()) -> list[str]:
        """What is not as it should be.  `replaced`: the test ended the operator itself."""
        found = []
        now = _restarts(self.release.operator_pods())
        if not replaced and now != self.pods:
            found.append(f"the operator restarted: before {self.pods}, now {now}")
        for name in now:
            found += [
                f"the operator logged: {line[:600]}"
                for line in self._log(name).splitlines()[self.lines.get(name, 0) :]
                if ERROR.search(line) and not _is_allowed(line, (*ALLOWED, *allowed))
            ]
        return found[:20]

    def _log(self, pod: str) -> str:
        try:
            return self.release.cluster.kubectl("logs", pod, "--tail=-1", namespace=self.release.namespace)
        except AssertionError:
            return ""


def folder() -> Path:
    """Where it is kept: build/e2e, or what `LAKEHOUSE_E2E_EVIDENCE` names."""
    return Path(os.environ.get("LAKEHOUSE_E2E_EVIDENCE", "build/e2e")).absolute()


def keep(cluster: Cluster, namespace: str, folder: Path) -> Path:
    """Write events, objects, descriptions and logs of a namespace into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = "pods,deployments,services,jobs,configmaps,events,vectorindexes,datasets,indexsnapshots"
    for name, arguments in {
        "objects.yaml": ["get", kinds, "-o", "yaml"],
        "events.txt": ["get", "events", "--sort-by=.lastTimestamp"],
        "describe.txt": ["describe", "pods,jobs,vectorindexes,datasets,indexsnapshots"],
    }.items():
        _save(cluster, namespace, folder / name, *arguments)
    for pod in cluster.all("Pod", namespace):
        name = pod["metadata"]["name"]
        _save(cluster, namespace, folder / f"{name}.log", "logs", name, "--all-containers", "--timestamps")
        if any(state["restartCount"] for state in pod["status"].get("containerStatuses", [])):
            _save(cluster, namespace, folder / f"{name}.before.log", "logs", name, "--previous")
    return folder


def _save(cluster: Cluster, namespace: str, file: Path, *arguments: str) -> None:
    try:
        text = cluster.kubectl(*arguments, namespace=namespace)
    except AssertionError as error:
        text = str(error)
    file.write_text(text)


def _restarts(pods: list[Body]) -> dict[str, int]:
    return {
        pod["metadata"]["name"]: sum(
            state["restartCount"] for state in pod["status"].get("containerStatuses", [])
        )
        for pod in pods
    }


def _is_allowed(line: str, allowed: tuple[tuple[str, str], ...]) -> bool:
    return any(re.search(pattern, line) for pattern, _ in allowed)


def shown(body: object) -> str:
    """An object as a person reads it in a failure."""
    return json.dumps(body, indent=1, sort_keys=True)[:4000]
