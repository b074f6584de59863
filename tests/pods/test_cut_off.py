"""A pod whose keys are replaced by others: what it says of its bucket, and that it goes on when they are right."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from bucket_keys import Mounted, for_reading
from minio_server import MinioServer
from pods.pods import DIMENSION, PEER_KEY, Pod, PodSet

pytestmark = pytest.mark.minio
SOON_S = 60.0
"""Far above the seconds that it takes: a loaded machine is no failure."""


@pytest.fixture
def mounted(minio: MinioServer, tmp_path: Path) -> Mounted:
    return Mounted(tmp_path / "s3", minio.access_key, minio.secret_key)


@pytest.fixture
def pod(minio: MinioServer, mounted: Mounted, tmp_path: Path) -> Iterator[Pod]:
    env = {"LAKEHOUSE_S3_CREDENTIALS_DIR": str(mounted.path)}
    with PodSet(minio, tmp_path / "logs", shards=1, replicas=1, net=91, env=env) as pods:
        pods.create()
        yield pods.start().all[0]


def trouble(pod: Pod) -> str:
    return str(pod.internal("/state").json()["store"]["trouble"])


def until(pod: Pod, holds: Callable[[str], bool]) -> str:
    """What the pod says of its store, as soon as that holds."""
    deadline = time.monotonic() + SOON_S
    while not holds(found := trouble(pod)):
        assert time.monotonic() < deadline, f"{found}\n{pod.log_tail()}"
        time.sleep(0.1)
    return found


def add(pod: Pod, name: str) -> int:
    items = [{"id": name, "vector": [1.0] * DIMENSION}]
    headers = {"authorization": f"Bearer {PEER_KEY}"}
    url = f"{pod.url}/v1/vectors/index/products/add"
    return httpx.post(url, json={"items": items}, headers=headers, timeout=60).status_code


def test_a_pod_that_nobody_asks_anything_says_that_its_key_is_refused_until_it_has_another(
    pod: Pod, mounted: Mounted, minio: MinioServer
) -> None:
    assert trouble(pod) == ""
    mounted.replace(minio.access_key, "no-longer-the-key")
    told = until(pod, bool)
    assert "SignatureDoesNotMatch" in told
    assert pod.internal("/state").json()["ready"]  # reads go on from memory
    assert trouble(pod) == told  # in the same words: a status is written once
    mounted.replace(minio.access_key, minio.secret_key)
    until(pod, lambda found: not found)
    assert add(pod, "a") == 200


def test_a_pod_that_may_not_write_says_so_after_the_first_write_until_it_may(
    pod: Pod, mounted: Mounted, minio: MinioServer
) -> None:
    assert add(pod, "a") == 200
    mounted.replace(*for_reading(minio))
    assert add(pod, "b") == 503
    assert "AccessDenied" in until(pod, bool)
    time.sleep(2)  # looks that read succeed meanwhile
    assert "AccessDenied" in trouble(pod)
    mounted.replace(minio.access_key, minio.secret_key)
    until(pod, lambda found: not found)  # found out without anybody writing
    assert add(pod, "c") == 200
