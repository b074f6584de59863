"""One task from its text to its outcome: open the store, do it, tell how far it is, end well when asked to.

What this module does not do: the work itself; the modules beside it do.
"""

import asyncio
import contextlib
import logging
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lakehouse.core.errors import Invalid
from lakehouse.jobs import index_tasks, ingest_task, tasks
from lakehouse.jobs.outcome import STOPPED, Outcome, failed
from lakehouse.jobs.tasks import Build, Ingest, Rebuild, Restore, Task
from lakehouse.jobs.workplace import Workplace
from lakehouse.runtime import Runtime, SystemRuntime
from lakehouse.settings import Settings
from lakehouse.store.base import ObjectStore
from lakehouse.store.local import LocalStore
from lakehouse.store.open import open_store
from lakehouse.store.s3 import S3Settings

logger = logging.getLogger(__name__)

TELL_S = 5.0
"""Between two lines on how far a task is."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the environment asks of this process."""

    task: Task
    shard: int
    """Which of the processes that share the task this is."""


def asked(environment: Mapping[str, str]) -> Asked:
    """Raises `Invalid` naming the variable that is wrong."""
    text = environment.get("LAKEHOUSE_TASK")
    if not text:
        raise Invalid("LAKEHOUSE_TASK holds the task as JSON, and it is empty or not set")
    index = environment.get("JOB_COMPLETION_INDEX", "0")
    if not index.isdecimal():
        raise Invalid(f"JOB_COMPLETION_INDEX is a whole number. JOB_COMPLETION_INDEX=`{index}`")
    return Asked(tasks.parse(text), int(index))


def work(asked: Asked, settings: Settings) -> Outcome:
    """Do the task on this thread, until it is done or SIGTERM or SIGINT comes; whatever happens is the outcome."""
    with asyncio.Runner() as runner:
        return runner.run(_until_stopped(asked, settings))


async def _until_stopped(asked: Asked, settings: Settings) -> Outcome:
    loop = asyncio.get_running_loop()
    runtime = SystemRuntime(settings.cpu_workers)
    working = runtime.spawn(done(asked, settings, runtime), name="task")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, working.cancel)
    try:
        return await working
    except asyncio.CancelledError:
        return Outcome(False, reason=STOPPED, message="the process was asked to stop before it was done")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        runtime.close()


async def done(asked: Asked, settings: Settings, runtime: Runtime) -> Outcome:
    """Do the task; whatever it ends in, but being cancelled, is the outcome."""
    try:
        async with _workplace(settings, runtime) as place, _telling(place, runtime):
            return Outcome(True, await _task_of(asked)(place))
    except Exception as error:  # the one place where every failure becomes an outcome
        ended = failed(error)
        logger.error("the task failed. reason=%s error=%s", ended.reason, error, exc_info=ended.is_a_bug)
        return ended


def _task_of(asked: Asked) -> Callable[[Workplace], Awaitable[Mapping[str, Any]]]:
    task, shard = asked.task, asked.shard
    match task:
        case Ingest():
            return lambda place: ingest_task.ingest(task, place)
        case Build():
            return lambda place: index_tasks.build(task, shard, place)
        case Restore():
            return lambda place: index_tasks.restore(task, place)
        case Rebuild():
            return lambda place: index_tasks.rebuild(task, place)


@contextlib.asynccontextmanager
async def _workplace(settings: Settings, runtime: Runtime) -> AsyncIterator[Workplace]:
    s3 = S3Settings.of(settings)
    store = await open_store(settings.data, runtime, s3=s3)
    try:
        with contextlib.ExitStack() as stack:
            scratch = await runtime.run_io(_scratch, settings, store, stack)
            yield Workplace(store, runtime, settings, scratch)
    finally:
        await store.close()


def _scratch(settings: Settings, store: ObjectStore, stack: contextlib.ExitStack) -> Path:
    """Where working files go: as set, else beside a local store's data, else a temporary directory."""
    if settings.scratch_dir is not None:
        settings.scratch_dir.mkdir(parents=True, exist_ok=True)
        return settings.scratch_dir
    if isinstance(store, LocalStore):
        return store.scratch()
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lakehouse-")))


@contextlib.asynccontextmanager
async def _telling(place: Workplace, runtime: Runtime) -> AsyncIterator[None]:
    """A line every `TELL_S` on how far the work is."""

    async def tell() -> None:
        while True:
            await runtime.sleep(TELL_S)
            logger.info("working %s", place.progress)

    telling = runtime.spawn(tell(), name="tell")
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
