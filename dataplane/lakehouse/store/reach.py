"""Whether a process reaches its store: what its own requests have met since one was last answered.

To list, to get, to put and to delete are told apart, since keys may do one and not another.  A request that fails once
and is repeated well is nothing to tell of: trouble is what lasts for `LASTS_S` over two failures, or `SILENT_S` without
an answer.  An answer may be a no: what is not there, or there already, was asked for and found out; so was that a store
is full.  What this module does not do: repeat a request by itself; who wants to know soon waits for `doubted` and calls
`try_again`.
"""

import asyncio
import contextlib
import enum
from collections.abc import Awaitable, Iterator
from typing import TypeVar

from lakehouse.core.errors import Conflict, Invalid, LakehouseError, NotFound, StorageFull, Unavailable
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore
from lakehouse.store.probe import PROBE
from lakehouse.store.wrappers import Call, Wrapper

T = TypeVar("T")


class Right(enum.StrEnum):
    """What keys may allow."""

    LIST = "list"
    GET = "get"
    PUT = "put"
    DELETE = "delete"


RIGHTS = {
    "list": Right.LIST,
    "children": Right.LIST,
    "get": Right.GET,
    "head": Right.GET,
    "download": Right.GET,
    "stream": Right.GET,
    "create": Right.PUT,
    "put": Right.PUT,
    "upload": Right.PUT,
    "delete": Right.DELETE,
}
"""What each operation of a store needs."""
LASTS_S = 1.0
"""Two failures closer together may have met one connection that ended."""
SILENT_S = 2.0
"""After one failure without an answer: a connection's time limit."""
PENDING_S = 3.0
"""A LIST that has not come back by then counts as failed: it gives up only after 10 s of silence."""
TRY_S = 3.0
"""Patience with what is tried again; the next attempt may go over a connection that is alive."""
MESSAGE_MAX = 300
"""Characters: it goes into statuses."""


class Way:
    """One way to use a store, and what it met since it was last answered."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._answered_s = float("-inf")
        self._since_s = self._until_s = 0.0
        """When the first of the failed requests began, and the last one ended."""
        self._error: LakehouseError | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether the newest request failed."""
        return self._error is not None

    def answered(self) -> None:
        self._error, self._answered_s = None, self._runtime.monotonic()

    def failed(self, began_s: float, error: LakehouseError) -> None:
        """A request that began then was not answered; one that others have overtaken counts from now on."""
        now_s = self._runtime.monotonic()
        if self._error is None:
            self._since_s = began_s if began_s >= self._answered_s else now_s
        if type(self._error) is not type(error):  # one trouble keeps its words: they go into statuses
            self._error = error
        self._until_s = now_s

    @property
    def trouble(self) -> str:
        """What keeps it from being used; empty when nothing does."""
        if self._error is None:
            return ""
        silent_s = self._runtime.monotonic() - self._since_s
        if self._until_s - self._since_s < LASTS_S and silent_s < SILENT_S:
            return ""
        return self._error.message[:MESSAGE_MAX]


class Reach:
    """What a process knows of its store."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._ways = {right: Way(runtime) for right in Right}
        self.doubted = asyncio.Event()
        """Set when a request fails after one that was answered; whoever waits for it clears it."""
        self._pending: dict[object, float] = {}
        """LISTs under way, and since when."""
        self._key = f"{PROBE}{runtime.uuid().hex}"

    @property
    def in_doubt(self) -> bool:
        """Whether the newest request of some kind failed."""
        return any(way.in_doubt for way in self._ways.values())

    @property
    def trouble(self) -> str:
        """What keeps this process from its store; empty when nothing does."""
        silent_s = self._runtime.monotonic() - min(self._pending.values(), default=float("inf"))
        silent = f"the store has not answered a list for {PENDING_S:g} s" if silent_s >= PENDING_S else ""
        return next((way.trouble for way in self._ways.values() if way.trouble), silent)

    @contextlib.contextmanager
    def asking(self, operation: str) -> Iterator[None]:
        """Around a request; takes note of how it ends."""
        way, began_s, request = self._ways[RIGHTS[operation]], self._runtime.monotonic(), object()
        if operation == "list":
            self._pending[request] = began_s
        try:
            yield
        except (NotFound, Conflict, StorageFull):
            way.answered()
            raise
        except (Unavailable, Invalid) as error:
            if not way.in_doubt:
                self.doubted.set()
            way.failed(began_s, error)
            raise
        else:
            way.answered()
        finally:
            self._pending.pop(request, None)

    async def try_again(self, store: ObjectStore) -> None:
        """Ask for what failed and may not be asked for soon otherwise: to get, to put, to delete.  Raises nothing.

        `store` takes note of it here.  Under one key per process: without the right to delete, no more stays behind.
        """
        doubted = {right for right, way in self._ways.items() if way.in_doubt}
        attempts: list[Awaitable[object]] = []
        if Right.GET in doubted:
            attempts.append(store.get(self._key))
        if doubted & {Right.PUT, Right.DELETE}:
            attempts.append(self._write(store))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TRY_S):
                await asyncio.gather(*attempts, return_exceptions=True)

    async def _write(self, store: ObjectStore) -> None:
        await store.put(self._key, b"")
        await store.delete(self._key)


class ReachedStore(Wrapper):
    """Tells a `Reach` of every call."""

    def __init__(self, store: ObjectStore, runtime: Runtime, reach: Reach) -> None:
        super().__init__(store, runtime)
        self._reach = reach

    async def _around(self, operation: str, key: str, call: Call[T]) -> T:
        with self._reach.asking(operation):
            return await call()
