"""A real MinIO for the suite: built once from its Go module, started on a free loopback port, ended by pid.

`MinioServer` can also be killed, paused and restarted on the same port and data.  As a pytest plugin (named
in conftest.py) this module builds the binary before the first test, outside any test's time limit, and offers
the session's server as the fixture `minio`.  `python tests/minio_server.py` builds it and prints the path.
"""

import contextlib
import fcntl
import http.client
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TextIO

import boto3
import botocore.config
import pytest

from lakehouse.store.s3 import S3Settings
from ports import free_port

MODULE = "github.com/minio/minio"
VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
BIN = Path(os.environ.get("LAKEHOUSE_TEST_BIN", Path.home() / ".cache" / "lakehouse" / "bin"))
BUCKET = "lakehouse"
START_SECONDS_MAX = 60
START_ATTEMPTS_MAX = 5


class NoMinioError(Exception):
    """Why there is no MinIO to test with."""


def is_built() -> bool:
    return (BIN / "minio").is_file()


def build(progress: TextIO = sys.stderr) -> Path:
    """The binary's path, after building it if it is missing.  Raises `NoMinioError`."""
    binary = BIN / "minio"
    if binary.is_file():
        return binary
    if shutil.which("go") is None:
        raise NoMinioError("MinIO is built from its Go module, and there is no `go` on the PATH")
    BIN.mkdir(parents=True, exist_ok=True)
    with (BIN / ".minio.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several pytest workers want it at once
        if not binary.is_file():
            _install(progress)
    return binary


def _install(progress: TextIO) -> None:
    """`go install` into a folder of its own, then a rename: an interrupted build leaves no half binary."""
    with tempfile.TemporaryDirectory(dir=BIN, prefix=".build-") as folder:
        command = ["go", "install", "-trimpath", "-ldflags=-s", f"{MODULE}@{VERSION}"]
        environment = os.environ | {"GOBIN": folder}
        print(f"building MinIO {VERSION} once, about 5 minutes on 2 cores", file=progress, flush=True)
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            began = time.monotonic()
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=15)
                    break
                print(f"  still building MinIO, {time.monotonic() - began:.0f} s", file=progress, flush=True)
            if process.returncode != 0:
                log.seek(0)
                raise NoMinioError("building MinIO failed: " + " / ".join(log.read().splitlines()[-3:]))
        (Path(folder) / "minio").rename(BIN / "minio")
    print(f"built {BIN / 'minio'}", file=progress, flush=True)


class MinioServer:
    """One MinIO process over one data directory; a `with` statement starts and stops it."""

    def __init__(self, data: Path, *, bucket: str = BUCKET) -> None:
        self.data = data
        self.bucket = bucket
        self.access_key = "test" + secrets.token_hex(6)
        self.secret_key = secrets.token_hex(20)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def settings(self, **changes: float) -> S3Settings:
        """How our store reaches it; `changes` are time limits."""
        return S3Settings(
            endpoint=self.endpoint,
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            **changes,  # type: ignore[arg-type]
        )

    def environment(self) -> dict[str, str]:
        """How a process started by a test reaches it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self, *, create_bucket: bool = True) -> "MinioServer":
        """Start, wait until it is ready, and make the bucket."""
        for _ in range(START_ATTEMPTS_MAX):
            port = self.port or free_port()
            self._process = self._spawn(port)
            if self._is_ready(port):
                self.port = port
                if create_bucket:
                    self.create_bucket()
                return self
            self._end(signal.SIGKILL)  # most likely another process took the port meanwhile
        raise RuntimeError(f"MinIO did not start: {self.log()[-2000:]}")

    def create_bucket(self) -> None:
        client = self.client()
        with contextlib.closing(client), contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=self.bucket)

    def client(self) -> "boto3.client":
        """A plain SDK client, to look at the bucket from outside our store."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=botocore.config.Config(s3={"addressing_style": "path"}),
        )

    def stop(self) -> None:
        """End it and wait."""
        self.resume()
        self._end(signal.SIGTERM)
        self._log.close()

    def kill(self) -> None:
        """As a crash ends it; `restart` brings it back."""
        self._end(signal.SIGKILL)

    def restart(self) -> "MinioServer":
        """Kill it if it runs, and start it again on the same port and data."""
        self.kill()
        return self.start(create_bucket=False)

    def pause(self) -> None:
        """SIGSTOP: connections are accepted by the kernel and never answered.  Returns when every thread stands."""
        os.kill(self.pid, signal.SIGSTOP)
        threads = Path(f"/proc/{self.pid}/task")
        while not all(_stands(thread) for thread in threads.iterdir()):
            time.sleep(0.001)

    def resume(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGCONT)

    def log(self) -> str:
        """What it printed; MinIO prints little besides its failures."""
        position = self._log.tell()
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        self._log.seek(position)
        return text

    def __enter__(self) -> "MinioServer":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self, port: int) -> "subprocess.Popen[bytes]":
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.data),
            "MINIO_ROOT_USER": self.access_key,
            "MINIO_ROOT_PASSWORD": self.secret_key,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "GOMAXPROCS": "2",
        }
        command = [
            str(build()),
            "server",
            "--quiet",
            "--address",
            f"127.0.0.1:{port}",
            str(self.data / "drive"),
        ]
        return subprocess.Popen(command, env=environment, stdout=self._log, stderr=subprocess.STDOUT)

    def _is_ready(self, port: int) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline and self._process.poll() is None:
            if _answers(port):
                return self._process.poll() is None
            time.sleep(0.05)
        return False

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None


def _stands(thread: Path) -> bool:
    """Whether a process's thread is stopped, or has ended; `man 5 proc` has the states."""
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] in "TtZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/minio/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def require_minio() -> None:
    """Skip the test, saying why, where there is no MinIO; fail it where `LAKEHOUSE_REQUIRE_MINIO` is set."""
    try:
        build()
    except NoMinioError as error:
        if os.environ.get("LAKEHOUSE_REQUIRE_MINIO"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """The session's MinIO with an empty bucket; tests use prefixes of their own and leave it running."""
    require_minio()
    with MinioServer(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture
def own_minio(tmp_path: Path) -> Iterator[MinioServer]:
    """A MinIO that the test may kill and pause."""
    require_minio()
    with MinioServer(tmp_path / "minio") as server:
        yield server


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build before the first test: a build takes longer than a test may."""
    wanted = any(item.get_closest_marker("minio") for item in session.items)
    if is_built() or not wanted:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    shown = capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
    with shown, contextlib.suppress(NoMinioError):  # the tests themselves say why they are skipped
        build()


if __name__ == "__main__":
    try:
        print(build())
    except NoMinioError as error:
        sys.exit(f"tests that need MinIO will be skipped: {error}")
