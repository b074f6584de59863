"""Status against truth: what VectorIndexes and Datasets claim, held against what pods and the bucket say.

A claim may lag: only one that stays wrong for longer than `LAG_S_MAX`, at every look in between, is a lie.  The
watch runs in a thread of its own beside the tests.  What this does not do: cause anything.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlparse

import httpx

from e2e.access import Body
from e2e.release import Release

LAG_S_MAX = 15.0
LOOK_S = 2.0
INDEX_LABEL = "lakehouse.agentview.dev/index"
SHARD_LABEL = "lakehouse.agentview.dev/shard"

Claim = tuple[str, str]
"""Which object, and what about it."""


class Truth:
    """Looks every two seconds from `with` to the end of its block; `lies` is what it caught."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self.lies: list[str] = []
        self._wrong_since: dict[Claim, tuple[float, str]] = {}
        self._counts: dict[str, list[tuple[float, int]]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="truth", daemon=True)
        self._http = release.http("read", timeout_s=5)

    def __enter__(self) -> "Truth":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=30)
        self._http.close()

    def caught(self) -> list[str]:
        """The lies since the last time this was asked."""
        found, self.lies = self.lies, []
        return found

    def _main(self) -> None:
        while not self._stop.wait(LOOK_S):
            with contextlib.suppress(httpx.HTTPError):  # the API server is away: nothing can be said
                self._look()

    def _look(self) -> None:
        now = time.monotonic()
        wrong: dict[Claim, str] = {}
        for index in self.release.cluster.all("VectorIndex", self.release.namespace):
            name = index["metadata"]["name"]
            wrong |= {(f"VectorIndex {name}", claim): why for claim, why in self._of_index(index)}
        for dataset in self.release.cluster.all("Dataset", self.release.namespace):
            name = dataset["metadata"]["name"]
            wrong |= {(f"Dataset {name}", claim): why for claim, why in self._of_dataset(dataset)}
        self._wrong_since = {claim: self._wrong_since.get(claim, (now, why)) for claim, why in wrong.items()}
        for (thing, claim), (since, first) in list(self._wrong_since.items()):
            if now - since > LAG_S_MAX:
                why = wrong[thing, claim]
                self.lies.append(f"{thing}: {claim}: for {now - since:.0f} s: {first}; now {why}")
                self._wrong_since[thing, claim] = (now, why)  # once per period is enough

    def _of_index(self, index: Body) -> Iterator[Claim]:
        """What is wrong in a VectorIndex's status at this moment: (claim, why)."""
        name, spec, status = index["metadata"]["name"], index["spec"], index.get("status", {})
        if index["metadata"].get("deletionTimestamp") or _is_paused(index):
            return
        yield from _about_generation(index)
        conditions = _conditions(status)
        ready = conditions.get("Ready", {}).get("status")
        pods = self._ready_pods(name, spec.get("shards", 1))
        if status.get("readyReplicas", 0) != min(pods):
            yield "readyReplicas", f"says {status.get('readyReplicas', 0)}, ready pods per shard {pods}"
        answers, count = self._count(name)
        reason = conditions.get("Ready", {}).get("reason")
        if ready == "True" and answers != 200:
            yield "Ready", f"says True ({reason}), a count is answered {answers}"
        wanted = 0 if spec.get("suspend") else spec.get("replicas", 1)
        if ready != "True" and answers == 200 and wanted and min(pods) >= wanted:
            yield "Ready", f"says {ready} ({reason}), all {pods} pods are ready and a count is answered"
        if ready == "True" and count is not None:
            yield from self._about_items(name, status, count)
        yield from self._about_store(conditions)
        yield from self._about_snapshot(status)

    def _about_items(self, name: str, status: Body, count: int) -> Iterator[Claim]:
        """`items` is one of the counts of the last moments: under load it lags."""
        now = time.monotonic()
        seen = [*self._counts.get(name, []), (now, count)]
        self._counts[name] = [pair for pair in seen if now - pair[0] < 2 * LAG_S_MAX]
        counts = [value for _, value in self._counts[name]]
        if not min(counts) <= status.get("items", 0) <= max(counts):
            yield "items", f"says {status.get('items')}, counted {counts[-1]}"

    def _about_store(self, conditions: Mapping[str, Body]) -> Iterator[Claim]:
        up = self.release.store.is_up()
        says = conditions.get("StorageReachable", {})
        if says.get("status") == "True" and not up:
            yield "StorageReachable", "says True, and the store does not answer"

    def _about_snapshot(self, status: Body) -> Iterator[Claim]:
        uri = status.get("snapshot", {}).get("lastSuccessful", {}).get("uri")
        if uri and self.release.store.is_up():
            place = urlparse(uri)
            try:
                self.release.store.client.head_object(Bucket=place.netloc, Key=place.path.lstrip("/"))
            except Exception as error:  # noqa: BLE001  whatever it is, the file is not there
                yield "snapshot", f"says {uri} was taken: {error}"

    def _of_dataset(self, dataset: Body) -> Iterator[Claim]:
        name, status = dataset["metadata"]["name"], dataset.get("status", {})
        if dataset["metadata"].get("deletionTimestamp") or _is_paused(dataset):
            return
        yield from _about_generation(dataset)
        ready = _conditions(status).get("Ready", {}).get("status")
        answer = self._get(f"/v1/catalog/manifest/{name}")
        if ready == "True" and answer is not None and answer.status_code != 200:
            yield "Ready", f"says True, the catalog answers {answer.status_code}"
        if ready == "True" and answer is not None and answer.status_code == 200:
            manifest, current = answer.json(), status.get("current", {})
            for claim, field in (("version", "version"), ("rows", "row_count")):
                if field in manifest and current.get(claim) != manifest[field]:
                    yield f"current.{claim}", f"says {current.get(claim)}, the manifest {manifest[field]}"

    def _ready_pods(self, index: str, shards: int) -> list[int]:
        """Ready pods of every shard."""
        counts = [0] * shards
        for pod in self.release.cluster.all("Pod", self.release.namespace, f"{INDEX_LABEL}={index}"):
            labels = pod["metadata"]["labels"]
            if labels.get("app.kubernetes.io/component") == "index" and _is_ready(pod):
                counts[int(labels[SHARD_LABEL])] += 1
        return counts

    def _count(self, index: str) -> tuple[int, int | None]:
        """The status of a count through the gateway, and the count; 0 where nobody answered."""
        try:
            answer = self._http.post(f"/v1/vectors/index/{index}/count", json={})
        except httpx.HTTPError:
            return 0, None
        return answer.status_code, int(answer.json()["count"]) if answer.status_code == 200 else None

    def _get(self, path: str) -> httpx.Response | None:
        try:
            return self._http.get(path)
        except httpx.HTTPError:
            return None


def _about_generation(body: Body) -> Iterator[Claim]:
    wanted, observed = body["metadata"]["generation"], body.get("status", {}).get("observedGeneration")
    if observed is not None and observed != wanted:  # who has said nothing yet has not lied
        yield "observedGeneration", f"is {observed}, the spec is at {wanted}"


def _conditions(status: Mapping[str, Any]) -> dict[str, Body]:
    return {condition["type"]: condition for condition in status.get("conditions", [])}


def _is_ready(pod: Body) -> bool:
    if "deletionTimestamp" in pod["metadata"]:
        return False
    conditions = pod.get("status", {}).get("conditions", [])
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def _is_paused(body: Body) -> bool:
    annotations = body["metadata"].get("annotations", {})
    return bool(annotations.get("lakehouse.agentview.dev/pause-reconciliation") == "true")
