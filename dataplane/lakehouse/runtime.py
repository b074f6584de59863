"""The only door to clocks, chance, ids and workers.

Everything else takes a `Runtime`, so the simulator can own time and every run can be repeated from a seed.
What it does not do: storage (`lakehouse.store`) and sockets (`lakehouse.server`).
"""

import asyncio
import contextlib
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Runtime(Protocol):
    """Time, chance, ids and workers."""

    def now(self) -> datetime:
        """Wall-clock time, UTC.  For people and logs; no decision about safety may depend on it."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    def uuid(self) -> uuid.UUID: ...

    def random(self) -> random.Random:
        """The source of jitter and sampling; of keys too, where it is the operating system's."""
        ...

    async def run_cpu(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn` on a CPU worker; for searches and encodings that would hold the loop over 1 ms."""
        ...

    async def run_background(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn` on the one low-priority worker; for building and merging segments."""
        ...

    async def run_io(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking I/O on an I/O worker."""
        ...

    def spawn(self, coro: Coroutine[Any, Any, T], *, name: str) -> "asyncio.Task[T]":
        """Start a task that the caller keeps and ends."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...


IO_WORKERS = 32
"""Blocking store calls at once; boto3's pool is sized to it."""
BACKGROUND_NICE = 10


def _lower_priority() -> None:
    # Linux gives each thread its own nice value; elsewhere this would slow the whole process.
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICE)


class SystemRuntime:
    """The real clock, the operating system's randomness, and three thread pools."""

    def __init__(self, cpu_workers: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._cpu = ThreadPoolExecutor(cpu_workers or max(1, cores), thread_name_prefix="lakehouse-cpu")
        self._io = ThreadPoolExecutor(IO_WORKERS, thread_name_prefix="lakehouse-io")
        self._background = ThreadPoolExecutor(
            1, thread_name_prefix="lakehouse-background", initializer=_lower_priority
        )
        self._random = random.SystemRandom()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def uuid(self) -> uuid.UUID:
        return uuid.uuid4()

    def random(self) -> random.Random:
        return self._random

    async def run_cpu(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await _submit(self._cpu, fn, *args, **kwargs)

    async def run_background(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await _submit(self._background, fn, *args, **kwargs)

    async def run_io(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await _submit(self._io, fn, *args, **kwargs)

    def spawn(self, coro: Coroutine[Any, Any, T], *, name: str) -> "asyncio.Task[T]":
        return asyncio.get_running_loop().create_task(coro, name=name)

    def close(self) -> None:
        for pool in (self._cpu, self._background, self._io):
            pool.shutdown(wait=False, cancel_futures=True)


async def _submit(pool: ThreadPoolExecutor, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    future = pool.submit(fn, *args, **kwargs)
    return await asyncio.wrap_future(future)


def pause(seconds: float) -> None:
    """Block this thread: for the synchronous client and the command line, which have no event loop to hold up."""
    time.sleep(seconds)
