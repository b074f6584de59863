"""A real `lakehouse serve` process to talk to, kill and start again.

Waits are bounded and end in a failure that shows the server's log; they never decide whether a test passes.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import httpx

from ports import free_port

ROOT = Path(__file__).resolve().parent.parent
SMALL_SERVER = Path(__file__).with_name("small_server.py")
START_S_MAX = 60.0
"""Far above a start's second or two: a loaded machine is no failure."""
STOP_S_MAX = 60.0
LOG_TAIL_BYTES = 8_000


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def command_line(*args: str) -> list[str]:
    """`lakehouse …` with this interpreter, installed or not."""
    return [sys.executable, "-c", "from lakehouse.cli import main; main()", *args]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's environment without anything that would configure the server, plus `extra`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LAKEHOUSE_", "AWS_"))}
    return {
        **kept,
        "PYTHONPATH": str(ROOT / "dataplane"),
        "AWS_EC2_METADATA_DISABLED": "true",
        **(extra or {}),
    }


class LiveServer:
    """One server process; `start` after `kill` is a restart on the same data."""

    verb = "serve"
    """The command that is started."""

    def __init__(
        self,
        data: str,
        log: Path,
        *,
        port: int | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.data = data
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.small = False
        """Whether the next start uses engine numbers that make background work happen all the time."""
        self._log = log
        self._args = tuple(args)
        self._env = environment(env)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    def spawn(self) -> None:
        """Start the process without waiting for it."""
        args = (self.verb, "--data", self.data, "--port", str(self.port), *self._args)
        command = [sys.executable, str(SMALL_SERVER), *args] if self.small else command_line(*args)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env, cwd=self._log.parent
            )

    def wait_ready(self) -> None:
        """Return when `/readyz` answers 200."""
        deadline = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}\n{self.log_tail()}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(f"not ready after {START_S_MAX} s\n{self.log_tail()}")

    def start(self) -> "LiveServer":
        self.spawn()
        self.wait_ready()
        return self

    def kill(self) -> None:
        """kill -9: nothing gets a chance to be written."""
        self.process.kill()
        self.process.wait(STOP_S_MAX)

    def terminate(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S_MAX)

    def log_tail(self) -> str:
        return self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")

    def __enter__(self) -> "LiveServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


@contextlib.contextmanager
def serving(
    data: str,
    log: Path,
    *,
    port: int | None = None,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[LiveServer]:
    """A ready server that is killed at the end if it still runs."""
    with LiveServer(data, log, port=port, args=args, env=env) as server:
        yield server.start()
