"""Removes what killed builds left in buckets: content that no record names, and that nobody will begin any more.

Each index that is ours is looked at about daily, spread over the day, and soon after a Job of it failed, so that what
it left is marked at once and gone a day later.  When was remembered in memory only: a restart looks again some time
within a day.  What this module does not do: decide what may go (`lakehouse.beginning`).
"""

import asyncio
import contextlib
import logging
from datetime import datetime

from lakehouse import lives
from lakehouse.control.kinds import VECTOR_INDEX
from lakehouse.control.state import Act
from lakehouse.core.errors import LakehouseError
from lakehouse_operator.cache import Key
from lakehouse_operator.looks import Look, Memory
from lakehouse_operator.parts import Parts
from lakehouse_operator.storage import Buckets

logger = logging.getLogger(__name__)

CHECK_S = 60.0
DAY_S = 24 * 3600.0
SWEEP_S = 60.0
"""Most that one index may take; what it has not got to, the next day does."""
BUILDS = (Act.BUILD, Act.RESTORE, Act.REBUILD)


class Sweeper:
    """Keeps the time of each index's next look."""

    def __init__(self, parts: Parts, buckets: Buckets, memory: Memory) -> None:
        self._parts = parts
        self._buckets = buckets
        self._memory = memory
        self._due_s: dict[Key, float] = {}
        """On the monotonic clock."""
        self._failed: dict[Key, datetime] = {}
        """The failure that was last made up for."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = self._parts.runtime.spawn(self._run(), name="sweep")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._parts.runtime.sleep(CHECK_S)
            try:
                await self.sweep_due()
            except Exception:
                logger.exception("cannot sweep: trying again")

    async def sweep_due(self) -> None:
        """Look at the indexes whose time has come, one after the other."""
        there = set(self._parts.cache.keys((VECTOR_INDEX,)))
        for gone in self._due_s.keys() - there:
            del self._due_s[gone]
            self._failed.pop(gone, None)
        for key in there:
            if self._is_due(key):
                await self._sweep(key)

    def _is_due(self, key: Key) -> bool:
        runtime = self._parts.runtime
        now_s = runtime.monotonic()
        due_s = self._due_s.setdefault(key, now_s + DAY_S * runtime.random().random())
        failed = _last_failure(self._memory.of(key[1], key[2]))
        if failed is not None and failed != self._failed.get(key):
            self._failed[key] = failed
            return True
        return now_s >= due_s

    async def _sweep(self, key: Key) -> None:
        self._due_s[key] = self._parts.runtime.monotonic() + DAY_S
        resource = self._parts.cache.parsed(key)
        if resource is None or resource.meta.paused or resource.meta.deletion_requested:
            return
        record = self._memory.of(key[1], key[2]).record
        owner = f"{self._parts.identity}/{key[1]}/{key[2]}"
        if record is not None and record.alive and record.owner != owner:
            return
        store, _ = await self._buckets.of(key[1], resource.spec.storage)
        if store is None:
            return
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_S):
                    await lives.sweep_unnamed(store, self._parts.runtime, key[2])
        except LakehouseError as error:
            logger.warning("leftovers of builds stay. index=%s/%s error=%s", key[1], key[2], error)


def _last_failure(look: Look) -> datetime | None:
    return max((one.at for one in look.failures if one.act in BUILDS), default=None)
