"""The process that converts: tasks come as JSON lines on standard input, answers leave on standard output.

It holds no credentials, can be killed at any moment, and ends with the process that started it; all it writes
lies in the scratch directory it was given.  What it does not do: talk to a store.
"""

import argparse
import contextlib
import ctypes
import os
import queue
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from lakehouse.core.errors import LakehouseError
from lakehouse.ingest.convert import Converter
from lakehouse.ingest.job import Advance, Failed, Message, Task
from lakehouse.ingest.reading import Limits

NICE = 10
"""Searches and queries of the same machine come first."""
ADVANCE_S = 0.2
"""Between two words on how far a task is."""
ADDRESS_SHARE, ADDRESS_BYTES, THREAD_BYTES = 3, 2 << 30, 128 << 20
"""Address space beyond the start: thrice the memory that DuckDB may count, 2 GiB for libraries, and for each thread a
stack and an arena of memory, most of which is never touched."""
PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> None:
    """Serve tasks until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--spill", type=Path, required=True)
    given = parser.parse_args(arguments)
    _end_with_parent()
    os.setpgid(0, 0)  # Ctrl-C is for the parent; no session, between which Linux would share the CPU evenly
    with contextlib.suppress(OSError):
        os.nice(NICE)
    _bound_memory(given.memory_bytes, given.threads)
    converter = Converter(Limits(given.memory_bytes, given.threads, given.spill))
    out = _Out()
    out.write(Advance(0.0))  # ready
    for task in _tasks():
        out.write(_done(converter, task, out))


def _done(converter: Converter, task: Task, out: "_Out") -> Message:
    finished = threading.Event()

    def tell() -> None:
        while not finished.wait(ADVANCE_S):
            out.write(Advance(converter.done()))

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        return converter.do(task)
    except LakehouseError as error:
        return Failed(type(error).__name__, error.message)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and the process goes on
        traceback.print_exc()
        return Failed("Unavailable", f"converting failed; the log has it. error=`{type(error).__name__}`")
    finally:
        finished.set()
        teller.join()


class _Out:
    """Whole lines on standard output, from several threads."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)  # what a library prints must not look like an answer
        self._lock = threading.Lock()

    def write(self, message: Message) -> None:
        line = memoryview(msgspec.json.encode(message) + b"\n")
        with self._lock:
            try:
                while line:
                    line = line[self._file.write(line) :]
            except BrokenPipeError:
                os._exit(1)


def _tasks() -> Iterator[Task]:
    """Tasks as they come.  When the other side is gone, so is this process, whatever it is doing."""
    waiting: queue.Queue[Task] = queue.Queue()
    decode = msgspec.json.Decoder(Task).decode

    def read() -> None:
        for line in sys.stdin.buffer:
            waiting.put(decode(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield waiting.get()


def _bound_memory(memory_bytes: int, threads: int) -> None:
    """DuckDB counts its buffers, not every text that a transform makes; what it does not count ends here."""
    if sys.platform == "linux":
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = mapped + ADDRESS_SHARE * memory_bytes + ADDRESS_BYTES + threads * THREAD_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _end_with_parent() -> None:
    """Linux kills this process with its parent; elsewhere the end of standard input does, a little later."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
