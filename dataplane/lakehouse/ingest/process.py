"""The asking side of converting: one child process per ingest, or the same functions in this one.

A child that dies takes only its ingest with it; one that is not wanted any more is killed.  What this module
does not do: decide what to convert.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from lakehouse.core import errors
from lakehouse.core.errors import Invalid, LakehouseError, Outcome, Unavailable, WorkerDied
from lakehouse.ingest import convert
from lakehouse.ingest.job import Advance, Answer, Convert, Failed, Infer, Message, Task
from lakehouse.ingest.reading import Limits
from lakehouse.runtime import Runtime

LINE_BYTES_MAX = 256 << 20
"""One answer; the statistics of 10,000 columns and a sample of wide rows fit many times."""
INHERITED = ("PATH", "TMPDIR", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")
"""Of the environment the child gets these; credentials are not among them."""
CRASHES = frozenset((signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL))
"""Ends that a program brings on itself: the same source would bring them on again."""

Told = Callable[[float], None]
"""Takes how much of a task is done, from 0 to 1."""


class Converting(Protocol):
    """Does tasks, one at a time."""

    async def do(self, task: Task, told: Told) -> Answer:
        """Raises the task's own error, or `WorkerDied` when the process ended."""
        ...

    async def close(self) -> None:
        """Stop at once, in the middle of a task too."""
        ...


class InlineConverting:
    """Tasks on an I/O worker of this process: for tests, and where no process can be started."""

    def __init__(self, limits: Limits, runtime: Runtime) -> None:
        self._converter = convert.Converter(limits)
        self._runtime = runtime

    async def do(self, task: Task, told: Told) -> Answer:
        answer = await self._runtime.run_io(self._converter.do, task)
        told(1.0)
        return answer

    async def close(self) -> None:
        self._converter.close()


class ProcessConverting:
    """Tasks in a child process, started with the first one."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: asyncio.subprocess.Process | None = None
        self._decode = msgspec.json.Decoder(Message).decode

    @property
    def pid(self) -> int | None:
        """The child's process id; None before the first task."""
        return None if self._process is None else self._process.pid

    async def do(self, task: Task, told: Told) -> Answer:
        process = self._process = self._process or await self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(task) + b"\n")
            await process.stdin.drain()
        except ConnectionError as error:
            raise await self._ended(process, task) from error
        while True:
            message = await self._next(process, task)
            if isinstance(message, Advance):
                told(message.done)
            elif isinstance(message, Failed):
                raise _error(message)
            else:
                return message

    async def _next(self, process: asyncio.subprocess.Process, task: Task) -> Message:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise await self._ended(process, task)
        message: Message = self._decode(line)
        return message

    async def _ended(self, process: asyncio.subprocess.Process, task: Task) -> LakehouseError:
        status = await process.wait()
        if -status in CRASHES:
            source = f" source=`{task.file.uri}`" if isinstance(task, Infer | Convert) else ""
            return Invalid(
                "the process that converts crashed: is something damaged, or nested thousands of times? "
                f"signal=`{-status}`{source}"
            )
        why = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return WorkerDied(
            f"the process that converts ended: did it, or the pod, need more memory than it may have? status=`{why}`",
            outcome=Outcome.NOT_COMMITTED,
        )

    async def _started(self) -> asyncio.subprocess.Process:
        limits = self._limits
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "lakehouse.ingest.worker",
            *("--memory-bytes", str(limits.memory_bytes)),
            *("--threads", str(limits.threads)),
            *("--spill", str(limits.spill)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
            env=_environment(),
            cwd=limits.spill.parent,
        )

    async def close(self) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    paths = [str(Path(entry).absolute()) for entry in sys.path if entry]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _error(failed: Failed) -> LakehouseError:
    kind = getattr(errors, failed.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, LakehouseError)):
        return Unavailable(failed.message, outcome=Outcome.NOT_COMMITTED)
    if issubclass(kind, Unavailable):
        return kind(failed.message, outcome=Outcome.NOT_COMMITTED)
    return kind(failed.message)
