"""A pod that is told to end says so at once, serves on for a while, finishes, and ends with 0."""

import time
from pathlib import Path
from signal import SIGTERM

import httpx
import pytest

from minio_server import MinioServer
from pods.pods import DIMENSION, PodSet

pytestmark = [pytest.mark.minio, pytest.mark.timeout(240)]
PATH = "/v1/vectors/index/products"


def test_ending_drains_and_a_second_signal_does_not_wait(minio: MinioServer, tmp_path: Path) -> None:
    with PodSet(minio, tmp_path, shards=1, net=87, env={"LAKEHOUSE_DRAIN_S": "6"}) as pods:
        pods.create()
        pods.start()
        drained, hurried = pods.all
        drained.process.send_signal(SIGTERM)
        while httpx.get(f"{drained.url}/readyz", timeout=60).status_code != 503:
            pass
        served = 0
        while drained.process.poll() is None:
            try:
                item = {"items": [{"id": f"i{served}", "vector": [1.0] * DIMENSION}]}
                answer = httpx.post(f"{drained.url}{PATH}/add", json=item, timeout=30)
            except (
                httpx.ConnectError,
                httpx.ReadError,
                httpx.RemoteProtocolError,
            ):  # it has stopped listening
                break
            assert answer.status_code == 200, answer.text
            assert answer.headers["connection"] == "close"
            served += 1
        assert drained.process.wait(30) == 0
        assert served > 5
        assert httpx.get(f"{hurried.url}{PATH}", timeout=60).json()["length"] == served
        hurried.process.send_signal(SIGTERM)
        while httpx.get(f"{hurried.url}/readyz", timeout=60).status_code != 503:
            pass
        assert httpx.get(f"{hurried.url}/livez", timeout=60).status_code == 200
        began = time.monotonic()
        hurried.process.send_signal(SIGTERM)
        assert hurried.process.wait(30) == 0
        print(f"ended after {time.monotonic() - began:.1f} s")


def test_a_store_that_is_away_makes_no_pod_unready(own_minio: MinioServer, tmp_path: Path) -> None:
    with PodSet(own_minio, tmp_path, shards=2, replicas=1, net=88) as pods:
        pods.create()
        pods.start()
        items = [{"id": f"i{n}", "vector": [float(n + 1)] * DIMENSION} for n in range(20)]
        assert (
            httpx.post(f"{pods.all[0].url}{PATH}/add", json={"items": items}, timeout=60).status_code == 200
        )
        own_minio.kill()
        found = httpx.post(f"{pods.all[1].url}{PATH}/search", json={"vector": [1.0] * DIMENSION}, timeout=60)
        assert found.status_code == 200, found.text
        assert float(found.headers["lakehouse-staleness"]) > 0
        assert len(found.json()["results"]) == 10
        for pod in pods.all:
            store = "ok"
            while store == "ok":  # it is asked once a second
                ready = httpx.get(f"{pod.url}/readyz", timeout=30)
                assert ready.status_code == 200, ready.text
                store = ready.json()["checks"]["store"]
        refused = httpx.post(f"{pods.all[1].url}{PATH}/add", json={"items": items}, timeout=60)
        assert refused.status_code == 503
        own_minio.restart()
        deadline = time.monotonic() + 60
        status = 503
        while status != 200 and time.monotonic() < deadline:
            status = httpx.post(f"{pods.all[1].url}{PATH}/add", json={"items": items}, timeout=60).status_code
        assert status == 200
