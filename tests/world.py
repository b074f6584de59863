"""Clients that write to a real server from all sides, and hold their journals against it after it ended.

Each client writes over ids of its own; a merger moves a fresh index into the main one meanwhile; snapshots
are forced.  A life ends after a random number of acknowledgements, by whatever the test does to the server:
no clock decides what happens.  After a restart every journal must explain what is stored, bit for bit.
"""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from journal import UNKNOWN_MAX, Delete, Journal, Upsert, Value, Verdict, Write
from live_server import LiveServer
from lives import Lives

DIMENSION = 8
WRITERS = 6
FRESH_WRITERS = 2
IDS_PER_WRITER_MAX = 1_500
"""Above it a writer deletes, so a soak's index stays small enough to be read whole after every kill."""
ACKS_PER_LIFE_MAX = 150
LIFE_S_MAX = 60.0
"""A server that acknowledges too little in this time is killed anyway, and the test then fails saying so."""
MAIN, FRESH = "main", "fresh"


@dataclass
class Tally:
    """What a run did; printed, and checked for having done anything."""

    answers: Counter[str] = field(default_factory=Counter)
    background: Counter[str] = field(default_factory=Counter)
    """Segments built, snapshots taken, slots collected: what the kills interrupted."""
    happened: int = 0
    did_not: int = 0


class Client:
    """Sends one write at a time and knows what to make of the answer."""

    def __init__(self, http: httpx.AsyncClient, tally: Tally) -> None:
        self.http = http
        self.tally = tally

    async def write(self, path: str, body: Mapping[str, Any], key: str | None = None) -> Verdict:
        """POST `body` and say what the answer, or its absence, means."""
        headers = {"Idempotency-Key": key} if key else {}
        try:
            response = await self.http.post(f"/v1/vectors/index/{path}", json=body, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            self.tally.answers["never sent"] += 1
            return Verdict.REFUSED
        except httpx.TransportError:
            self.tally.answers["no answer"] += 1
            return Verdict.UNKNOWN
        return self._verdict(response)

    def _verdict(self, response: httpx.Response) -> Verdict:
        status = response.status_code
        if status == 503:
            outcome = response.json()["outcome"]
            self.tally.answers[outcome] += 1
            assert outcome in ("not_committed", "unknown")
            return Verdict.UNKNOWN if outcome == "unknown" else Verdict.REFUSED
        self.tally.answers[str(status)] += 1
        if status == 200:
            return Verdict.COMMITTED
        assert 400 <= status < 500, f"{status} {response.text}"
        return Verdict.REFUSED


class Writer:
    """Adds, upserts, deletes and sends nonsense over its own ids of one index.

    One that feeds a merge does not delete, since a deleted item may have been moved, and always gives metadata,
    since what it would keep may have been moved too.  It upserts only when merges overwrite.
    """

    def __init__(
        self, name: str, index: str, rng: random.Random, *, feeds: bool = False, upserts: bool = True
    ) -> None:
        self.name = name
        self.index = index
        self.journal = Journal()
        self._rng = rng
        self._feeds = feeds
        self._upserts = upserts
        self._ids = 0
        self._retry: tuple[Write, str] | None = None
        """The last write and its idempotency key, while its outcome is unknown."""

    async def step(self, client: Client) -> Verdict:
        """One write, chosen by chance."""
        kind = self._rng.random()
        known = list(self.journal.present()) if self._upserts else []
        if kind < 0.05:
            return await self._nonsense(client)
        if known and not self._feeds and (kind < 0.2 or len(known) > IDS_PER_WRITER_MAX):
            ids = self._rng.sample(known, self._rng.randint(1, min(len(known), 400)))
            return await self._send(client, Delete(tuple(ids)))
        if known and kind < 0.45:
            ids = self._rng.sample(known, self._rng.randint(1, min(len(known), 40)))
            return await self._send(client, self._upsert(ids))
        return await self._send(
            client, self._upsert([self._new_id() for _ in range(self._rng.randint(1, 40))])
        )

    async def settle_retry(self, client: Client) -> None:
        """Repeat the write whose answer never came, with its key: one write, had it happened or not."""
        if self._retry is None:
            return
        write, key = self._retry
        self._retry = None
        if self._rng.random() < 0.5:
            return
        verdict = await self._post(client, write, key)
        assert verdict is Verdict.COMMITTED, f"a repeated write was answered {verdict}"
        self.journal.confirm_last()

    def settle(self, contents: Mapping[str, Value]) -> tuple[int, int]:
        self._retry = None
        return self.journal.settle({k: v for k, v in contents.items() if k.startswith(f"{self.name}-")})

    async def _send(self, client: Client, write: Write) -> Verdict:
        key = f"{self.name}:{self._rng.getrandbits(64):x}"
        verdict = await self._post(client, write, key)
        self.journal.record(write, verdict)
        self._retry = (write, key) if verdict is Verdict.UNKNOWN else None
        return verdict

    async def _post(self, client: Client, write: Write, key: str) -> Verdict:
        if isinstance(write, Delete):
            return await client.write(f"{self.index}/delete", {"ids": list(write.ids)}, key)
        return await client.write(
            f"{self.index}/add", {"items": [_item_json(*item) for item in write.items]}, key
        )

    async def _nonsense(self, client: Client) -> Verdict:
        """A batch whose last item is wrong: nothing of it may ever be seen."""
        write = self._upsert([self._new_id() for _ in range(3)])
        items = [_item_json(*item) for item in write.items]
        items[-1]["vector"] = [0.0] * self._rng.choice([DIMENSION, DIMENSION - 1, DIMENSION + 1])
        verdict = await client.write(f"{self.index}/add", {"items": items})
        assert verdict is not Verdict.COMMITTED, f"nonsense was acknowledged: {items[-1]}"
        # Whatever the answer, or none: it must not be there, so the journal does not learn of it.
        return verdict

    def _upsert(self, ids: list[str]) -> Upsert:
        return Upsert(tuple((item_id, self._vector(), self._metadata()) for item_id in ids))

    def _new_id(self) -> str:
        self._ids += 1
        return f"{self.name}-{self._ids}"

    def _vector(self) -> bytes:
        return np.array([self._rng.gauss(0, 1) for _ in range(DIMENSION)], dtype=np.float32).tobytes()

    def _metadata(self) -> str | None:
        """Mostly new metadata; sometimes none, which keeps what is stored, or empty, which clears it."""
        kind = self._rng.random()
        if kind < 0.1 and not self._feeds:
            return None
        return "" if kind < 0.2 else _canonical({"n": self._rng.randrange(1 << 40), "t": "åß\u2028"})


class World:
    """The clients of one run, and what they hold against the server after each restart."""

    def __init__(self, server: LiveServer, seed: int) -> None:
        self.server = server
        self.rng = random.Random(seed)
        self.tally = Tally()
        self.overwrites = self.rng.random() < 0.5
        """Whether merges overwrite what the main index has; then the fresh index also takes new versions."""
        self.writers = [Writer(f"w{n}", MAIN, self._chance()) for n in range(WRITERS)]
        self.fresh = [
            Writer(f"m{n}", FRESH, self._chance(), feeds=True, upserts=self.overwrites)
            for n in range(FRESH_WRITERS)
        ]
        self.lives = Lives(self._chance())
        self.merged: set[str] = set()
        """Ids once seen in the main index that came by a merge; nobody deletes them there."""

    def _chance(self) -> random.Random:
        return random.Random(self.rng.getrandbits(64))

    async def create(self) -> None:
        async with self._http() as http:
            for name in (MAIN, FRESH):
                response = await http.post("/v1/vectors/index", json={"name": name, "dimension": DIMENSION})
                assert response.status_code == 201, response.text

    async def life(self, end: Callable[[], object]) -> None:
        """Write from all sides until `end` ends the server under the clients."""
        acknowledged = asyncio.Event()
        wanted = self.rng.randint(1, ACKS_PER_LIFE_MAX)
        acks = 0

        def count(verdict: Verdict) -> None:
            nonlocal acks
            acks += verdict is Verdict.COMMITTED
            if acks >= wanted:
                acknowledged.set()

        async with self._http() as http, asyncio.TaskGroup() as tasks:
            client = Client(http, self.tally)
            for writer in (*self.writers, *self.fresh):
                tasks.create_task(self._write_until_gone(writer, client, count))
            tasks.create_task(self._merge_until_gone(client))
            tasks.create_task(self._snapshot_until_gone(client))
            tasks.create_task(self._live_until_gone(http))
            try:
                async with asyncio.timeout(LIFE_S_MAX):
                    await acknowledged.wait()
            except TimeoutError:
                raise AssertionError(f"{acks} of {wanted} writes acknowledged in {LIFE_S_MAX} s") from None
            finally:
                await self._note_background(http)
                # Not always right after an answer: somewhere in the next few milliseconds.
                await asyncio.sleep(self.rng.uniform(0, 0.03))
                died = self.server.process.poll()
                await asyncio.to_thread(end)
            assert died is None, f"the server ended by itself with {died}\n{self.server.log_tail()}"

    async def _write_until_gone(self, writer: Writer, client: Client, count: Any) -> None:
        while self._alive() and writer.journal.unknown < UNKNOWN_MAX:
            count(await writer.step(client))

    async def _merge_until_gone(self, client: Client) -> None:
        rng = self._chance()
        while self._alive():
            body: dict[str, Any] = {"dest": MAIN, "clear_source": rng.random() < 0.8}
            if self.overwrites:
                body["on_conflict"] = "replace"
            await client.write(f"{FRESH}/merge", body)
            await asyncio.sleep(rng.uniform(0, 0.1))

    async def _snapshot_until_gone(self, client: Client) -> None:
        rng = self._chance()
        while self._alive():
            await asyncio.sleep(rng.uniform(0, 0.3))
            await client.write(f"{rng.choice([MAIN, FRESH])}/snapshot", {})

    async def _note_background(self, http: httpx.AsyncClient) -> None:
        with contextlib.suppress(httpx.TransportError):
            stats = (await http.get(f"/v1/vectors/index/{MAIN}/stats")).json()
            for name in ("builds", "snapshots", "slots_collected"):
                self.tally.background[name] += sum(shard[name] for shard in stats["shards"])

    async def _live_until_gone(self, http: httpx.AsyncClient) -> None:
        while self._alive() and await self.lives.step(http):
            pass

    def _alive(self) -> bool:
        return self.server.process.poll() is None

    async def restart(self) -> None:
        """Start again, with small engine numbers or the usual ones; sometimes kill it while it recovers."""
        while self.rng.random() < 0.3:
            self.server.small = self.rng.random() < 0.5
            self.server.spawn()
            await asyncio.sleep(self.rng.uniform(0, 1.5))
            self.server.kill()
        self.server.small = self.rng.random() < 0.5
        self.server.start()

    async def check(self, *, retry: bool = True) -> None:
        """Every journal explains what is stored, and every count agrees with it.

        `retry` repeats half of the writes that were never answered, under their idempotency keys.
        """
        async with self._http() as http:
            client = Client(http, self.tally)
            # A write first: it fences whatever the killed process may still have on its way to the store.
            for index in (MAIN, FRESH):
                barrier = {"items": [{"id": "barrier", "vector": [1.0] * DIMENSION}]}
                assert await client.write(f"{index}/add", barrier) is Verdict.COMMITTED
            for writer in (*self.writers, *self.fresh) if retry else ():
                await writer.settle_retry(client)
            main, fresh = await _contents(http, MAIN), await _contents(http, FRESH)
            await self._spot_check(http, main)
            await self.lives.check(http)
        for writer in self.writers:
            self._settle(writer, main)
        moved = {k: v for k, v in main.items() if k.startswith("m")}
        if not self.overwrites:
            differing = [k for k in moved.keys() & fresh.keys() if moved[k] != fresh[k]]
            assert not differing, f"merged items differ from their source: {differing[:5]}"
        lost = self.merged - moved.keys()
        assert not lost, f"merged items are gone from the destination: {sorted(lost)[:5]}"
        self.merged = set(moved)
        for writer in self.fresh:
            # What is still in the fresh index is at least as new as what was moved.
            self._settle(writer, {**moved, **fresh})
        foreign = {k.split("-")[0] for k in (*main, *fresh)} - {w.name for w in (*self.writers, *self.fresh)}
        assert foreign <= {"barrier"}, f"ids nobody sent: {foreign}"

    def _settle(self, writer: Writer, contents: Mapping[str, Value]) -> None:
        happened, did_not = writer.settle(contents)
        self.tally.happened += happened
        self.tally.did_not += did_not

    async def _spot_check(self, http: httpx.AsyncClient, main: Mapping[str, Value]) -> None:
        """Some items by id and by search: the other ways to read agree with the listing."""
        for item_id in self.rng.sample(sorted(main), min(5, len(main))):
            response = await http.get(f"/v1/vectors/index/{MAIN}/items/{item_id}")
            assert response.status_code == 200, response.text
            assert _value(response.json()) == main[item_id]
            query = {"vector": _floats(main[item_id].vector), "k": 1}
            hits = (await http.post(f"/v1/vectors/index/{MAIN}/search", json=query)).json()["results"]
            assert abs(hits[0]["distance"]) < 1e-5, f"{item_id} is not its own nearest neighbour: {hits}"

    @contextlib.asynccontextmanager
    async def _http(self) -> AsyncIterator[httpx.AsyncClient]:
        limits = httpx.Limits(max_connections=WRITERS + FRESH_WRITERS + 3)
        async with httpx.AsyncClient(base_url=self.server.url, timeout=60, limits=limits) as http:
            yield http


async def _contents(http: httpx.AsyncClient, index: str) -> dict[str, Value]:
    """Everything in `index`, and the index's own counts held against it."""
    contents: dict[str, Value] = {}
    after: str | None = None
    while True:
        body = {"limit": 1_000, "include": ["vectors", "metadata"], "after": after}
        response = await http.post(f"/v1/vectors/index/{index}/scroll", json=body)
        assert response.status_code == 200, response.text
        page = response.json()
        for item in page["items"]:
            assert item["id"] not in contents, f"{item['id']} is listed twice"
            contents[item["id"]] = _value(item)
        after = page["after"]
        if after is None:
            break
    length = (await http.get(f"/v1/vectors/index/{index}")).json()["length"]
    count = (await http.post(f"/v1/vectors/index/{index}/count", json={})).json()["count"]
    assert length == count == len(contents)
    return contents


def _value(item: Mapping[str, Any]) -> Value:
    vector = np.array(item["vector"], dtype=np.float32)
    metadata = item.get("metadata")
    return Value(vector.tobytes(), _canonical(metadata) if metadata else "")


def _item_json(item_id: str, vector: bytes, metadata: str | None) -> dict[str, Any]:
    item: dict[str, Any] = {"id": item_id, "vector": _floats(vector)}
    if metadata is not None:
        item["metadata"] = json.loads(metadata) if metadata else {}
    return item


def _floats(vector: bytes) -> list[float]:
    return [float(x) for x in np.frombuffer(vector, dtype=np.float32)]


def _canonical(metadata: Any) -> str:
    return json.dumps(metadata, sort_keys=True)
