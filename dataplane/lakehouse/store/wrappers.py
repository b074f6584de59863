"""Stores around a store: one measures, one is slow, one fails on purpose.

`FaultyStore` does to its caller what networks, proxies and servers do: refuse, apply and lose the answer,
apply after the caller gave up, answer 404 for what exists, cut or flip what is read, hang.  A plan says which
call gets which fault, so that a run repeats from its seed or its script; other calls cost a microsecond more.
What these do not do: retry, or touch the inner store's objects behind its back.
"""

import asyncio
import contextlib
import enum
import math
import os
import random  # noqa: TID251  for the type only: the generator is given
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from lakehouse.core.errors import LakehouseError, NotFound, Outcome, StorageFull, Unavailable
from lakehouse.runtime import Runtime
from lakehouse.store.base import BytesLike, Children, ObjectInfo, ObjectStore

T = TypeVar("T")
Call = Callable[[], Coroutine[Any, Any, T]]


class Wrapper:
    """Passes every call through `_around`, which subclasses replace."""

    def __init__(self, store: ObjectStore, runtime: Runtime) -> None:
        self._store = store
        self._runtime = runtime

    async def _around(self, operation: str, key: str, call: Call[T]) -> T:
        return await call()

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def exclusive(self) -> bool:
        return self._store.exclusive

    async def create(self, key: str, data: BytesLike) -> None:
        await self._around("create", key, lambda: self._store.create(key, data))

    async def put(self, key: str, data: BytesLike) -> None:
        await self._around("put", key, lambda: self._store.put(key, data))

    async def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        return await self._around("get", key, lambda: self._store.get(key, start, end))

    async def head(self, key: str) -> ObjectInfo:
        return await self._around("head", key, lambda: self._store.head(key))

    async def list(
        self, prefix: str, *, start_after: str = "", limit: int | None = None
    ) -> Sequence[ObjectInfo]:
        return await self._around(
            "list", prefix, lambda: self._store.list(prefix, start_after=start_after, limit=limit)
        )

    async def children(self, prefix: str) -> Children:
        return await self._around("children", prefix, lambda: self._store.children(prefix))

    async def delete(self, key: str) -> None:
        await self._around("delete", key, lambda: self._store.delete(key))

    async def download(self, key: str, path: "os.PathLike[str]") -> ObjectInfo:
        return await self._around("download", key, lambda: self._store.download(key, path))

    async def upload(self, key: str, path: "os.PathLike[str]") -> None:
        await self._around("upload", key, lambda: self._store.upload(key, path))

    async def stream(self, key: str, chunk_bytes: int = 1 << 20) -> AsyncIterator[bytes]:
        """What happens around a stream happens at its first step."""
        chunks = self._store.stream(key, chunk_bytes)
        chunk = await self._around("stream", key, lambda: _next(chunks))
        while chunk is not None:
            yield chunk
            chunk = await _next(chunks)

    async def close(self) -> None:
        await self._store.close()


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)


class StoreObserver(Protocol):
    """Who is told of each call; the server gives one that feeds its metrics."""

    def observe(self, operation: str, outcome: str, seconds: float) -> None:
        """`outcome` is `ok`, `cancelled`, or an error's class in snake case: `conflict`, `not_found`, …"""
        ...


class MeteredStore(Wrapper):
    """Tells the observer of every call: what it was, how it ended, how long it took."""

    def __init__(self, store: ObjectStore, runtime: Runtime, observer: StoreObserver) -> None:
        super().__init__(store, runtime)
        self._observer = observer

    async def _around(self, operation: str, key: str, call: Call[T]) -> T:
        began = self._runtime.monotonic()
        outcome = "ok"
        try:
            return await call()
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception as error:
            outcome = _snake(type(error).__name__)
            raise
        finally:
            self._observer.observe(operation, outcome, self._runtime.monotonic() - began)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


class LatencyStore(Wrapper):
    """Takes `seconds()` longer: half before the call takes effect, half after."""

    def __init__(self, store: ObjectStore, runtime: Runtime, seconds: Callable[[], float]) -> None:
        super().__init__(store, runtime)
        self._seconds = seconds

    async def _around(self, operation: str, key: str, call: Call[T]) -> T:
        half_s = self._seconds() / 2
        await self._runtime.sleep(half_s)
        try:
            return await call()
        finally:
            await self._runtime.sleep(half_s)


class FaultKind(enum.Enum):
    """What can go wrong with one call."""

    REFUSED = "refused"
    """Nothing done, and the caller knows: no connection."""
    ERROR_BEFORE = "error_before"
    """Nothing done; the caller is told `unknown`."""
    ERROR_AFTER = "error_after"
    """Done; the caller is told `unknown`."""
    LATE = "late"
    """The caller is told `unknown`; `late_s` afterwards it is done after all."""
    RACING = "racing"
    """Nothing done: S3's 409, another write of this key is under way."""
    FULL = "full"
    """Nothing done: the store has no room."""
    HANG_BEFORE = "hang_before"
    """Waits for `release()`, then does it."""
    HANG_AFTER = "hang_after"
    """Does it, then waits for `release()` before the caller hears of it."""
    MISSING = "missing"
    """`NotFound` for what may exist: a store that lost its read quorum."""
    TRUNCATED = "truncated"
    """Only the first part of the bytes."""
    BIT_FLIP = "bit_flip"
    """One bit of the bytes differs."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong with one call."""

    kind: FaultKind
    wait_s: float = 0.0
    """How long the caller waits for the bad answer: a timeout."""
    late_s: float = 1.0
    """`LATE`: how long after that answer the call takes effect."""
    at: float = 0.5
    """`TRUNCATED`, `BIT_FLIP`: where, as a fraction of the bytes."""


WRITES = frozenset({"create", "put", "delete", "upload"})
CONTENTS = frozenset({"get", "download"})
LOOKUPS = CONTENTS | {"head", "stream"}
_ANYWHERE = (FaultKind.REFUSED, FaultKind.ERROR_BEFORE, FaultKind.HANG_BEFORE, FaultKind.HANG_AFTER)
_WRITING = (FaultKind.ERROR_AFTER, FaultKind.LATE, FaultKind.FULL)


def kinds_for(operation: str) -> tuple[FaultKind, ...]:
    """The faults that mean something for this operation."""
    kinds: tuple[FaultKind, ...] = _ANYWHERE
    if operation in WRITES:
        kinds += _WRITING
    if operation == "create":
        kinds += (FaultKind.RACING,)
    if operation in LOOKUPS:
        kinds += (FaultKind.MISSING,)
    if operation in CONTENTS:
        kinds += (FaultKind.TRUNCATED, FaultKind.BIT_FLIP)
    return kinds


class FaultPlan(Protocol):
    """Which call gets which fault."""

    def choose(self, operation: str, key: str) -> Fault | None: ...


class RandomFaults:
    """Faults at random, one call in `1 / rate` on average, among the kinds with a positive weight.

    The generator is drawn from only at a fault, so calls without one cost a subtraction.
    """

    def __init__(
        self, chance: random.Random, rate: float, weights: Mapping[FaultKind, float], wait_s_max: float = 1.0
    ) -> None:
        assert 0 <= rate <= 1
        self._chance = chance
        self._rate = rate
        self._weights = dict(weights)
        self._wait_s_max = wait_s_max
        self._calls_left = self._gap()

    def choose(self, operation: str, key: str) -> Fault | None:
        self._calls_left -= 1
        if self._calls_left > 0:
            return None
        self._calls_left = self._gap()
        kinds = [kind for kind in kinds_for(operation) if self._weights.get(kind, 0.0) > 0]
        if not kinds:
            return None
        return Fault(
            self._chance.choices(kinds, [self._weights[kind] for kind in kinds])[0],
            wait_s=self._chance.uniform(0, self._wait_s_max),
            late_s=self._chance.expovariate(1 / self._wait_s_max) if self._wait_s_max else 0.0,
            at=self._chance.random(),
        )

    def _gap(self) -> float:
        """Calls until the next fault, that one included: geometric, with mean `1 / rate`."""
        if self._rate <= 0:
            return float("inf")
        return 1 + int(self._chance.expovariate(-math.log1p(-self._rate))) if self._rate < 1 else 1


@dataclass(slots=True)
class Scripted:
    """A fault for the `nth` call (from 1) of `operation` (`*`: any) whose key matches the expression."""

    operation: str
    key: str
    fault: Fault
    nth: int = 1
    times: int = 1
    """For how many matching calls in a row."""
    seen: int = 0

    def matches(self, operation: str, key: str) -> bool:
        if self.operation not in ("*", operation) or not re.search(self.key, key):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


class ScriptedFaults:
    """Exactly these faults; each script counts the calls that match it, and the first that is due applies."""

    def __init__(self, scripts: Sequence[Scripted]) -> None:
        self.scripts = list(scripts)

    def choose(self, operation: str, key: str) -> Fault | None:
        due = [script.fault for script in self.scripts if script.matches(operation, key)]
        return due[0] if due else None


class FaultyStore(Wrapper):
    """Fails as its plan says; `faults` counts what it did."""

    def __init__(self, store: ObjectStore, runtime: Runtime, plan: FaultPlan) -> None:
        super().__init__(store, runtime)
        self.plan = plan
        self.faults: dict[FaultKind, int] = {}
        self._hanging: list[asyncio.Event] = []
        self._late: set[asyncio.Task[None]] = set()

    def release(self) -> None:
        """Let every hanging call go on."""
        for event in self._hanging:
            event.set()
        self._hanging.clear()

    @property
    def hanging(self) -> int:
        """Calls that wait for `release()`."""
        return len(self._hanging)

    async def settled(self) -> None:
        """Wait until every late effect has happened."""
        while self._late:
            await asyncio.gather(*self._late)

    async def _around(self, operation: str, key: str, call: Call[T]) -> T:
        fault = self.plan.choose(operation, key)
        if fault is None:
            return await call()
        self.faults[fault.kind] = self.faults.get(fault.kind, 0) + 1
        return await self._fail(fault, operation, key, call)

    async def download(self, key: str, path: "os.PathLike[str]") -> ObjectInfo:
        async def call() -> ObjectInfo:
            return await self._store.download(key, path)

        fault = self.plan.choose("download", key)
        if fault is None:
            return await call()
        self.faults[fault.kind] = self.faults.get(fault.kind, 0) + 1
        found = await self._fail(fault, "download", key, call)
        if fault.kind in (FaultKind.TRUNCATED, FaultKind.BIT_FLIP):
            await self._runtime.run_io(_damage_file, fault, Path(path))
        return found

    async def _fail(self, fault: Fault, operation: str, key: str, call: Call[T]) -> T:
        match fault.kind:
            case FaultKind.HANG_BEFORE:
                await self._hang()
                return await call()
            case FaultKind.HANG_AFTER:
                result = await call()
                await self._hang()
                return result
            case FaultKind.TRUNCATED | FaultKind.BIT_FLIP:
                result = await call()
                return cast("T", _damaged(fault, result)) if isinstance(result, bytes) else result
            case FaultKind.ERROR_AFTER:
                with contextlib.suppress(LakehouseError):
                    await call()
            case FaultKind.LATE:
                self._do_later(fault, operation, call)
        if fault.wait_s > 0:
            await self._runtime.sleep(fault.wait_s)
        raise _error(fault.kind, operation, key)

    async def _hang(self) -> None:
        event = asyncio.Event()
        self._hanging.append(event)
        await event.wait()

    def _do_later(self, fault: Fault, operation: str, call: Callable[[], Awaitable[object]]) -> None:
        async def act() -> None:
            await self._runtime.sleep(fault.wait_s + fault.late_s)
            with contextlib.suppress(LakehouseError):  # nobody is left to hear of it
                await call()

        task = self._runtime.spawn(act(), name=f"late {operation}")
        self._late.add(task)
        task.add_done_callback(self._late.discard)


def _error(kind: FaultKind, operation: str, key: str) -> LakehouseError:
    message = f"fault on purpose: {kind.value}. operation=`{operation}` key=`{key}`"
    match kind:
        case FaultKind.MISSING:
            return NotFound(message)
        case FaultKind.FULL:
            return StorageFull(message)
        case FaultKind.REFUSED | FaultKind.RACING:
            return Unavailable(message, outcome=Outcome.NOT_COMMITTED)
        case _:
            return Unavailable(message)


def _damaged(fault: Fault, data: bytes) -> bytes:
    if not data:
        return data
    position = min(int(fault.at * len(data)), len(data) - 1)
    if fault.kind is FaultKind.TRUNCATED:
        return data[:position]
    bit = 1 << int(fault.at * len(data) * 8) % 8
    return data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :]


def _damage_file(fault: Fault, path: Path) -> None:
    """In a new file: the downloaded one may be the inner store's own."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(_damaged(fault, data))
