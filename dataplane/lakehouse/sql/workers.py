"""Workers, seen from the parent: forked ahead of need, used once, killed always.

Each is held by a process descriptor, so a kill can never reach another process that got the same number.  What
this module does not do: know what a worker is asked.
"""

import asyncio
import contextlib
import json
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

import lakehouse
from lakehouse.core.errors import LakehouseError, Outcome, Unavailable
from lakehouse.runtime import Runtime
from lakehouse.sql import sandbox
from lakehouse.sql.wire import FRAME_BYTES_MAX, HEADER, Kind

logger = logging.getLogger(__name__)

START_S = 60.0
"""How long loading DuckDB may take on a slow machine."""
FORK_S = 10.0
READ_AHEAD_BYTES = 1 << 20
"""Bytes of a result that wait in the parent; above it the worker waits."""
GONE_S = 5.0
"""How long the kernel may take to end a killed process; only a stuck disk takes longer than milliseconds."""


class WorkerGone(LakehouseError):
    """The worker ended in the middle of its work."""


class Worker:
    """One process for one query."""

    def __init__(
        self, pid: int, process: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.pid = pid
        self._process = process
        self._reader = reader
        self._writer = writer
        self.killed = False

    async def send(self, kind: Kind, payload: bytes) -> None:
        """Raises `WorkerGone`."""
        try:
            self._writer.write(HEADER.pack(kind, len(payload)) + payload)
            await self._writer.drain()
        except ConnectionError as error:
            raise WorkerGone("the worker is gone") from error

    async def receive(self) -> tuple[Kind, bytes]:
        """The next frame.  Raises `WorkerGone`, also for a frame that no honest worker sends."""
        try:
            kind, length = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            if length > FRAME_BYTES_MAX:
                raise WorkerGone(f"a worker sent a frame over the limit. bytes=`{length}`")
            return Kind(kind), await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            raise WorkerGone("the worker is gone") from error

    @property
    def gone(self) -> bool:
        """Whether the process has ended."""
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        return bool(poll.poll(0))

    def kill(self) -> None:
        """SIGKILL, whatever it does."""
        self.killed = True
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)

    async def end(self) -> None:
        """Kill it, wait until the kernel has ended it, release everything."""
        self.kill()
        self._writer.close()
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(self._process, gone.set)
        try:
            await asyncio.wait_for(gone.wait(), GONE_S)
        except TimeoutError:
            logger.error("a killed worker is still there. pid=%s", self.pid)
        finally:
            loop.remove_reader(self._process)
            os.close(self._process)
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()


class WorkerPool:
    """A zygote and a few workers forked ahead of need."""

    def __init__(self, runtime: Runtime, readable: Path, memory_bytes: int, warm: int) -> None:
        self._runtime = runtime
        self._told = json.dumps({"readable": str(readable), "memory_bytes": memory_bytes})
        self._warm = warm
        self._ready: list[Worker] = []
        self._lock = asyncio.Lock()
        self._zygote: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def zygote_pid(self) -> int | None:
        """The process that workers are forked from; None while there is none."""
        return None if self._zygote is None else self._zygote.pid

    async def start(self) -> None:
        """Start the zygote and fork the first workers.  Raises `Unavailable` with the reason."""
        reason = sandbox.supported()
        if reason:
            raise Unavailable(reason, outcome=Outcome.NOT_COMMITTED)
        await asyncio.shield(self._beside(self._start(), "start sql workers"))

    async def _start(self) -> None:
        """Never cancelled, so that nothing half started is left behind: `close` ends it by ending the zygote."""
        async with self._lock:
            await self._start_zygote()
        await self._refill()

    async def close(self) -> None:
        """End every worker and the zygote."""
        self._closed = True
        self._kill_zygote()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        ready, self._ready = self._ready, []
        await asyncio.gather(*(worker.end() for worker in ready))
        async with self._lock:
            await self._end_zygote()

    @contextlib.asynccontextmanager
    async def worker(self) -> AsyncIterator[Worker]:
        """A worker of its own, gone when the context ends.  Raises `Unavailable`."""
        worker = await self._take()
        try:
            yield worker
        finally:
            worker.kill()
            self._beside(self._replace(worker), "replace sql worker")

    async def probe(self) -> dict[str, str]:
        """What a confined worker says of its walls."""
        async with self.worker() as worker:
            await worker.send(Kind.PROBE, b"")
            kind, payload = await asyncio.wait_for(worker.receive(), FORK_S)
            if kind is not Kind.REPORT:
                raise WorkerGone("a worker sent no report")
            return {str(name): str(said) for name, said in json.loads(payload).items()}

    async def _take(self) -> Worker:
        """A worker that waits; a new one when none does.  Forking goes on when who asked is cancelled."""
        while True:
            while self._ready:
                worker = self._ready.pop(0)  # the oldest has rehearsed
                if not worker.gone:
                    return worker
                self._beside(worker.end(), "end sql worker")
            await asyncio.shield(self._beside(self._fork_one(), "fork sql worker"))

    async def _fork_one(self) -> None:
        self._ready.append(await self._forked())

    def _beside(self, work: Coroutine[None, None, None], name: str) -> "asyncio.Task[None]":
        """Do what no query waits for, whether or not the query that caused it is cancelled."""
        task = self._runtime.spawn(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.debug("work for a sql worker failed. error=%s", task.exception())

    async def _replace(self, worker: Worker) -> None:
        """Only now that its query has ended, so that forking takes no time from it."""
        await worker.end()
        await self._refill()

    async def _refill(self) -> None:
        try:
            while len(self._ready) < self._warm and not self._closed:
                await self._fork_one()
        except LakehouseError as error:
            if not self._closed:
                logger.error("no SQL worker could be forked. error=%s", error)

    # --- the zygote

    async def _start_zygote(self) -> None:
        """Raises `Unavailable`; nothing of the attempt stays then."""
        self._control, theirs = socket.socketpair()
        with contextlib.closing(theirs):
            self._zygote = await self._spawned(theirs.fileno())
        if self._closed:
            self._kill_zygote()
        self._control.settimeout(START_S)
        said = await self._runtime.run_io(_received, self._control)
        if not said or said["reason"]:
            await self._end_zygote()
            reason = said["reason"] if said else "it ended at start; its error is on stderr"
            raise Unavailable(f"the SQL zygote cannot run: {reason}", outcome=Outcome.NOT_COMMITTED)
        self.landlock = int(said["landlock"])
        self._control.settimeout(FORK_S)

    async def _spawned(self, control_fd: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "lakehouse.sql.zygote",
            str(control_fd),
            self._told,
            pass_fds=[control_fd],
            env=_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            cwd="/",
        )

    async def _end_zygote(self) -> None:
        if self._zygote is not None:
            self._kill_zygote()
            await self._zygote.wait()
            self._zygote = None
        if self._control is not None:
            self._control.close()
            self._control = None

    def _kill_zygote(self) -> None:
        """Whoever waits for its word gets none."""
        if self._zygote is not None:
            with contextlib.suppress(ProcessLookupError):
                self._zygote.kill()

    async def _forked(self) -> Worker:
        """A new worker; a zygote that died is started again, once."""
        async with self._lock:
            for _ in range(2):
                if self._closed:
                    raise Unavailable("SQL is shutting down", outcome=Outcome.NOT_COMMITTED)
                if self._control is None:
                    await self._start_zygote()
                ours, theirs = socket.socketpair()
                try:
                    assert self._control is not None
                    pid, process = await self._runtime.run_io(_fork, self._control, theirs)
                except OSError as error:
                    if not self._closed:
                        logger.error("the SQL zygote is gone: starting it again. error=%s", error)
                    ours.close()
                    await self._end_zygote()
                    continue
                finally:
                    theirs.close()
                reader, writer = await asyncio.open_unix_connection(sock=ours, limit=READ_AHEAD_BYTES)
                return Worker(pid, process, reader, writer)
        raise Unavailable("no SQL worker can be started", outcome=Outcome.NOT_COMMITTED)


def _fork(control: socket.socket, theirs: socket.socket) -> tuple[int, int]:
    """Pid and process descriptor of a new worker that holds `theirs`.  Raises `OSError`."""
    socket.send_fds(control, [b"f"], [theirs.fileno()])
    data, fds, _, _ = socket.recv_fds(control, 32, 1)
    if not data or not fds:
        raise OSError("the zygote closed its socket")
    return int(data), fds[0]


def _received(control: socket.socket) -> dict[str, str]:
    try:
        data = control.recv(1 << 16)
    except OSError:
        return {}
    return json.loads(data) if data else {}


def _environment() -> dict[str, str]:
    """Nothing of ours: no credentials, no proxies, no path; libraries are told to start no threads."""
    return {
        "PYTHONPATH": str(Path(lakehouse.__file__).parents[1]),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "ARROW_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "MALLOC_ARENA_MAX": "2",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
    }
