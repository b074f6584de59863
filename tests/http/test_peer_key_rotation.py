"""A peer key that changes at another time for each process, as mounted Secrets do, is nobody's trouble."""

import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx
import orjson
import pytest

from lakehouse.client import Client
from lakehouse.server.auth import new_key
from live_server import LiveServer
from minio_server import MinioServer
from pods.pods import DIMENSION, PodSet, peer_key_file, pool

pytestmark = [pytest.mark.minio, pytest.mark.timeout(240), pytest.mark.xdist_group("rotation")]
KEY, KEY_SHA256 = new_key()
KEYS = orjson.dumps([{"name": "tests", "right": "write", "sha256": KEY_SHA256}]).decode()
FIRST, SECOND, THIRD = "the-first-peer-key", "the-second-peer-key", "the-third-peer-key"
APART_S = 1.5
"""Between two processes' files: longer than a process takes to look at its own."""
PAUSE_S = 0.02


class Deployment:
    """`products` in two shards, `fresh` in one, a pool, and the gateway: each but the pool with a file of its own."""

    def __init__(self, minio: MinioServer, home: Path, stack: ExitStack) -> None:
        env = {"LAKEHOUSE_KEYS": KEYS}
        self.files = {
            "first shard": peer_key_file(home, "products", 0),
            "second shard": peer_key_file(home, "products", 1),
            "fresh": peer_key_file(home, "fresh", 0),
            "gateway": home / "gateway",
        }
        self.tell(FIRST, *self.files)
        self.products = PodSet(
            minio, home, index="products", shards=2, replicas=1, net=81, env=env, peer_keys=home
        )
        self.fresh = PodSet(minio, home, index="fresh", shards=1, replicas=1, net=82, env=env, peer_keys=home)
        for pods in (self.products, self.fresh):
            stack.enter_context(pods)
            pods.create()
            pods.start()
        [loose] = stack.enter_context(pool(minio, home, replicas=1, net=83))
        roles = ("STORAGE", "CATALOG", "INGEST", "QUERY", "VECTORS")
        self.gateway = stack.enter_context(
            LiveServer(
                "memory:",
                home / "gateway.log",
                args=["--roles", "gateway"],
                env={
                    **{f"LAKEHOUSE_{role}_URL": loose.url for role in roles},
                    **env,
                    "LAKEHOUSE_ROUTES": str(self._routes(home / "routes.json")),
                    "LAKEHOUSE_PEER_KEY_FILE": str(self.files["gateway"]),
                },
            )
        ).start()

    def _routes(self, file: Path) -> Path:
        indexes = {
            pods.index: {
                "url": pods.all[0].url,
                "shard_url": pods.shard_url,
                "resource": f"VectorIndex/shop/{pods.index}",
                "ready": True,
            }
            for pods in (self.products, self.fresh)
        }
        file.write_text(json.dumps({"version": 1, "indexes": indexes}))
        return file

    def tell(self, key: str, *processes: str) -> None:
        """Put the key into their files, as a kubelet does: by one rename."""
        for process in processes:
            file = self.files[process]
            new = file.with_suffix(".new")
            new.write_text(key)
            new.replace(file)

    def settle(self, key: str) -> None:
        """Give every process this key and the time to read it; what was before it no longer counts for the test."""
        self.tell(key, *self.files)
        time.sleep(APART_S)


@pytest.fixture(scope="module")
def deployment(minio: MinioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with ExitStack() as stack:
        yield Deployment(minio, tmp_path_factory.mktemp("rotation"), stack)


class Steady:
    """Requests one after the other in threads, from `with` to the end of its block; what came of them."""

    def __init__(self, *acts: Callable[[], httpx.Response]) -> None:
        self.answers: Counter[str] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(act,)) for act in acts]

    def _repeat(self, act: Callable[[], httpx.Response]) -> None:
        while not self._stop.is_set():
            try:
                self.answers[str(act().status_code)] += 1
            except Exception as error:  # noqa: BLE001  counted, and held against what is expected
                self.answers[repr(error)] += 1
            time.sleep(PAUSE_S)

    def __enter__(self) -> "Steady":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def http(url: str) -> httpx.Client:
    return httpx.Client(
        base_url=f"{url}/v1/vectors/index", timeout=60, headers={"authorization": f"Bearer {KEY}"}
    )


def search(asked: httpx.Client) -> httpx.Response:
    """What needs both shards."""
    return asked.post("/products/search", json={"vector": [1.0] * DIMENSION, "k": 3})


def add(asked: httpx.Client) -> httpx.Response:
    items = [{"id": secrets.token_hex(8), "vector": [1.0] * DIMENSION} for _ in range(4)]
    return asked.post("/products/add", json={"items": items})


def merge(asked: httpx.Client) -> httpx.Response:
    """What the gateway asks of an index's pods as one of them."""
    return asked.post("/fresh/merge", json={"dest": "products"})


def test_a_rotation_fails_no_request_in_whatever_order_it_arrives(deployment: Deployment) -> None:
    gateway, shard = deployment.gateway.url, deployment.products.pods[1, 0].url
    with http(gateway) as through, http(shard) as direct, Client(gateway, api_key=KEY) as client:
        client.add("fresh", ["one"], [[1.0] * DIMENSION])
        with Steady(
            *(partial(act, asked) for act in (search, add) for asked in (through, direct)),
            partial(merge, through),
        ) as steady:
            time.sleep(APART_S)
            for key, order in (
                (SECOND, ("first shard", "gateway", "second shard", "fresh")),
                (THIRD, ("gateway", "fresh", "second shard", "first shard")),
            ):
                for process in order:
                    deployment.tell(key, process)
                    time.sleep(APART_S)
    assert steady.answers.keys() == {"200"}, steady.answers
    assert steady.answers["200"] > 100


@pytest.mark.parametrize(("stranger", "act"), [("gateway", merge), ("fresh", merge), ("first shard", search)])
def test_processes_that_know_different_keys_answer_503_and_never_401(
    deployment: Deployment, stranger: str, act: Callable[[httpx.Client], httpx.Response]
) -> None:
    deployment.settle(FIRST)
    for key in (
        "a-key-of-nobody-else",
        "another-key-of-nobody-else",
    ):  # so that the first does not count either
        deployment.tell(key, stranger)
        time.sleep(APART_S)
    with http(deployment.gateway.url) as asked:
        answer = act(asked)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), answer.text
        assert "www-authenticate" not in answer.headers
        assert answer.json()["outcome"] == "not_committed"
        deployment.settle(FIRST)
        assert act(asked).status_code == 200


def test_who_repeats_as_documented_does_not_notice_a_process_that_is_late(deployment: Deployment) -> None:
    """One that began with the new key, and one whose node does not have it yet: nothing but time helps these."""
    deployment.settle(FIRST)
    for key in ("a-key-of-nobody-else", SECOND):
        deployment.tell(key, "first shard")
        time.sleep(APART_S)
    late = threading.Timer(2.0, deployment.tell, (SECOND, "second shard"))
    with Client(deployment.gateway.url, api_key=KEY) as client, http(deployment.gateway.url) as asked:
        assert search(asked).status_code == 503
        late.start()
        assert len(client.search("products", [1.0] * DIMENSION, k=1)) == 1
    late.join()
    deployment.settle(FIRST)


@pytest.mark.parametrize("content", [None, "", "short"])
def test_a_process_whose_file_has_no_key_does_not_start_and_names_it(
    tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "peer-key"
    if content is not None:
        file.write_text(content)
    server = LiveServer("memory:", tmp_path / "log", env={"LAKEHOUSE_PEER_KEY_FILE": str(file)})
    server.spawn()
    assert server.process.wait(60) != 0
    assert str(file) in server.log_tail()
    assert "Traceback" not in server.log_tail()


def test_a_file_that_goes_leaves_its_key_in_force(tmp_path: Path) -> None:
    file = tmp_path / "peer-key"
    file.write_text(FIRST)
    with LiveServer(
        str(tmp_path / "data"), tmp_path / "log", env={"LAKEHOUSE_PEER_KEY_FILE": str(file)}
    ) as server:
        server.start()
        file.unlink()
        time.sleep(2 * APART_S)
        headers = {"authorization": f"Bearer {FIRST}"}
        assert httpx.get(f"{server.url}/internal/state", headers=headers, timeout=30).status_code == 200
        assert httpx.get(f"{server.url}/internal/state", timeout=30).status_code == 401
        assert server.log_tail().count("the peer key cannot be read again") == 1
