"""A steady load of adds and searches that keeps a journal of every acknowledgement.

It runs beside the test, over the project's own client with its documented retries, and at the end holds the
index against the journal, bit for bit.  A request that failed after its retries is kept as a failure; its
write is repeated under the same idempotency key until its outcome is known, so that nothing stays open.  What
this does not know: what is done to the cluster meanwhile.
"""

import asyncio
import json
import random
import threading
import time
from collections import Counter
from types import TracebackType

import numpy as np

from e2e.release import Release
from journal import Delete, Journal, Upsert, Value, Verdict, Write
from lakehouse.client import AsyncClient
from lakehouse.core.errors import LakehouseError

WRITERS = 3
READERS = 2
PAUSE_S = 0.05
"""Between two requests of one client: a steady load, not a benchmark."""
PAGE = 500
REPEAT_PAUSE_S = 0.5
CLOCK_SLACK_S = 0.01
"""How exactly the header and two processes' clocks are compared."""


class Load:
    """Clients of one index, in a thread of their own, from `with` to the end of its block.

    `failures` are requests that failed after their documented retries, and searches that missed something
    acknowledged, be it that they said so (`Lakehouse-Staleness`): while the store answers none does.
    """

    def __init__(self, release: Release, index: str, dimension: int, *, seed: int = 1) -> None:
        self.release = release
        self.index = index
        self.dimension = dimension
        self.failures: list[str] = []
        self.answers: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._seed = seed
        self._journals = [Journal() for _ in range(WRITERS)]
        self._steady: dict[str, tuple[list[float], float]] = {}
        """Acknowledged items that no writer touches again, what readers look for: each with the time of that."""
        self._lies: list[str] = []
        """Searches that missed what is older than they said they may be behind."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="load", daemon=True)
        self._crash: BaseException | None = None

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=120)
        if error is None:
            assert not self._thread.is_alive(), "the load did not end"
            if self._crash is not None:
                raise AssertionError("the load broke") from self._crash

    @property
    def acknowledged(self) -> int:
        return self.answers["write"]

    def wait_for(self, more: int, *, seconds: float = 60.0) -> None:
        """Until so many more writes were acknowledged."""
        target = self.acknowledged + more
        deadline = time.monotonic() + seconds
        while self.acknowledged < target:
            assert self._thread.is_alive(), f"the load ended early: {self._crash!r}"
            assert time.monotonic() < deadline, (
                f"{self.acknowledged} of {target} writes; {self.failures[-3:]}"
            )
            time.sleep(0.2)

    def check(self) -> int:
        """Hold what the index has, and what searches said, against every journal; the number of items.

        After the block.
        """
        assert self._lies == []
        stored = self._read_all()
        for number, journal in enumerate(self._journals):
            mine = {key: value for key, value in stored.items() if key.startswith(f"w{number}-")}
            journal.settle(mine)
        return len(stored)

    # --- in the thread

    def _main(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as error:  # noqa: BLE001  carried over to the test
            self._crash = error

    async def _all(self) -> None:
        async with AsyncClient(self.release.url, api_key=self.release.keys["write"]) as client:
            writers = [self._write(client, number) for number in range(WRITERS)]
            readers = [self._read(client, number) for number in range(READERS)]
            await asyncio.gather(*writers, *readers)

    async def _write(self, client: AsyncClient, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        journal = self._journals[number]
        count = 0
        while not self._stop.is_set():
            count += 1
            write = self._next(rng, journal, f"w{number}-{count}")
            await self._until_known(client, journal, write, f"{self._seed}-{number}-{count}-{rng.random()}")
            await asyncio.sleep(PAUSE_S)

    def _next(self, rng: random.Random, journal: Journal, name: str) -> Write:
        known = [key for key in journal.present() if key not in self._steady]
        if len(known) > 20 and rng.random() < 0.2:
            return Delete(tuple(rng.sample(known, rng.randint(1, 10))))
        ids = rng.sample(known, min(len(known), 3)) if rng.random() < 0.3 else []
        ids += [f"{name}-{item}" for item in range(rng.randint(1, 8))]
        vectors = np.random.default_rng(rng.getrandbits(32)).standard_normal((len(ids), self.dimension))
        rows = vectors.astype("<f4")
        metadata = json.dumps({"by": name}, separators=(",", ":"))
        return Upsert(tuple((key, row.tobytes(), metadata) for key, row in zip(ids, rows, strict=True)))

    async def _until_known(self, client: AsyncClient, journal: Journal, write: Write, key: str) -> None:
        """Send it until it is acknowledged, or until the end with the outcome open."""
        journal.record(write, Verdict.UNKNOWN)
        while True:
            began = time.monotonic()
            try:
                await self._send(client, write, key)
            except LakehouseError as error:
                self.failures.append(f"write after {time.monotonic() - began:.1f} s: {error!r}")
                if self._stop.is_set():
                    return
                await asyncio.sleep(REPEAT_PAUSE_S)
                continue
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            journal.confirm_last()
            self.answers["write"] += 1
            if isinstance(write, Upsert):
                item, vector, _ = write.items[-1]
                if item.endswith("-0"):
                    self._steady[item] = np.frombuffer(vector, "<f4").tolist(), time.monotonic()
            return

    async def _send(self, client: AsyncClient, write: Write, key: str) -> None:
        if isinstance(write, Delete):
            await client.delete(self.index, list(write.ids), idempotency_key=key)
            return
        rows = np.stack([np.frombuffer(vector, "<f4") for _, vector, _ in write.items])
        metadata = [json.loads(text or "{}") for _, _, text in write.items]
        await client.add(self.index, list(write.ids), rows, metadata, idempotency_key=key)

    async def _read(self, client: AsyncClient, number: int) -> None:
        rng = random.Random(f"{self._seed} reader {number}")
        while not self._stop.is_set():
            await asyncio.sleep(PAUSE_S)
            if not self._steady:
                continue
            wanted = rng.choice(list(self._steady))
            vector, acknowledged_at = self._steady[wanted]
            began = time.monotonic()
            try:
                found = await client.search(self.index, vector, k=3)
            except LakehouseError as error:
                self.failures.append(f"search after {time.monotonic() - began:.1f} s: {error!r}")
                await asyncio.sleep(REPEAT_PAUSE_S)
                continue
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.answers["search"] += 1
            if wanted not in [match.id for match in found]:
                age = began - acknowledged_at
                missed = f"not found: {wanted}, acknowledged {age:.3f} s before; {found.stale_s:.3f} s behind"
                self.failures.append(missed)
                if age > found.stale_s + CLOCK_SLACK_S:
                    self._lies.append(missed)

    def _read_all(self) -> dict[str, Value]:
        stored: dict[str, Value] = {}
        with self.release.client() as client:
            after: str | None = None
            while True:
                page = client.scroll(self.index, after=after, limit=PAGE, include=["vectors", "metadata"])
                for item in page.items:
                    assert item.vector is not None
                    text = json.dumps(item.metadata, separators=(",", ":")) if item.metadata else ""
                    stored[item.id] = Value(item.vector.astype("<f4").tobytes(), text)
                after = page.after
                if after is None:
                    return stored
