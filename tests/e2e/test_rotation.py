"""Keys of a bucket that are replaced while an index is served: what is claimed meanwhile, and how soon all is well."""

import itertools
import json
import threading
import time
from collections.abc import Iterator
from types import TracebackType

import httpx
import pytest

from e2e import store
from e2e.access import Body, Cluster
from e2e.acts import DIMENSION, drop, index_pods, restarts
from e2e.images import Image
from e2e.release import Release, vector_index
from e2e.store import Store
from e2e.truth import LAG_S_MAX
from e2e.waiting import until

INDEX = "rotated"
SECRET = "rotated-keys"
ASIDE = "keys-aside"
LOOK_S = 0.5
WRITES_S_MAX = 20.0
"""From the new key being in the Secret: the operator's look, at most 10 s, and what the kubelet and the pod take."""


class Watch:
    """Whether the status says that the bucket is reachable, and whether a write goes well, again and again."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self.samples: list[tuple[float, bool, bool, str]] = []
        """When, what is claimed, whether a write went well, and the claim's reason."""
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def _main(self) -> None:
        with self.release.http(timeout_s=5) as http:
            while not self._stop.wait(LOOK_S):
                writes = self._writes(http)
                found = self.release.cluster.condition(
                    "VectorIndex", self.release.namespace, INDEX, "StorageReachable"
                )
                claims = found.get("status") == "True"
                self.samples.append((time.monotonic(), claims, writes, str(found.get("reason"))))

    def _writes(self, http: httpx.Client) -> bool:
        items = [{"id": f"item-{next(self._numbers)}", "vector": [1.0] * DIMENSION}]
        try:
            answer = http.post(f"/v1/vectors/index/{INDEX}/add", json={"items": items})
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    def wrong_s(self) -> float:
        """How long a claim was wrong at most, at every look."""
        longest, since = 0.0, None
        for at_s, claims, writes, _ in self.samples:
            since = (at_s if since is None else since) if claims != writes else None
            longest = max(longest, at_s - since if since is not None else 0.0)
        return longest

    def well_s(self, since_s: float) -> float:
        """How long after that moment the last failure to write was."""
        return max((at_s - since_s for at_s, _, writes, _ in self.samples if not writes), default=0.0)

    def reasons(self) -> list[str]:
        return [reason for reason, _ in itertools.groupby(sample[3] for sample in self.samples)]


@pytest.fixture(scope="module")
def own_store(cluster: Cluster, images_loaded: dict[str, Image]) -> Iterator[Store]:
    """A MinIO whose key may be changed."""
    with store.running(cluster, images_loaded["minio"], "lakehouse-e2e-rotation") as found:
        found.make_bucket("lake")
        yield found


@pytest.fixture
def rotated(lakehouse: Release, own_store: Store) -> Iterator[Release]:
    """The release, with an index of two pods that lies in that MinIO."""
    lakehouse.cluster.apply(own_store.secret(lakehouse.namespace, SECRET))
    where = {"endpoint": own_store.endpoint, "bucket": "lake"}
    storage = {"s3": where, "credentialsSecretRef": {"name": SECRET}}
    lakehouse.apply(vector_index(INDEX, DIMENSION, replicas=2, storage=storage))
    until(
        f"{INDEX} to have two replicas",
        lambda: lakehouse.cluster.status("VectorIndex", lakehouse.namespace, INDEX),
        lambda status: status.get("readyReplicas") == 2,
        seconds=120,
    )
    yield lakehouse
    drop(lakehouse, INDEX)


def pods(release: Release) -> dict[str, int]:
    """Uid and restarts."""
    return restarts(index_pods(release, INDEX))


def told(release: Release) -> list[str]:
    """The versions of the Secret that pods were told of."""
    annotation = f"mounted.lakehouse.agentview.dev/{SECRET}"
    found = [pod["metadata"].get("annotations", {}).get(annotation, "") for pod in index_pods(release, INDEX)]
    return sorted(found)


def secret(release: Release) -> Body:
    found = release.cluster.get("Secret", release.namespace, SECRET)
    assert found is not None
    return found


def test_a_rotated_key_reaches_the_pods_in_seconds_and_no_status_lies_meanwhile(
    rotated: Release, own_store: Store
) -> None:
    cluster, namespace = rotated.cluster, rotated.namespace
    before = pods(rotated)
    with Watch(rotated) as watch:
        until("a write", lambda: watch.samples, lambda found: bool(found) and found[-1][2])
        own_store.change_key()
        cluster.wait_for_condition(
            "VectorIndex", namespace, INDEX, "StorageReachable", status="False", reason="AccessDenied"
        )
        cluster.apply(own_store.secret(namespace, SECRET))
        rotated_s = time.monotonic()
        cluster.wait_for_condition("VectorIndex", namespace, INDEX, "StorageReachable")
        time.sleep(LAG_S_MAX)
    well_s, wrong_s = watch.well_s(rotated_s), watch.wrong_s()
    print(f"writes again after {well_s:.1f} s; wrong for {wrong_s:.1f} s at most; reasons {watch.reasons()}")
    assert well_s <= WRITES_S_MAX
    assert wrong_s <= LAG_S_MAX
    assert told(rotated) == [secret(rotated)["metadata"]["resourceVersion"]] * 2
    assert pods(rotated) == before


@pytest.mark.soak
def test_a_key_that_overlaps_reaches_the_pods_in_seconds_and_then_they_are_left_alone(
    rotated: Release, own_store: Store
) -> None:
    """What nobody is refused for is brought as soon; a line that pods do not read shows when it is there."""
    before = pods(rotated)
    rotated.cluster.apply(own_store.secret(rotated.namespace, SECRET, ROTATION="1"))
    began_s = time.monotonic()
    until("both pods to have it", lambda: [line(rotated, pod) for pod in index_pods(rotated, INDEX)])
    brought_s = time.monotonic() - began_s
    print(f"brought after {brought_s:.1f} s")
    assert brought_s <= WRITES_S_MAX
    version = secret(rotated)["metadata"]["resourceVersion"]
    # The kubelet may have looked by itself, before the operator did.
    until(
        "both pods to be told",
        lambda: told(rotated),
        lambda found: found == [version] * 2,
        seconds=WRITES_S_MAX,
    )
    # Pods may be told once of another Secret meanwhile: of the peer key, at which the operator looks every minute.
    assert any(are_left_alone(rotated, LAG_S_MAX) for _ in range(2)), "somebody writes pods again and again"
    assert told(rotated) == [version] * 2
    assert pods(rotated) == before


def are_left_alone(release: Release, seconds: float) -> bool:
    """Whether nobody writes the index's pods for so long, which is longer than between two looks of the operator."""
    versions = [pod["metadata"]["resourceVersion"] for pod in index_pods(release, INDEX)]
    time.sleep(seconds)
    return [pod["metadata"]["resourceVersion"] for pod in index_pods(release, INDEX)] == versions


def line(release: Release, pod: Body) -> str:
    """What the Secret's new line says in a pod.  Raises `Refused` while it is not there."""
    read = ("exec", pod["metadata"]["name"], "--", "cat", "/etc/lakehouse/s3/ROTATION")
    return release.cluster.kubectl(*read, namespace=release.namespace)


@pytest.mark.soak
def test_pods_that_alone_are_refused_are_named_in_time_and_until_they_are_not(
    rotated: Release, own_store: Store
) -> None:
    """They have another Secret than the operator reads: as after a rotation that does not reach them."""
    cluster, namespace = rotated.cluster, rotated.namespace
    cluster.apply(own_store.secret(namespace, ASIDE))
    annotate(rotated, "vectorindex", INDEX, "lakehouse.agentview.dev/pause-reconciliation=true")
    volume = {"name": "credentials", "secret": {"secretName": ASIDE}}
    patch = json.dumps({"spec": {"template": {"spec": {"volumes": [volume]}}}})
    deployment = f"{INDEX}-shard-0"
    cluster.kubectl("patch", "deployment", deployment, "--type=strategic", "-p", patch, namespace=namespace)
    cluster.wait_for_rollout(namespace, deployment)
    before = pods(rotated)
    with Watch(rotated) as watch:
        until("a write", lambda: watch.samples, lambda found: bool(found) and found[-1][2])
        give(rotated, own_store.secret(namespace, ASIDE, AWS_SECRET_ACCESS_KEY="nonsense"))
        found = cluster.wait_for_condition(
            "VectorIndex", namespace, INDEX, "StorageReachable", status="False", reason="UnreachableFromPods"
        )
        assert f"{deployment}-" in found["message"]
        assert "SignatureDoesNotMatch" in found["message"]
        assert cluster.condition("VectorIndex", namespace, INDEX, "Ready")["status"] == "True"  # reads go on
        time.sleep(LAG_S_MAX)
        give(rotated, own_store.secret(namespace, ASIDE))
        cluster.wait_for_condition("VectorIndex", namespace, INDEX, "StorageReachable")
        time.sleep(LAG_S_MAX)
    print(f"wrong for {watch.wrong_s():.1f} s at most; reasons {watch.reasons()}")
    assert watch.wrong_s() <= LAG_S_MAX
    assert watch.reasons() == ["ProbeSucceeded", "UnreachableFromPods", "ProbeSucceeded"]
    assert pods(rotated) == before


def give(release: Release, body: Body) -> None:
    """Put a Secret there, and have the kubelets bring it at once to the pods that have it."""
    release.cluster.apply(body)
    for pod in index_pods(release, INDEX):
        annotate(release, "pod", pod["metadata"]["name"], f"test/given={time.monotonic_ns()}")


def annotate(release: Release, kind: str, name: str, annotation: str) -> None:
    release.cluster.kubectl("annotate", kind, name, annotation, "--overwrite", namespace=release.namespace)
