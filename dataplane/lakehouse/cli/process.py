"""A server in a process of its own: started, watched, killed; for the benchmark and the demo.

What it does not do: talk to it beyond asking whether it is ready.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx

from lakehouse.core.errors import Unavailable
from lakehouse.runtime import Runtime, pause

START_S_MAX = 60.0
POLL_S = 0.02
LOG_TAIL_BYTES = 4_000


class ServerProcess:
    """`lakehouse serve` (or `up`) on a data directory; `start` after `kill` is a restart."""

    def __init__(
        self,
        data: Path,
        port: int,
        log: Path,
        runtime: Runtime,
        args: Sequence[str] = (),
        command: str = "serve",
    ) -> None:
        self.data = data
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        self._runtime = runtime
        self._args = tuple(args)
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._task_cpu_s: dict[str, float] = {}
        """CPU of each thread when it was last looked at; one that has ended keeps what it had."""

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def spawn(self) -> None:
        """Start it, detached from this terminal, without waiting."""
        self._task_cpu_s = {}
        command = [
            sys.executable,
            "-m",
            "lakehouse",
            self._command,
            "--data",
            str(self.data),
            "--port",
            str(self.port),
        ]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,
            )

    def start(self) -> None:
        """Start it and wait until it is ready.  Raises `Unavailable` with the end of its log."""
        self.spawn()
        deadline = self._runtime.monotonic() + START_S_MAX
        while self._runtime.monotonic() < deadline:
            if not self.alive():
                break
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            pause(POLL_S)
        raise Unavailable(f"the server did not become ready; its log ends with:\n{self.log_tail()}")

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """kill -9: nothing gets a chance to be written."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self._process is not None and self.alive():
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()

    def log_tail(self) -> str:
        return self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace") if self._log.exists() else ""

    def cpu_s(self) -> float:
        """CPU seconds of the threads that answer; those made nicer than the main one build graphs."""
        folder = Path(f"/proc/{self.pid}/task")
        nice_max = _nice(folder / str(self.pid))
        for task in folder.iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if _nice(task) <= nice_max:
                    self._task_cpu_s[task.name] = _task_cpu_s(task)
        return sum(self._task_cpu_s.values())

    def anonymous_bytes(self) -> int:
        """RssAnon: what is in memory and in no file."""
        return anonymous_bytes(self.pid)


def _stat(task: Path) -> list[str]:
    """The fields after the name, which may hold spaces."""
    return (task / "stat").read_text().rpartition(")")[2].split()


def _nice(task: Path) -> int:
    return int(_stat(task)[16])


def _task_cpu_s(task: Path) -> float:
    """Nanoseconds from the scheduler; utime and stime count in hundredths of a second."""
    schedstat = task / "schedstat"
    if schedstat.exists():
        return int(schedstat.read_text().split()[0]) / 1e9
    fields = _stat(task)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def anonymous_bytes(pid: int | str = "self") -> int:
    """RssAnon of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def free_port(preferred: int = 0) -> int:
    """`preferred` if nobody listens there, else any free port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment() -> dict[str, str]:
    """Ours, without what would configure the server otherwise than its arguments say."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LAKEHOUSE_")}
