"""A world in one thread: virtual time, processes that crash and stall, and a bucket that loses answers.

Everything that happens follows from the seed, so a failure is repeated by running its seed again.  The engine under
test is the real one; only its runtime and its store's behaviour are the world's.
What it does not do: say what must hold (`lakehouse.testing.history`).
"""

import asyncio
import enum
import os
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from lakehouse.core.errors import NotFound, Outcome, Unavailable
from lakehouse.engine_settings import EngineSettings
from lakehouse.index.settings import IndexSettings
from lakehouse.indexes import Indexes
from lakehouse.store.base import BytesLike, Children, ObjectInfo
from lakehouse.store.memory import MemoryStore

P = ParamSpec("P")
T = TypeVar("T")

WORK_S = 0.002
"""Mean virtual seconds of a worker's job."""
GENESIS = datetime(2024, 1, 1, tzinfo=UTC)


class Stuck(AssertionError):
    """Nothing is ready and no timer is set: the world has deadlocked."""


class _VirtualSelector:
    """Waits by moving the clock."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stuck("every task waits for another")
        self._loop.now_s += timeout
        return []

    def close(self) -> None:
        """Nothing to close."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop whose clock jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._selector = _VirtualSelector(self)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now_s

    def _process_events(self, event_list: list[Any]) -> None:
        """There is no I/O here."""

    def _write_to_self(self) -> None:
        """There is no other thread to be woken from."""


class SimRuntime:
    """A `Runtime` on virtual time; its workers are steps of the one thread, its tasks end with their process."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.tasks: set[asyncio.Task[Any]] = set()

    def now(self) -> datetime:
        return GENESIS + timedelta(seconds=asyncio.get_running_loop().time())

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def uuid(self) -> uuid.UUID:
        return uuid.UUID(int=self._random.getrandbits(128), version=4)

    def random(self) -> random.Random:
        return self._random

    async def run_cpu(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn` here, but let others go on before and after, as they would beside a worker."""
        await asyncio.sleep(self._random.expovariate(1 / WORK_S))
        result = fn(*args, **kwargs)
        await asyncio.sleep(0)
        return result

    run_background = run_cpu
    run_io = run_cpu

    def spawn(self, coro: Coroutine[Any, Any, T], *, name: str) -> "asyncio.Task[T]":
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def close(self) -> None:
        """There are no workers."""


class Fault(enum.Enum):
    """What a store call may do instead of working."""

    NONE = enum.auto()
    REFUSED = enum.auto()
    """Certainly not applied: a 409, or no connection."""
    LOST_REQUEST = enum.auto()
    """Not applied, but the caller cannot know."""
    LOST_ANSWER = enum.auto()
    """Applied, then a reset, a timeout or a 5xx."""
    LATE = enum.auto()
    """The caller gives up; it is applied later."""
    MISSING = enum.auto()
    """A GET answers 404 for an object that exists (a missed read quorum)."""


@dataclass
class Weather:
    """How often each fault strikes, and how long calls take (seconds, exponential)."""

    latency_s: float = 0.005
    late_s: float = 2.0
    chances: dict[Fault, float] = field(default_factory=dict)

    def fault(self, source: random.Random, operation: str) -> Fault:
        roll = source.random()
        for fault, chance in self.chances.items():
            if roll < chance:
                return fault if fault is not Fault.MISSING or operation == "get" else Fault.NONE
            roll -= chance
        return Fault.NONE


@dataclass(eq=False)
class Hold:
    """Stops the first matching store call before it takes effect, until `release()`."""

    process: str
    operation: str
    key_part: str
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def matches(self, process: str, operation: str, key: str) -> bool:
        return (
            not self.reached.is_set()
            and process == self.process
            and operation == self.operation
            and self.key_part in key
        )

    def release(self) -> None:
        self.released.set()


@dataclass
class Strike:
    """One fault for the first matching store call."""

    process: str
    operation: str
    key_part: str
    fault: Fault


class World:
    """One bucket, its weather, and the processes that use it."""

    def __init__(self, seed: int, settings: EngineSettings | None = None) -> None:
        self.random = random.Random(seed)
        self.bucket = MemoryStore(exclusive=False)
        self.weather = Weather()
        self.holds: list[Hold] = []
        self.strikes: list[Strike] = []
        self.settings = settings or simulated_settings()
        self.processes: list[Process] = []
        self._late: set[asyncio.Task[None]] = set()

    def start(self, name: str) -> "Process":
        """A new process with nothing in memory."""
        process = Process(self, name)
        self.processes.append(process)
        return process

    def hold(self, process: "Process", operation: str, key_part: str) -> Hold:
        """Stop a process's next matching call before it takes effect."""
        hold = Hold(process.name, operation, key_part)
        self.holds.append(hold)
        return hold

    def strike(self, process: "Process", operation: str, key_part: str, fault: Fault) -> None:
        """Let a process's next matching call fail in this way, whatever the weather."""
        self.strikes.append(Strike(process.name, operation, key_part, fault))

    def fault(self, process: str, operation: str, key: str) -> Fault:
        """What happens to a call: a planned strike, else what the weather brings."""
        for strike in self.strikes:
            if strike.process == process and strike.operation == operation and strike.key_part in key:
                self.strikes.remove(strike)
                return strike.fault
        return self.weather.fault(self.random, operation)

    def calm(self) -> None:
        """No more faults; everything held goes on."""
        self.weather = Weather()
        for hold in self.holds:
            hold.release()
        for process in self.processes:
            process.resume()

    def later(self, effect: Callable[[], Awaitable[object]], delay_s: float) -> None:
        """Apply an effect whose caller has given up."""

        async def run() -> None:
            await asyncio.sleep(delay_s)
            try:
                await effect()
            except (Unavailable, NotFound):
                return
            except Exception:  # noqa: BLE001  nobody waits for this answer
                return

        task = asyncio.get_running_loop().create_task(run(), name="late")
        self._late.add(task)
        task.add_done_callback(self._late.discard)


def simulated_settings() -> EngineSettings:
    """Small numbers, so that short histories meet every rule: snapshots and garbage after a few entries."""
    return EngineSettings(
        index=IndexSettings(),
        write_deadline_s=4.0,
        read_deadline_s=1.0,
        snapshot_log_entries=4,
        settle_after_s=0.2,
    )


class Process:
    """One server: its own memory, its own view of the bucket, and a life that can end at any await."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.runtime = SimRuntime(world.random.getrandbits(64))
        self.store = SimStore(world, self)
        self.indexes = Indexes(self.store, self.runtime, world.settings)
        self.alive = True
        self.creating: dict[str, bytes] = {}
        """What it last asked the store to create, by key: it may land whatever becomes of the process."""
        self._running = asyncio.Event()
        self._running.set()

    def run(self, coro: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Do something inside this process: it ends with it."""
        return self.runtime.spawn(coro, name=f"{self.name} request")

    def pause(self) -> None:
        """SIGSTOP: calls under way neither take effect nor return."""
        self._running.clear()

    def resume(self) -> None:
        self._running.set()

    async def running(self) -> None:
        await self._running.wait()

    def crash(self) -> None:
        """SIGKILL."""
        self.alive = False
        self.resume()
        for task in list(self.runtime.tasks):
            task.cancel()


class SimStore:
    """A process's connection to the bucket."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._bucket = world.bucket

    @property
    def url(self) -> str:
        return "sim:"

    @property
    def exclusive(self) -> bool:
        return False

    async def _call(self, operation: str, key: str, effect: Callable[[], Coroutine[Any, Any, T]]) -> T:
        world = self._world
        await self._delay(operation, key)
        fault = world.fault(self._process.name, operation, key)
        if fault is Fault.REFUSED:
            raise Unavailable("simulated: refused", outcome=Outcome.NOT_COMMITTED)
        if fault is Fault.LOST_REQUEST:
            raise Unavailable("simulated: no answer")
        if fault is Fault.LATE:
            world.later(effect, world.random.expovariate(1 / world.weather.late_s))
            raise Unavailable("simulated: no answer yet")
        if fault is Fault.MISSING:
            raise NotFound(f"simulated: no such object. key=`{key}`")
        answer = await effect()
        await self._delay("answer", key)
        if fault is Fault.LOST_ANSWER:
            raise Unavailable("simulated: answer lost")
        return answer

    async def _delay(self, operation: str, key: str) -> None:
        world, process = self._world, self._process
        await asyncio.sleep(world.random.expovariate(1 / world.weather.latency_s))
        await process.running()
        for hold in world.holds:
            if hold.matches(process.name, operation, key):
                hold.reached.set()
                await hold.released.wait()
        if not process.alive:
            raise Unavailable("simulated: this process is dead")

    async def create(self, key: str, data: BytesLike) -> None:
        self._process.creating[key] = bytes(data)
        await self._call("create", key, lambda: self._bucket.create(key, data))

    async def put(self, key: str, data: BytesLike) -> None:
        await self._call("put", key, lambda: self._bucket.put(key, data))

    async def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        return await self._call("get", key, lambda: self._bucket.get(key, start, end))

    async def head(self, key: str) -> ObjectInfo:
        return await self._call("head", key, lambda: self._bucket.head(key))

    async def list(
        self, prefix: str, *, start_after: str = "", limit: int | None = None
    ) -> Sequence[ObjectInfo]:
        return await self._call(
            "list", prefix, lambda: self._bucket.list(prefix, start_after=start_after, limit=limit)
        )

    async def children(self, prefix: str) -> Children:
        return await self._call("list", prefix, lambda: self._bucket.children(prefix))

    async def delete(self, key: str) -> None:
        await self._call("delete", key, lambda: self._bucket.delete(key))

    async def download(self, key: str, path: "os.PathLike[str]") -> ObjectInfo:
        return await self._call("get", key, lambda: self._bucket.download(key, path))

    async def upload(self, key: str, path: "os.PathLike[str]") -> None:
        await self._call("put", key, lambda: self._bucket.upload(key, path))

    async def stream(self, key: str, chunk_bytes: int = 1 << 20) -> AsyncIterator[bytes]:
        yield await self.get(key)

    async def close(self) -> None:
        """Nothing to close."""


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run one world to its end on a loop of its own."""
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main())
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(_settled(loop))
        asyncio.set_event_loop(None)
        loop.close()


async def _settled(loop: VirtualLoop) -> None:
    rest = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
    if rest:
        await asyncio.wait(rest)
    for task in rest:
        if not task.cancelled():
            task.exception()
