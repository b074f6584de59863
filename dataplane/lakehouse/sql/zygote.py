"""The process that workers are forked from: everything loaded, one thread, no secret.

It opens DuckDB once and runs each kind of answer once, so that a forked worker finds all code in memory and needs
no file.  It reads no SQL.  For each request on its socket it forks a worker onto the socket that came with it and
answers with a descriptor of that process.  What it does not do: wait for workers; the kernel reaps them.
"""

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path

import duckdb
import numpy.ma  # noqa: F401 - pyarrow asks numpy for it when it converts, and a worker may read no file
import pyarrow as pa
import pyarrow.dataset

from lakehouse.sql import hits, sandbox
from lakehouse.sql.ask import Ask
from lakehouse.sql.formats import Format
from lakehouse.sql.rehearsal import Examples, rehearse
from lakehouse.sql.wire import Channel, Kind
from lakehouse.sql.worker import Engine, answer, serve

NICE = 15
"""A search that wakes up beside two endless queries waits 0.1 ms then, and 1.5 ms without."""


def main() -> None:
    """`python -m lakehouse.sql.zygote FD JSON`: serve forks on the socket FD until it closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    told = json.loads(sys.argv[2])
    try:
        _step_back()
        readable = Path(told["readable"])
        duckdb.default_connection().close()  # importing duckdb opened one, with threads of its own
        pa.set_cpu_count(1)
        pa.set_io_thread_count(1)
        examples = Examples.under(readable)
        examples.write()
        for form in Format:
            _warm(told["memory_bytes"], form, examples.vectors)
        engine = Engine(told["memory_bytes"])
        reason = sandbox.supported() or _threads()
    except Exception as error:  # noqa: BLE001 - told to the parent, which reports it
        reason = f"{type(error).__name__}: {error}"
    control.sendall(json.dumps({"reason": reason, "landlock": sandbox.landlock_abi()}).encode())
    if not reason:
        _serve_forks(control, engine, readable, examples)


def _step_back() -> None:
    """Searches in the process beside it come first; and Ctrl-C is for the parent.

    A process group and no session: between sessions Linux shares the CPU evenly, whatever their priorities.
    """
    os.setpgid(0, 0)
    os.nice(NICE)


def _serve_forks(control: socket.socket, engine: Engine, readable: Path, examples: Examples) -> None:
    gc.collect()
    gc.disable()  # a worker lives for one query, and a collection would touch every page it shares
    while True:
        data, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not data:
            return
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a worker that ended at once still gets its descriptor
        pid = os.fork()
        if pid == 0:
            control.close()
            serve(engine, socket.socket(fileno=fds[0]), readable, partial(rehearse, examples))
        os.close(fds[0])
        process = os.pidfd_open(pid)
        _let_the_kernel_reap()
        socket.send_fds(control, [str(pid).encode()], [process])
        os.close(process)


def _let_the_kernel_reap() -> None:
    """Workers that end from now on, and at once those that ended since the last fork began."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _threads() -> str:
    """Forking is safe from one thread only: another may hold a lock that nobody would release."""
    count = len(list(Path("/proc/self/task").iterdir()))
    return "" if count == 1 else f"the zygote has {count} threads instead of one"


def _warm(memory_bytes: int, form: Format, path: Path) -> None:
    """Run one query in this format, so that what is loaded on first use is loaded now.

    None with a vector search: its results go through pyarrow's scanner, which would start threads here.
    """
    ours, theirs = socket.socketpair()
    engine = Engine(memory_bytes)
    engine.seal = lambda paths: None
    sql = (
        "SELECT id, v, 'x', DATE '2020-01-01', 1.5::DECIMAL(9,2), sum(id)::HUGEINT, {'a': 1} "
        "FROM warm WHERE id > $1 GROUP BY ALL ORDER BY ALL LIMIT 5"
    )
    ask = Ask(sql, b"[1]", form, row_limit=10, byte_limit=1 << 20, timeout_s=60, explain=True)
    told: list[tuple[Kind, bytes]] = []

    def parent() -> None:
        channel = Channel(ours)
        try:
            while True:
                kind, payload = channel.receive()
                told.append((kind, payload))
                if kind is Kind.NAMES:
                    table = {"name": "warm", "paths": [str(path)]}
                    channel.send(Kind.OPEN, hits.with_parts([table], []))
        except EOFError:
            return

    beside = threading.Thread(target=parent)
    beside.start()
    answer(engine, engine.root.cursor(), Channel(theirs), ask.to_bytes())
    theirs.close()
    beside.join()
    ours.close()
    engine.root.close()
    signal.setitimer(signal.ITIMER_REAL, 0)
    if told[-1][0] is not Kind.TAIL:
        raise RuntimeError(f"a first query failed. last=`{told[-1]}`")


if __name__ == "__main__":
    main()
