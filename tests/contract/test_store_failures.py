"""When the disk, the directory or the bucket fails: a clear error, a true outcome, nothing lost or torn."""

import asyncio
import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lakehouse.core.errors import (
    BucketNotFound,
    Conflict,
    CredentialsRefused,
    Invalid,
    LakehouseError,
    NotFound,
    Outcome,
    StorageFull,
    Unavailable,
)
from lakehouse.runtime import SystemRuntime
from lakehouse.store import s3 as s3_module
from lakehouse.store.base import ObjectInfo, ObjectStore
from lakehouse.store.local import LocalStore
from lakehouse.store.open import open_store
from lakehouse.store.probe import probe
from lakehouse.store.s3 import DENIALS_MAX, S3Settings, S3Store
from minio_server import MinioServer, require_minio

FULL_DISK_BYTES = 2 << 20
MIB = 1 << 20


@contextmanager
def mounted(path: Path, size_bytes: int) -> Iterator[Path]:
    """A small file system of its own, or a skip that says why not."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root and the right to mount")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


async def keys(store: ObjectStore) -> list[str]:
    return [found.key for found in await store.list("")]


# Local: the disk.


async def test_a_full_disk_is_storage_full_and_loses_nothing(tmp_path: Path, runtime: SystemRuntime) -> None:
    with mounted(tmp_path / "small", FULL_DISK_BYTES) as folder:
        store = LocalStore(folder, runtime, ["vectors"])
        acknowledged: dict[str, bytes] = {}

        async def fill() -> None:
            for j in range(100):
                body = bytes([j]) * 100_000
                await store.create(f"log/{j:03}", body)
                acknowledged[f"log/{j:03}"] = body

        with pytest.raises(StorageFull, match="full") as caught:
            await fill()
        assert caught.value.outcome is Outcome.NOT_COMMITTED
        for write in (store.put, store.create):
            with pytest.raises(StorageFull):
                await write("log/other", bytes(MIB))
        assert acknowledged
        assert await keys(store) == sorted(acknowledged)
        for key, body in acknowledged.items():
            assert await store.get(key) == body
        assert [path.suffix for path in (folder / ".tmp").iterdir()] == [".alive"]
        await store.delete("log/000")
        await store.create("log/after", bytes(50_000))
        await store.close()


def test_starting_on_a_full_disk_says_so(tmp_path: Path, runtime: SystemRuntime) -> None:
    with mounted(tmp_path / "small", FULL_DISK_BYTES) as folder:
        with suppress(OSError):
            (folder / "ballast").write_bytes(bytes(FULL_DISK_BYTES * 2))
        with pytest.raises(StorageFull, match="free some space"):
            LocalStore(folder, runtime, ["vectors"])


async def test_a_full_disk_keeps_the_old_object_under_an_upload(
    tmp_path: Path, runtime: SystemRuntime
) -> None:
    (tmp_path / "source").write_bytes(bytes(FULL_DISK_BYTES * 2))
    with mounted(tmp_path / "small", FULL_DISK_BYTES) as folder:
        store = LocalStore(folder, runtime)
        await store.put("k", b"old")
        with pytest.raises(StorageFull):
            await store.upload("k", tmp_path / "source")
        assert await store.get("k") == b"old"
        await store.close()


def test_a_read_only_directory_is_refused_at_start(tmp_path: Path, runtime: SystemRuntime) -> None:
    with mounted(tmp_path / "small", FULL_DISK_BYTES) as folder:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        with pytest.raises(Invalid, match=r"write.*small"):
            LocalStore(folder, runtime, ["vectors"])


async def test_a_disk_that_turns_read_only_still_reads(
    tmp_path: Path, runtime: SystemRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path, runtime)
    await store.put("k", b"old")
    opened = os.open

    def read_only_open(path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(
        os, "open", read_only_open
    )  # a kernel does this when a disk fails; a mount needs no writer
    for call in [store.create("new", b""), store.put("k", b"new")]:
        with pytest.raises(Unavailable, match="read-only") as caught:
            await call
        assert caught.value.outcome is Outcome.NOT_COMMITTED
    assert await store.get("k") == b"old"
    await store.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the read-only mount stands in")
def test_a_directory_without_the_right_to_write_is_refused(tmp_path: Path, runtime: SystemRuntime) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o555)
    with pytest.raises(Invalid, match="theirs"):
        LocalStore(folder, runtime, ["vectors"])


def test_a_file_is_no_data_directory(tmp_path: Path, runtime: SystemRuntime) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in [tmp_path / "file", tmp_path / "file" / "below"]:
        with pytest.raises(Invalid, match="file"):
            LocalStore(path, runtime)


async def test_after_a_failed_directory_sync_nothing_more_is_acknowledged(
    tmp_path: Path, runtime: SystemRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path / "data", runtime)
    await store.create("log/1", b"1")
    real = os.fsync

    def failing(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(Unavailable, match="synced") as caught:
        await store.create("log/2", b"2")
    assert caught.value.outcome is Outcome.UNKNOWN
    monkeypatch.setattr(os, "fsync", real)
    for call in [store.create("log/3", b"3"), store.get("log/1"), store.list("")]:
        with pytest.raises(Unavailable, match="synced"):
            await call
    await store.close()


async def test_what_a_reader_sees_is_synced_even_before_its_writer_is_done(
    tmp_path: Path, runtime: SystemRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path, runtime)
    await store.create("log/0", b"0")
    real, stuck, go_on, synced = os.fsync, threading.Event(), threading.Event(), []

    def slow_at_first(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            if not stuck.is_set():
                stuck.set()
                assert go_on.wait(60)
            synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        real(fd)

    monkeypatch.setattr(os, "fsync", slow_at_first)
    writer = runtime.spawn(store.create("log/1", b"1"), name="slow create")
    assert await runtime.run_io(stuck.wait, 60)
    assert await store.get("log/0") == b"0"
    assert synced == []
    assert await store.get("log/1") == b"1"
    assert synced == ["log"]
    assert (await store.head("log/1")).size == 1
    assert await keys(store) == ["log/0", "log/1"]
    with pytest.raises(Conflict):
        await store.create("log/1", b"other")
    assert synced == ["log"] * 4
    go_on.set()
    await writer
    assert await store.get("log/1") == b"1"
    assert synced == ["log"] * 5
    await store.close()


async def test_every_name_is_synced_before_a_create_returns(
    tmp_path: Path, runtime: SystemRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    fsync, link, mkdir = os.fsync, os.link, os.mkdir

    def path_of(fd: int) -> str:
        return str(Path(f"/proc/self/fd/{fd}").readlink().relative_to(tmp_path))

    def noted_fsync(fd: int) -> None:
        fsync(fd)
        events.append(("sync", path_of(fd)))

    def noted_link(source: bytes, target: bytes, *, dst_dir_fd: int) -> None:
        link(source, target, dst_dir_fd=dst_dir_fd)
        events.append(("name", f"{path_of(dst_dir_fd)}/{target.decode()}"))

    def noted_mkdir(name: bytes, mode: int, *, dir_fd: int) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        events.append(("name", f"{path_of(dir_fd)}/{name.decode()}"))

    store = LocalStore(tmp_path / "data", runtime)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "link", noted_link)
    monkeypatch.setattr(os, "mkdir", noted_mkdir)
    await store.create("a/b/1", b"1")
    (first, temporary), *rest = events
    assert first == "sync"
    assert temporary.startswith("data/.tmp/")
    assert rest == [
        ("name", "data/a"),
        ("sync", "data"),
        ("name", "data/a/b"),
        ("sync", "data/a"),
        ("name", "data/a/b/1"),
        ("sync", "data/a/b"),
    ]
    events.clear()
    await store.create("a/b/2", b"2")
    assert events[1:] == [("name", "data/a/b/2"), ("sync", "data/a/b")]
    await store.close()


# Local: other processes, and what a directory cannot hold.

HOLDER = """
import asyncio, sys
from pathlib import Path
from lakehouse.runtime import SystemRuntime
from lakehouse.store.local import LocalStore
store = LocalStore(Path(sys.argv[1]), SystemRuntime(), sys.argv[2:])
print("held", flush=True)
sys.stdin.read()
"""
WRITER = """
import asyncio, sys
from pathlib import Path
from lakehouse.runtime import SystemRuntime
from lakehouse.store.local import LocalStore

async def main():
    store = LocalStore(Path(sys.argv[1]), SystemRuntime(), ["vectors"])
    numbers = iter(range(10**9))
    async def write():
        for j in numbers:
            await store.create(f"log/{j:06}", bytes([j % 251]) * 200_000)
            print(j, flush=True)
    await asyncio.gather(*(write() for _ in range(4)))

asyncio.run(main())
"""


@contextmanager
def running(program: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_a_lock_that_another_process_holds_is_a_conflict_until_it_is_gone(
    tmp_path: Path, runtime: SystemRuntime
) -> None:
    with running(HOLDER, tmp_path, "vectors") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Conflict, match=rf"\.lock-vectors.*pid=`{holder.pid}`"):
            LocalStore(tmp_path, runtime, ["catalog", "vectors"])
        other = LocalStore(tmp_path, runtime, ["catalog"])
        unlocked = LocalStore(tmp_path, runtime)
        assert (other.exclusive, unlocked.exclusive) == (True, False)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        await other.close()
        await unlocked.close()
    store = LocalStore(tmp_path, runtime, ["catalog", "vectors"])
    assert (tmp_path / ".lock-vectors").read_text() == f"{os.getpid()}\n"
    await store.close()


async def test_closing_releases_the_lock(tmp_path: Path, runtime: SystemRuntime) -> None:
    store = LocalStore(tmp_path, runtime, ["vectors"])
    with pytest.raises(Conflict):
        LocalStore(tmp_path, runtime, ["vectors"])
    await store.close()
    await LocalStore(tmp_path, runtime, ["vectors"]).close()


@pytest.mark.kill
async def test_a_killed_writer_leaves_whole_objects_and_no_litter(
    tmp_path: Path, runtime: SystemRuntime
) -> None:
    for acknowledged_at_least in (1, 7, 23):
        path = tmp_path / str(acknowledged_at_least)
        with running(WRITER, path) as writer:
            assert writer.stdout is not None
            acknowledged = [int(writer.stdout.readline()) for _ in range(acknowledged_at_least)]
            writer.kill()
            acknowledged += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
        store = LocalStore(path, runtime, ["vectors"])
        present = await keys(store)
        assert {f"log/{j:06}" for j in acknowledged} <= set(present)
        for key in present:
            assert await store.get(key) == bytes([int(key[4:]) % 251]) * 200_000
        assert [each.suffix for each in (path / ".tmp").iterdir()] == [".alive"], "only our own mark"
        await store.close()
        assert list((path / ".tmp").iterdir()) == []


async def test_starting_beside_a_writer_leaves_its_temporary_files(
    tmp_path: Path, runtime: SystemRuntime
) -> None:
    writer = LocalStore(tmp_path, runtime)

    async def write(j: int) -> None:
        for turn in range(40):
            await writer.create(f"log/{j}-{turn}", bytes(10_000))

    async def start() -> None:
        for _ in range(40):
            await (await runtime.run_io(LocalStore, tmp_path, runtime)).close()

    await asyncio.gather(*(write(j) for j in range(4)), start(), start())
    assert len(await keys(writer)) == 160
    await writer.close()


async def test_an_object_and_objects_below_it_conflict(tmp_path: Path, runtime: SystemRuntime) -> None:
    store = LocalStore(tmp_path, runtime)
    await store.put("a/b", b"x")
    (tmp_path / "source").write_bytes(b"s")
    for key in ["a", "a/b/c", "a/b/c/d"]:
        for call in [store.create(key, b""), store.put(key, b""), store.upload(key, tmp_path / "source")]:
            with pytest.raises(Conflict, match="one or the other"):
                await call
    assert await store.get("a/b") == b"x"
    await store.close()


async def test_empty_directories_that_a_crash_left_are_in_nobodys_way(
    tmp_path: Path, runtime: SystemRuntime
) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    store = LocalStore(tmp_path, runtime)
    assert (await store.children("")).prefixes == ()
    await store.create("a/b", b"file now")
    assert await keys(store) == ["a/b"]
    await store.close()


@pytest.mark.parametrize("key", ["x" * 256, "a/" + "é" * 128, ".tmp", ".tmp/x", ".lock-vectors", ".lock-x/y"])
async def test_keys_that_a_directory_cannot_hold_are_invalid(
    tmp_path: Path, runtime: SystemRuntime, key: str
) -> None:
    store = LocalStore(tmp_path, runtime, ["vectors"])
    for call in [store.create(key, b""), store.get(key), store.delete(key)]:
        with pytest.raises(Invalid):
            await call
    assert (await store.children(".tmp/"), await keys(store)) == (await store.children("none/"), [])
    await store.close()


async def test_files_that_are_no_objects_are_passed_over(tmp_path: Path, runtime: SystemRuntime) -> None:
    store = LocalStore(tmp_path, runtime)
    await store.put("a", b"x")
    (Path(os.fsdecode(bytes(tmp_path) + b"/latin-\xe9"))).write_bytes(b"foreign")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert await keys(store) == ["a"]
    assert [found.key for found in (await store.children("")).objects] == ["a"]
    await store.close()


# S3: a real MinIO.


def s3(minio: MinioServer, runtime: SystemRuntime, **changes: str) -> S3Store:
    settings = minio.settings(read_timeout_s=1.0, connect_timeout_s=1.0)
    fields: dict[str, Any] = {
        "access_key_id": changes.get("access_key", settings.access_key_id),
        "secret_access_key": changes.get("secret_key", settings.secret_access_key),
    }
    settings = S3Settings(endpoint=settings.endpoint, read_timeout_s=1.0, connect_timeout_s=1.0, **fields)
    return S3Store(changes.get("bucket", minio.bucket), changes.get("prefix", "failures"), runtime, settings)


@pytest.mark.minio
@pytest.mark.parametrize("wrong", [{"access_key": "somebody-else"}, {"secret_key": "not-the-secret"}])
async def test_wrong_credentials_are_denied(
    minio: MinioServer, runtime: SystemRuntime, wrong: dict[str, str]
) -> None:
    store = s3(minio, runtime, **wrong)
    for call in [
        store.create("k", b""),
        store.get("k"),
        store.head("k"),
        store.list(""),
        probe(store, runtime),
    ]:
        with pytest.raises(CredentialsRefused, match=f"{minio.bucket}") as caught:
            await call
        assert caught.value.outcome is Outcome.NOT_COMMITTED
        assert minio.secret_key not in str(caught.value)
    await store.close()


@pytest.mark.minio
async def test_no_credentials_are_denied(
    minio: MinioServer, runtime: SystemRuntime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    store = S3Store(minio.bucket, "", runtime, S3Settings(endpoint=minio.endpoint))
    with pytest.raises(CredentialsRefused, match="AWS_ACCESS_KEY_ID"):
        await store.get("k")
    await store.close()


@pytest.mark.minio
async def test_credentials_and_endpoint_come_from_the_environment(
    minio: MinioServer, runtime: SystemRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in minio.environment().items():
        monkeypatch.setenv(name, value)
    store = await open_store(f"s3://{minio.bucket}/from/environment", runtime)
    await store.put("k", b"x")
    assert store.url == f"s3://{minio.bucket}/from/environment"
    client = minio.client()
    assert client.get_object(Bucket=minio.bucket, Key="from/environment/k")["Body"].read() == b"x"
    client.close()
    await store.close()


@pytest.mark.minio
async def test_a_missing_bucket_is_named(minio: MinioServer, runtime: SystemRuntime) -> None:
    store = s3(minio, runtime, bucket="no-such-bucket")
    for call in [
        store.create("k", b""),
        store.get("k"),
        store.list(""),
        store.children(""),
        probe(store, runtime),
    ]:
        with pytest.raises(Unavailable, match=r"create it.*`no-such-bucket`") as caught:
            await call
        assert caught.value.outcome is Outcome.NOT_COMMITTED
    await store.close()


@pytest.mark.minio
async def test_a_large_file_goes_in_parts_and_comes_in_ranges(
    minio: MinioServer, runtime: SystemRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 * MIB)
    store = s3(minio, runtime)
    body = os.urandom(12 * MIB + 1)
    (tmp_path / "source").write_bytes(body)
    await store.upload("large", tmp_path / "source")
    found = await store.download("large", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == body
    assert (found.size, found.etag[-2:]) == (len(body), "-3")
    await store.close()


@pytest.mark.minio
async def test_a_download_never_mixes_two_objects(
    minio: MinioServer, runtime: SystemRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = s3(minio, runtime)
    await store.put("k", b"first")
    before = await store.head("k")
    await store.put("k", b"other")

    def head_before_it_was_replaced(key: str) -> ObjectInfo:
        return before

    monkeypatch.setattr(store, "_head", head_before_it_was_replaced)
    with pytest.raises(Unavailable, match="replaced"):
        await store.download("k", tmp_path / "target")
    assert not (tmp_path / "target").exists()
    await store.close()


@pytest.mark.minio
async def test_folder_marks_of_consoles_are_not_listed(minio: MinioServer, runtime: SystemRuntime) -> None:
    client = minio.client()
    client.put_object(Bucket=minio.bucket, Key="marked/folder/", Body=b"")
    client.close()
    store = s3(minio, runtime, prefix="marked")
    await store.put("folder/k", b"x")
    assert await keys(store) == ["folder/k"]
    assert [found.key for found in (await store.children("folder/")).objects] == ["folder/k"]
    await store.close()


@pytest.mark.minio
async def test_a_store_that_stops_answering_is_unavailable_and_comes_back(
    own_minio: MinioServer, runtime: SystemRuntime, tmp_path: Path
) -> None:
    store = s3(own_minio, runtime)
    await store.put("k", b"x")
    own_minio.pause()
    for call in [
        store.create("new", b"n"),
        store.get("k"),
        store.list(""),
        store.download("k", tmp_path / "t"),
    ]:
        with pytest.raises(Unavailable, match="did not answer") as caught:
            await call
        assert caught.value.outcome is Outcome.UNKNOWN
    own_minio.resume()
    assert await store.get("k") == b"x"
    with suppress(Conflict):  # it had arrived: unknown was the truth
        await store.create("new", b"n")
    assert await store.get("new") == b"n"
    await store.close()


@pytest.mark.minio
@pytest.mark.kill
async def test_a_killed_minio_refuses_and_keeps_what_it_acknowledged(
    own_minio: MinioServer, runtime: SystemRuntime
) -> None:
    store = s3(own_minio, runtime)
    acknowledged: list[str] = []
    unknown: list[str] = []

    async def write(j: int) -> None:
        for turn in range(10_000):
            key = f"log/{j}-{turn}"
            try:
                await store.create(key, key.encode() * 1_000)
            except Unavailable as error:
                if error.outcome is Outcome.UNKNOWN:
                    unknown.append(key)
                return
            acknowledged.append(key)
            if len(acknowledged) == 100:
                own_minio.kill()

    await asyncio.gather(*(write(j) for j in range(8)))
    with pytest.raises(Unavailable, match="cannot connect") as caught:
        await store.create("refused", b"")
    assert caught.value.outcome is Outcome.NOT_COMMITTED
    own_minio.restart()
    present = set(await keys(store))
    assert set(acknowledged) <= present <= {*acknowledged, *unknown}
    for key in present:
        assert await store.get(key) == key.encode() * 1_000
    await store.close()


@pytest.mark.minio
async def test_a_full_minio_loses_nothing_it_acknowledged(tmp_path: Path, runtime: SystemRuntime) -> None:
    require_minio()
    with mounted(tmp_path / "small", 96 * MIB) as folder, MinioServer(folder) as server:
        store = s3(server, runtime)
        acknowledged: list[str] = []
        last: LakehouseError | None = None
        # MinIO looks at its drive once a second, and until then what finds no room fails otherwise.
        for j in range(1_000):
            try:
                await store.create(f"log/{j:03}", bytes([j % 256]) * (4 * MIB))
                acknowledged.append(f"log/{j:03}")
            except StorageFull as error:
                last = error
                break
            except Unavailable as error:
                last = error
                await asyncio.sleep(0.05)
        assert acknowledged
        assert type(last) is StorageFull
        for key in acknowledged:
            assert await store.get(key) == bytes([int(key[4:]) % 256]) * (4 * MIB)
        await store.close()


# S3: answers that MinIO does not give on demand, from a socket that gives them.


class Answers:
    """An HTTP server with one answer for every request after those to the `first`."""

    def __init__(self) -> None:
        self.first: list[tuple[int, str]] = []
        self.status, self.code, self.body = 200, "", b""
        self.received = b""
        self.declared: int | None = None
        self.requests = 0
        answers = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                answers.requests += 1
                answers.received = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, code = answers.first.pop(0) if answers.first else (answers.status, answers.code)
                body = answers.body
                if code:
                    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                if status == 0:  # as a proxy that dies after the request was applied
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(answers.declared or len(body)))
                self.send_header("ETag", '"e"')
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)
                if answers.declared:
                    self.close_connection = True

            do_GET = do_PUT = do_HEAD = do_DELETE = _answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def answers() -> Iterator[Answers]:
    answers = Answers()
    thread = threading.Thread(target=answers.server.serve_forever, args=(0.05,))
    thread.start()
    yield answers
    answers.server.shutdown()
    thread.join()
    answers.server.server_close()


@pytest.fixture
async def answering(answers: Answers, runtime: SystemRuntime) -> AsyncIterator[S3Store]:
    settings = S3Settings(endpoint=answers.endpoint, access_key_id="a", secret_access_key="b")
    store = S3Store("bucket", "", runtime, settings)
    yield store
    await store.close()


@pytest.mark.parametrize(
    ("status", "code", "kind", "outcome"),
    [
        (409, "ConditionalRequestConflict", Unavailable, Outcome.NOT_COMMITTED),
        (412, "PreconditionFailed", Conflict, None),
        (500, "InternalError", Unavailable, Outcome.UNKNOWN),
        (502, "", Unavailable, Outcome.UNKNOWN),
        (503, "SlowDown", Unavailable, Outcome.UNKNOWN),
        (504, "", Unavailable, Outcome.UNKNOWN),
        (507, "XMinioStorageFull", StorageFull, Outcome.UNKNOWN),
        (400, "IncompleteBody", Unavailable, Outcome.UNKNOWN),
        (400, "RequestTimeout", Unavailable, Outcome.UNKNOWN),
        (400, "ExpiredToken", CredentialsRefused, Outcome.NOT_COMMITTED),
        (403, "AccessDenied", CredentialsRefused, Outcome.NOT_COMMITTED),
        (400, "InvalidArgument", Invalid, None),
        (404, "", Unavailable, Outcome.UNKNOWN),
        (404, "NoSuchUpload", Unavailable, Outcome.UNKNOWN),
        (404, "NoSuchBucket", BucketNotFound, Outcome.NOT_COMMITTED),
        (0, "", Unavailable, Outcome.UNKNOWN),
    ],
)
async def test_each_answer_becomes_one_error_and_only_a_denial_is_tried_again(
    answers: Answers,
    answering: S3Store,
    status: int,
    code: str,
    kind: type[LakehouseError],
    outcome: Outcome | None,
) -> None:
    answers.status, answers.code = status, code
    with pytest.raises(kind) as caught:
        await answering.create("k", b"x")
    assert type(caught.value) is kind
    assert getattr(caught.value, "outcome", None) is outcome
    assert caught.value.__cause__ is not None
    assert answers.requests == (DENIALS_MAX if code == "AccessDenied" else 1), "the client must not retry"


@pytest.mark.parametrize("denials", range(1, DENIALS_MAX))
async def test_a_write_denied_for_a_moment_is_written(
    answers: Answers, answering: S3Store, tmp_path: Path, denials: int
) -> None:
    (tmp_path / "file").write_bytes(b"whole")
    for write in (
        partial(answering.create, "k", b"x"),
        partial(answering.put, "k", b"x"),
        partial(answering.upload, "k", tmp_path / "file"),
    ):
        answers.requests, answers.first = 0, [(403, "AccessDenied")] * denials
        await write()
        assert answers.requests == denials + 1
    assert answers.received == b"whole", "a file is sent from its beginning again"


async def test_a_conflict_after_a_denial_is_in_doubt(answers: Answers, answering: S3Store) -> None:
    answers.first = [(403, "AccessDenied"), (412, "PreconditionFailed")]
    with pytest.raises(Unavailable) as caught:
        await answering.create("k", b"x")
    assert caught.value.outcome is Outcome.UNKNOWN


async def test_a_listing_that_is_not_found_is_no_empty_one_and_no_missing_object(
    answers: Answers, answering: S3Store
) -> None:
    answers.status, answers.body = 404, b"default backend - 404"
    for call in [answering.list(""), answering.children(""), answering.list("k", limit=1)]:
        with pytest.raises(Unavailable, match="check the endpoint") as caught:
            await call
        assert type(caught.value) is Unavailable
    with pytest.raises(NotFound):
        await answering.get("k")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"region": "eu_central"}, "eu_central"),
        ({"endpoint": "http://my_minio:9000"}, "http://my_minio:9000"),
        ({"endpoint": "http://[::1"}, "check endpoint"),
    ],
)
def test_a_place_that_no_client_can_open_says_what_is_wrong(
    runtime: SystemRuntime, wrong: dict[str, Any], told: str
) -> None:
    settings = S3Settings(access_key_id="a", secret_access_key="hush", **wrong)
    with pytest.raises(Invalid) as caught:
        S3Store("bucket", "", runtime, settings)
    for part in ("check endpoint, region", told, "`bucket`"):
        assert part in caught.value.message
    assert "hush" not in caught.value.message


async def test_an_answer_cut_short_is_unavailable(
    answers: Answers, answering: S3Store, tmp_path: Path
) -> None:
    answers.body, answers.declared = b"half", 8

    async def streamed() -> None:
        async for _ in answering.stream("k", 100):
            pass

    for call in [answering.get("k"), answering.download("k", tmp_path / "t"), streamed()]:
        with pytest.raises(Unavailable):
            await call
    assert not (tmp_path / "t").exists()


async def test_the_probe_refuses_a_store_that_ignores_the_condition(
    answers: Answers, answering: S3Store, runtime: SystemRuntime
) -> None:
    with pytest.raises(Invalid, match="second create"):
        await probe(answering, runtime)


async def test_nobody_listening_is_unavailable_and_not_committed(
    runtime: SystemRuntime, answers: Answers
) -> None:
    settings = S3Settings(endpoint="http://127.0.0.1:1", access_key_id="a", secret_access_key="b")
    store = S3Store("bucket", "", runtime, settings)
    with pytest.raises(Unavailable, match="cannot connect") as caught:
        await store.create("k", b"x")
    assert caught.value.outcome is Outcome.NOT_COMMITTED
    await store.close()


def test_settings_do_not_print_secrets() -> None:
    shown = repr(S3Settings(secret_access_key="hush-1", session_token="hush-2"))
    assert "hush" not in shown


# Opening by address.


@pytest.mark.parametrize(
    "where",
    [
        "",
        "s3:/bucket",
        "s3://",
        "s3://Bad_Bucket",
        "s3:bucket",
        "gs://bucket",
        "http://host/x",
        "file:x",
        "file://host/x",
    ],
)
async def test_a_bad_address_says_what_to_use(where: str, runtime: SystemRuntime) -> None:
    with pytest.raises(Invalid, match="s3://bucket/prefix"):
        await open_store(where, runtime)


async def test_directories_open_by_path_and_by_url(tmp_path: Path, runtime: SystemRuntime) -> None:
    by_path = await open_store(tmp_path / "with space", runtime, locks=["vectors"])
    await by_path.put("k", b"x")
    by_url = await open_store(by_path.url, runtime)
    assert await by_url.get("k") == b"x"
    assert await open_store(f"file://localhost{tmp_path}/other", runtime) is not None
    with pytest.raises(Conflict):
        await open_store(tmp_path / "with space", runtime, locks=["vectors"])
    with pytest.raises(NotFound):
        await (await open_store("memory:", runtime)).get("k")
