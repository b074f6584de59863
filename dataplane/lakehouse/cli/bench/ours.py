"""Our server: rows in over HTTP, searches in three forms, kill -9 and back.

Bodies are encoded before anything is measured.  What it does not do: say what the numbers mean.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import numpy as np
import orjson

from lakehouse.cli.bench.data import Data, Filter, K, Truth, recall
from lakehouse.cli.bench.wire import Connection, encoded
from lakehouse.cli.process import ServerProcess
from lakehouse.client import ARROW, BINARY, arrow_batch
from lakehouse.core.errors import Unavailable
from lakehouse.runtime import Runtime, pause

INDEX = "bench"
BASE = f"/v1/vectors/index/{INDEX}"
BATCH_ROWS = 1_000
IN_FLIGHT = 3
"""Adds at a time: while one is being made durable, the next ones arrive."""
SETTLE_S_MAX = 1_800.0
RESTART_S_MAX = 120.0
BATCH = 32

Row = dict[str, int]


@dataclass(frozen=True)
class Measured:
    """CPU seconds per query, and how good the answers were."""

    cpu_s: float
    recall: float


@dataclass(frozen=True)
class Ingested:
    """How fast rows became durable and searchable."""

    seconds: float
    rows_per_s: float
    visible: bool
    """Whether the count was whole and every row of the last batches found itself, at once."""


def add_requests(data: Data, with_metadata: bool) -> list[bytes]:
    """Every row, in Arrow batches."""
    requests = []
    for start in range(0, len(data), BATCH_ROWS):
        part = slice(start, start + BATCH_ROWS)
        body = arrow_batch(data.ids[part], data.vectors[part], data.metadata[part] if with_metadata else None)
        requests.append(encoded("POST", f"{BASE}/add", body, ARROW))
    return requests


def create(server: ServerProcess, dimension: int) -> None:
    """An empty index with default settings."""
    with Connection(server.port) as wire:
        wire.json("POST", "/v1/vectors/index", {"name": INDEX, "dimension": dimension})


def ingest(server: ServerProcess, data: Data, requests: Sequence[bytes], runtime: Runtime) -> Ingested:
    """Send every batch, `IN_FLIGHT` at a time, and look whether all of it is there the moment it is acknowledged."""
    queue = iter(requests)
    lock = threading.Lock()
    failures: list[BaseException] = []

    def sender() -> None:
        try:
            with Connection(server.port) as wire:
                while True:
                    with lock:
                        request = next(queue, None)
                    if request is None:
                        return
                    wire.send(request)
        except BaseException as error:  # noqa: BLE001 - raised below, on the thread that waits
            failures.append(error)

    threads = [threading.Thread(target=sender) for _ in range(IN_FLIGHT)]
    started = runtime.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = runtime.monotonic() - started
    if failures:
        raise failures[0]
    return Ingested(seconds, len(data) / seconds, _all_visible(server, data))


def _all_visible(server: ServerProcess, data: Data) -> bool:
    last = data.vectors[-BATCH * 4 :]
    with Connection(server.port) as wire:
        whole = wire.json("POST", f"{BASE}/count", {})["count"] == len(data)
        answer = orjson.loads(wire.send(_binary_batch(last, {"k": 1, "include": ""})))
    # Equal vectors share the first place, so distance decides, not the id.
    return whole and all(hits and hits[0]["distance"] < 1e-5 for hits in answer["results"])


def settle(server: ServerProcess, runtime: Runtime) -> float:
    """Wait until no build is due; returns how long that took."""
    started = runtime.monotonic()
    with Connection(server.port) as wire:
        while runtime.monotonic() - started < SETTLE_S_MAX:
            if wire.json("GET", f"{BASE}/stats")["settled"]:
                return runtime.monotonic() - started
            pause(0.5)
    raise Unavailable(f"the index did not settle. seconds=`{SETTLE_S_MAX}`")


def stats(server: ServerProcess) -> dict[str, object]:
    """What the engine says of the index."""
    with Connection(server.port) as wire:
        return dict(wire.json("GET", f"{BASE}/stats"))


def restart(server: ServerProcess, data: Data, runtime: Runtime) -> float:
    """kill -9, start, and ask until the first right answer; returns seconds."""
    question = encoded("POST", f"{BASE}/search", orjson.dumps({"id": data.ids[0], "k": 1}))
    with Connection(server.port) as wire:
        right = orjson.loads(wire.send(question))["results"]
    server.kill()
    started = runtime.monotonic()
    server.spawn()
    while runtime.monotonic() - started < RESTART_S_MAX:
        try:
            with Connection(server.port) as wire:
                if orjson.loads(wire.send(question))["results"] == right:
                    return runtime.monotonic() - started
        except (OSError, Unavailable):
            pass
        pause(0.01)
    raise Unavailable(f"no right answer after a restart; its log ends with:\n{server.log_tail()}")


class Searches:
    """One form of search, encoded for every query; `run` asks them all once."""

    def __init__(self, requests: Sequence[bytes], read: Callable[[bytes], list[list[str]]]) -> None:
        self._requests = requests
        self._read = read

    def run(self, server: ServerProcess, rows: Row, truth: Truth) -> Measured:
        """The server's CPU per query, and recall."""
        with Connection(server.port) as wire:
            wire.send(self._requests[0])
            before = server.cpu_s()
            bodies = [wire.send(request) for request in self._requests]
            cpu = server.cpu_s() - before
        found = [[rows[item_id] for item_id in ids] for body in bodies for ids in self._read(body)]
        return Measured(cpu / len(found), recall(found, truth))


def single_json(data: Data, ef: int | None = None, filter_: Filter | None = None) -> Searches:
    """One vector per request, as a JSON list."""
    options: dict[str, object] = {"k": K}
    if ef is not None:
        options["ef"] = ef
    if filter_ is not None:
        options["filter"] = filter_.text
    requests = [
        encoded(
            "POST",
            f"{BASE}/search",
            orjson.dumps({"vector": query, **options}, option=orjson.OPT_SERIALIZE_NUMPY),
        )
        for query in data.queries
    ]
    return Searches(requests, lambda body: [_ids(orjson.loads(body)["results"])])


def single_binary(data: Data, ef: int | None = None) -> Searches:
    """One vector per request, as float32."""
    path = f"{BASE}/search?{urlencode(_options(ef))}"
    requests = [encoded("POST", path, query.tobytes(), BINARY) for query in data.queries]
    return Searches(requests, lambda body: [_ids(orjson.loads(body)["results"])])


def batches(data: Data, ef: int | None = None) -> Searches:
    """32 vectors per request, as float32."""
    requests = [
        _binary_batch(data.queries[start : start + BATCH], _options(ef))
        for start in range(0, len(data.queries), BATCH)
    ]
    return Searches(requests, lambda body: [_ids(hits) for hits in orjson.loads(body)["results"]])


def _options(ef: int | None) -> dict[str, object]:
    return {"k": K} if ef is None else {"k": K, "ef": ef}


def _binary_batch(
    vectors: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]", options: dict[str, object]
) -> bytes:
    path = f"{BASE}/search/batch?{urlencode(options, quote_via=quote)}"
    return encoded("POST", path, vectors.astype("<f4", copy=False).tobytes(), BINARY)


def _ids(hits: Sequence[dict[str, str]]) -> list[str]:
    return [hit["id"] for hit in hits]
