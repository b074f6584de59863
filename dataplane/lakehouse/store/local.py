"""A directory as a bucket: an object is a file that was complete and synced before it had its name.

`create` writes a temporary file, syncs it, gives it its name with a hard link (which fails if the name is
taken, so of many racers one wins), and syncs the directory.  `put` renames instead of linking.  New
directories are synced up to the root before anything inside them is acknowledged.  Each call is one job on an
I/O worker.

Layout: keys are paths under the root, in UTF-8 whatever the locale.  Beside them, never listed and not usable
as keys, are `.tmp/` (files being written; what a killed process left is removed at the next start) and
`.lock-<what>` (held for the life of the store by the one process that writes `<what>`, with its pid in it).

What it does not do: hold both `a` and `a/b` (a name is a file or a directory: `Conflict`), keep names apart
on a file system that ignores case, or lock where `flock` does not work.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import stat
import threading
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import quote

from lakehouse.core.errors import (
    Conflict,
    Invalid,
    LakehouseError,
    NotFound,
    Outcome,
    StorageFull,
    Unavailable,
)
from lakehouse.core.names import checked_key
from lakehouse.runtime import Runtime
from lakehouse.store.base import BytesLike, Children, ObjectInfo, checked_range, is_key_folder

P = ParamSpec("P")
T = TypeVar("T")

TEMPORARY = ".tmp"
LOCK_PREFIX = ".lock-"
SEGMENT_BYTES_MAX = 255
"""What Linux file systems allow in one name."""
DIRECTORIES_OPEN_MAX = 128
"""Directories kept open between calls; far below the usual limit of 1,024 descriptors."""
PLACE_ATTEMPTS_MAX = 32
"""Tries to name a file while others remove its directory, each of which must have emptied it in between."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
UNSYNCED = "a directory could not be synced, so the disk may lose writes; check it, then start again."


class _Directory:
    """An open directory, known to be durable up to the root.

    An open descriptor pins the directory itself: once removed it stays removed, and naming a file in it
    fails.  So no write can land in a later directory of the same name that nobody has synced yet.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)  # once neither the cache nor a running call needs it


class LocalStore:
    """An `ObjectStore` in the directory `root`, which is made if it is missing.

    `locks` names what this process alone may write (`vectors`, `catalog`); with at least one, `exclusive` is
    true.  The constructor blocks on the disk.  It raises `Conflict` when another process holds a lock, and
    `Invalid` when the directory cannot be written.
    """

    def __init__(self, root: "os.PathLike[str]", runtime: Runtime, locks: Sequence[str] = ()) -> None:
        self._path = Path(root).absolute()
        self._root = os.fsencode(self._path)
        self._runtime = runtime
        self._closed = False
        self._unsynced: OSError | None = None
        self._guard = threading.Lock()
        self._directories: OrderedDict[bytes, _Directory] = OrderedDict()
        self._naming: Counter[bytes] = Counter()  # writers between giving a name and having synced it
        self._numbers = itertools.count()
        self._token = runtime.uuid().hex
        self._held: list[int] = []
        try:
            _make_root(self._root)
            self._top = _Directory(os.open(self._root, OPEN_DIRECTORY))
            for what in locks:
                self._held.append(_lock(os.path.join(self._root, os.fsencode(LOCK_PREFIX + what))))
            self._start_temporaries()
        except LakehouseError:
            self._release()
            raise
        except OSError as error:
            self._release()
            if error.errno in NO_SPACE:
                raise _refused("write", self._root, error) from error
            raise Invalid(
                f"cannot use the data directory: {_reason(error)}; make it a directory that this user can "
                f"write, or name another. path=`{self._path}`"
            ) from error
        self._exclusive = bool(locks)

    @property
    def url(self) -> str:
        return "file://" + quote(str(self._path))

    @property
    def exclusive(self) -> bool:
        return self._exclusive and not self._closed

    async def create(self, key: str, data: BytesLike) -> None:
        await self._run(self._create, _name(key), data)

    async def put(self, key: str, data: BytesLike) -> None:
        await self._run(self._put, _name(key), data)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        checked_range(start, end)
        return await self._run(self._get, _name(key), start, end)

    async def head(self, key: str) -> ObjectInfo:
        return await self._run(self._head, _name(key))

    async def list(
        self, prefix: str, *, start_after: str = "", limit: int | None = None
    ) -> Sequence[ObjectInfo]:
        if not _is_own_folder(prefix[: prefix.rfind("/") + 1]):
            return []
        return await self._run(self._list, _encoded(prefix), _encoded(start_after), limit)

    async def children(self, prefix: str) -> Children:
        if prefix and not prefix.endswith("/"):
            raise Invalid(f"a prefix of children ends in `/` or is empty. prefix=`{prefix}`")
        if not _is_own_folder(prefix):
            return Children((), ())
        return await self._run(self._children, _encoded(prefix))

    async def delete(self, key: str) -> None:
        await self._run(self._delete, _name(key))

    async def download(self, key: str, path: "os.PathLike[str]") -> ObjectInfo:
        """A hard link where `path` is on the same device: objects are replaced, never changed in place."""
        return await self._run(self._download, _name(key), os.fspath(path))

    async def upload(self, key: str, path: "os.PathLike[str]") -> None:
        await self._run(self._upload, _name(key), os.fspath(path))

    async def stream(self, key: str, chunk_bytes: int = 1 << 20) -> AsyncIterator[bytes]:
        fd = await self._run(self._open, _name(key))
        try:
            while chunk := await self._run(_read_up_to, fd, chunk_bytes):
                yield chunk
        finally:
            os.close(fd)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._runtime.run_io(self._release)

    # On the event loop: one job per call.

    async def _run(self, job: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise Unavailable(f"the store is closed. url=`{self.url}`", outcome=Outcome.NOT_COMMITTED)
        if self._unsynced is not None:
            raise Unavailable(f"{UNSYNCED} path=`{self._path}`") from self._unsynced
        return await self._runtime.run_io(job, *args, **kwargs)

    # On an I/O worker: writing.

    def _create(self, name: bytes, data: BytesLike) -> None:
        with self._temporary(lambda fd, _: _write_all(fd, data)) as temporary:
            self._place(name, temporary, _link, replace=False)

    def _put(self, name: bytes, data: BytesLike) -> None:
        with self._temporary(lambda fd, _: _write_all(fd, data)) as temporary:
            self._place(name, temporary, _rename, replace=True)

    def _upload(self, name: bytes, source: str) -> None:
        with self._temporary(lambda _, path: _copy(source, path)) as temporary:
            self._place(name, temporary, _rename, replace=True)

    @contextlib.contextmanager
    def _temporary(self, fill: Callable[[int, bytes], None]) -> Iterator[bytes]:
        """A synced file that has no key yet, gone afterwards."""
        path = os.path.join(self._root, TEMPORARY.encode(), f"{self._token}-{next(self._numbers)}".encode())
        try:
            with _translated("write", path):
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                try:
                    fill(fd, path)
                    os.fsync(fd)
                finally:
                    os.close(fd)
            yield path
        finally:
            with contextlib.suppress(OSError):  # renamed away, or left for the next start
                os.unlink(path)

    def _place(
        self, name: bytes, temporary: bytes, place: Callable[[bytes, bytes, int], None], *, replace: bool
    ) -> None:
        """Give the temporary file its name, and make the name durable."""
        folder, _, last = name.rpartition(b"/")
        with _translated("write", name):
            for _ in range(PLACE_ATTEMPTS_MAX):
                try:
                    directory = self._directory(folder)
                    with self._marked(name):
                        place(temporary, last, directory.fd)
                        self._sync(directory)
                except FileNotFoundError:  # the directory was emptied and removed meanwhile
                    self._forget(folder)
                except (FileExistsError, IsADirectoryError) as error:
                    self._check_in_the_way(name, replace, error)
                else:
                    return
        raise Unavailable(
            f"could not name a file: its directory was removed again and again. key=`{_shown(name)}`",
            outcome=Outcome.NOT_COMMITTED,
        )

    @contextlib.contextmanager
    def _marked(self, name: bytes) -> Iterator[None]:
        with self._guard:
            self._naming[name] += 1
        try:
            yield
        finally:
            with self._guard:
                self._naming[name] -= 1
                if not self._naming[name]:
                    del self._naming[name]

    def _settle(self, name: bytes) -> None:
        """Sync a name that its writer has not synced yet, so that nobody learns of what a power cut undoes.

        A caller that gave up on a slow `create` reads the key to find out: what it then sees must be durable.
        """
        if name in self._naming:
            with contextlib.suppress(FileNotFoundError):
                folder = self._below(name.rpartition(b"/")[0])
                self._sync(_Directory(os.open(folder, OPEN_DIRECTORY)))
        if self._unsynced is not None:
            raise Unavailable(f"{UNSYNCED} path=`{self._path}`") from self._unsynced

    def _check_in_the_way(self, name: bytes, replace: bool, error: OSError) -> None:
        """Return if what was in the way is gone: a directory that holds no object."""
        path = self._below(name)
        if os.path.isdir(path) and not os.path.islink(path):
            _remove_empty(path)
            if os.path.isdir(path):
                raise Conflict(
                    f"objects lie below this key; a directory holds one or the other. key=`{_shown(name)}`"
                ) from error
        elif not replace and os.path.lexists(path):
            self._settle(name)
            raise Conflict(f"an object is already there. key=`{_shown(name)}`") from error

    def _directory(self, relative: bytes) -> _Directory:
        """The directory of that relative path, made if missing, open, and durable up to the root."""
        with self._guard:
            cached = self._directories.get(relative)
            if cached is not None:
                self._directories.move_to_end(relative)
                return cached
        directory, path = self._top, b""
        for segment in relative.split(b"/") if relative else ():
            path = path + b"/" + segment if path else segment
            directory = self._directories.get(path) or self._opened(directory, segment, path)
        return directory

    def _opened(self, parent: _Directory, segment: bytes, path: bytes) -> _Directory:
        with contextlib.suppress(FileExistsError):
            os.mkdir(segment, 0o755, dir_fd=parent.fd)
        directory = _Directory(os.open(segment, OPEN_DIRECTORY, dir_fd=parent.fd))
        self._sync(parent)  # also when it was there: whoever made it may not have come to this line yet
        with self._guard:
            self._directories[path] = directory
            while len(self._directories) > DIRECTORIES_OPEN_MAX:
                self._directories.popitem(last=False)
        return directory

    def _forget(self, relative: bytes) -> None:
        """Close the directory and those above it: one of them is no longer what its name means."""
        with self._guard:
            while relative:
                self._directories.pop(relative, None)
                relative = relative.rpartition(b"/")[0]

    def _sync(self, directory: _Directory) -> None:
        try:
            os.fsync(directory.fd)
        except OSError as error:
            # The kernel reports a failed sync once and then forgets it: a later success would prove nothing.
            self._unsynced = error
            raise Unavailable(f"{UNSYNCED} path=`{self._path}`") from error

    def _delete(self, name: bytes) -> None:
        folder, _, last = name.rpartition(b"/")
        with _translated("delete", name):
            try:
                fd = os.open(self._below(folder), OPEN_DIRECTORY)
            except (FileNotFoundError, NotADirectoryError):
                return
            directory = _Directory(fd)
            try:
                os.unlink(last, dir_fd=fd)
            except (FileNotFoundError, IsADirectoryError):
                return
            self._sync(directory)
        self._remove_empty_above(folder)

    def _remove_empty_above(self, folder: bytes) -> None:
        """Tidiness only; whoever is about to write there makes the directory again."""
        with contextlib.suppress(OSError):
            while folder:
                os.rmdir(self._below(folder))
                folder = folder.rpartition(b"/")[0]

    # On an I/O worker: reading.

    def _get(self, name: bytes, start: int, end: int | None) -> bytes:
        fd = self._open(name)
        with _translated("read", name):
            try:
                size = os.fstat(fd).st_size
                stop = size if end is None else min(end, size)
                if start:
                    os.lseek(fd, start, os.SEEK_SET)
                return _read_up_to(fd, max(0, stop - start))
            finally:
                os.close(fd)

    def _open(self, name: bytes) -> int:
        with _translated("read", name):
            fd = os.open(self._below(name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    self._settle(name)
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        raise NotFound(f"no such object. key=`{_shown(name)}`")

    def _head(self, name: bytes) -> ObjectInfo:
        with _translated("read", name):
            found = os.stat(self._below(name))
            self._settle(name)
        if not stat.S_ISREG(found.st_mode):
            raise NotFound(f"no such object. key=`{_shown(name)}`")
        return _info(name.decode(), found)

    def _download(self, name: bytes, target: str) -> ObjectInfo:
        fd = self._open(name)  # so that size, etag and bytes are of one object, whatever replaces it
        with _translated("read", name):
            try:
                found = os.fstat(fd)
                _link_or_copy(self._below(name), fd, found, target)
                return _info(name.decode(), found)
            except FileExistsError as error:
                raise Invalid(
                    f"a file is already there where a new one should go. path=`{target}`"
                ) from error
            finally:
                os.close(fd)

    def _list(self, prefix: bytes, start_after: bytes, limit: int | None) -> "Sequence[ObjectInfo]":
        base = prefix[: prefix.rfind(b"/") + 1]
        with _translated("list", prefix):
            found = [*itertools.islice(self._walk(base, prefix, start_after), limit)]
            for name in [name for name in self._naming.copy() if name.startswith(prefix)]:
                self._settle(name)
            return found

    def _walk(self, base: bytes, prefix: bytes, start_after: bytes) -> Iterator[ObjectInfo]:
        """Objects below the directory `base`, in order; what lies wholly before or outside is not entered."""
        for sort_name, entry in sorted(self._entries(base, prefix, start_after), key=lambda pair: pair[0]):
            full = base + sort_name
            if sort_name.endswith(b"/"):
                yield from self._walk(full, prefix, start_after)
            elif full > start_after:
                with contextlib.suppress(FileNotFoundError):  # deleted since the directory was read
                    yield _info(full.decode(), entry.stat())

    def _entries(
        self, base: bytes, prefix: bytes, start_after: bytes
    ) -> Iterator[tuple[bytes, "os.DirEntry[bytes]"]]:
        """What of one directory may hold wanted keys; a directory's name ends in `/`, as its keys sort."""
        cut = start_after[len(base) :] if start_after.startswith(base) else b""
        if not cut and base < start_after and not start_after.startswith(base):
            return  # every key here sorts before
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            os.scandir(self._below(base)) as entries,
        ):
            for entry in entries:
                name = entry.name
                if name < cut and not cut.startswith(name):
                    continue
                if (not base and _is_reserved(name)) or not _is_utf8(name):
                    continue
                full = base + name
                if full.startswith(prefix) and entry.is_file():
                    yield name, entry
                elif _within(full + b"/", prefix) and entry.is_dir():
                    yield name + b"/", entry

    def _children(self, prefix: bytes) -> Children:
        prefixes: list[str] = []
        objects: list[ObjectInfo] = []
        with _translated("list", prefix):
            for name, entry in sorted(self._entries(prefix, prefix, b""), key=lambda pair: pair[0]):
                full = prefix + name
                if not name.endswith(b"/"):
                    with contextlib.suppress(FileNotFoundError):
                        objects.append(_info(full.decode(), entry.stat()))
                elif next(self._walk(full, full, b""), None) is not None:  # an empty directory is no prefix
                    prefixes.append(full.decode())
        return Children(tuple(prefixes), tuple(objects))

    def _below(self, name: bytes) -> bytes:
        return os.path.join(self._root, name) if name else self._root

    # Starting and ending.

    def _start_temporaries(self) -> None:
        """Mark our temporary files as alive, remove those of processes that are gone, and try a write."""
        folder = os.path.join(self._root, TEMPORARY.encode())
        os.makedirs(folder, exist_ok=True)
        self._held.append(_hold_mark(os.path.join(folder, f"{self._token}.alive".encode())))
        _remove_stale(folder)
        with self._temporary(lambda fd, _: _write_all(fd, b"\0")):
            pass

    def scratch(self) -> Path:
        """A directory on the same file system for working files of this process, removed with it."""
        path = self._scratch_path()
        path.mkdir(exist_ok=True)
        return path

    def _scratch_path(self) -> Path:
        return self._path / TEMPORARY / f"{self._token}.scratch"

    def _release(self) -> None:
        shutil.rmtree(self._scratch_path(), ignore_errors=True)
        with self._guard:
            self._directories.clear()
        mark = os.path.join(self._root, TEMPORARY.encode(), f"{self._token}.alive".encode())
        with contextlib.suppress(OSError):
            os.unlink(mark)
        while self._held:
            os.close(self._held.pop())


def _name(key: str) -> bytes:
    """The key's path below the root.  Raises `Invalid` for what a directory cannot hold."""
    name = checked_key(key).encode()
    if len(name) > SEGMENT_BYTES_MAX and max(map(len, name.split(b"/"))) > SEGMENT_BYTES_MAX:
        raise Invalid(
            f"on a local directory each segment of a key has at most {SEGMENT_BYTES_MAX} bytes. key=`{key}`"
        )
    if _is_reserved(name.partition(b"/")[0]):
        raise Invalid(f"the local store keeps its own files under this name. key=`{key}`")
    return name


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Invalid(f"a key is valid UTF-8. key=`{text!r}`") from error


def _is_reserved(segment: bytes) -> bool:
    return segment == TEMPORARY.encode() or segment.startswith(LOCK_PREFIX.encode())


def _is_own_folder(folder: str) -> bool:
    return is_key_folder(folder) and not _is_reserved(_encoded(folder.partition("/")[0]))


def _is_utf8(name: bytes) -> bool:
    """A file that a person put there under another encoding is no object."""
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _within(path: bytes, prefix: bytes) -> bool:
    """Whether keys at or below `path` can start with `prefix`."""
    return path.startswith(prefix) or prefix.startswith(path)


def _shown(name: bytes) -> str:
    return name.decode(errors="replace")


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, found.st_size, f"{found.st_mtime_ns:x}-{found.st_ino:x}-{found.st_size:x}")


def _write_all(fd: int, data: BytesLike) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(fd, rest) :]


def _read_up_to(fd: int, size: int) -> bytes:
    chunks: list[bytes] = []
    while size > 0 and (chunk := os.read(fd, size)):
        if len(chunk) == size and not chunks:
            return chunk
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def _copy(source: str, target: bytes) -> None:
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Invalid(f"cannot read the local file: {_reason(error)}. path=`{source}`") from error
    with open(fd, "rb") as file, open(target, "r+b") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)


def _link(temporary: bytes, last: bytes, directory_fd: int) -> None:
    os.link(temporary, last, dst_dir_fd=directory_fd)


def _rename(temporary: bytes, last: bytes, directory_fd: int) -> None:
    os.rename(temporary, last, dst_dir_fd=directory_fd)


def _link_or_copy(path: bytes, fd: int, opened: os.stat_result, target: str) -> None:
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except (
        OSError
    ):  # another device, no hard links, or the object was replaced or deleted: its bytes are still open
        pass
    else:
        if os.stat(target).st_ino == opened.st_ino:
            return
        os.unlink(target)
    with open(fd, "rb", closefd=False) as source:
        try:
            new = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            raise
        except OSError as error:
            raise Invalid(f"cannot write the new local file: {_reason(error)}. path=`{target}`") from error
        with open(new, "wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)


def _remove_empty(path: bytes) -> None:
    """Remove a directory, and those below it, as far as they hold no file."""
    with contextlib.suppress(OSError):
        with os.scandir(path) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        for child in below:
            _remove_empty(child)
        os.rmdir(path)


def _make_root(root: bytes) -> None:
    """Make the directory and those above it; each new one is synced into its parent."""
    missing = []
    while not os.path.isdir(root):
        missing.append(root)
        if os.path.dirname(root) == root:
            break
        root = os.path.dirname(root)
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o755)
        parent = _Directory(os.open(os.path.dirname(path), OPEN_DIRECTORY))
        os.fsync(parent.fd)


def _lock(path: bytes) -> int:
    """Hold the lock file until the descriptor is closed or the process ends, however it ends."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise Conflict(
            "another process holds this data directory; stop it or use another directory. "
            f"lock=`{os.fsdecode(path)}` pid=`{holder}`"
        ) from error
    except OSError:
        os.close(fd)
        raise
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd


def _hold_mark(path: bytes) -> int:
    """A locked file beside our temporaries; while it is locked, nobody removes them."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return fd
        except FileNotFoundError:  # another start saw it before it was locked, and took it for a dead one
            pass
        os.close(fd)


def _remove_stale(folder: bytes) -> None:
    """Remove the temporaries of stores that no longer hold their mark; it only frees space."""
    alive: dict[bytes, bool] = {}
    for name in sorted(os.listdir(folder)):
        token = name.partition(b".")[0].partition(b"-")[0]
        if token not in alive:
            alive[token] = _is_alive(os.path.join(folder, token + b".alive"))
        if not alive[token]:
            left = os.path.join(folder, name)
            if os.path.isdir(left):
                shutil.rmtree(left, ignore_errors=True)
                continue
            with contextlib.suppress(OSError):
                os.unlink(left)


def _is_alive(mark: bytes) -> bool:
    try:
        fd = os.open(mark, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(mark)  # still locked here, so that its owner, if it is just starting, sees it go
    except BlockingIOError:
        return True
    except OSError:
        return False
    else:
        return False
    finally:
        os.close(fd)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


@contextlib.contextmanager
def _translated(act: str, name: bytes) -> Iterator[None]:
    """The one place where the operating system's errors become ours.

    Nothing has its name yet when a write fails in here, so such a write is known not to have happened; a
    failed directory sync, after which that is not known, is raised by `_sync` itself.
    """
    try:
        yield
    except FileNotFoundError as error:
        if act in ("read", "list"):
            raise NotFound(f"no such object. key=`{_shown(name)}`") from error
        raise _refused(act, name, error) from error
    except NotADirectoryError as error:
        if act == "read":
            raise NotFound(f"no such object. key=`{_shown(name)}`") from error
        raise Conflict(
            f"a key above this one is an object, and a directory holds one or the other. key=`{_shown(name)}`"
        ) from error
    except OSError as error:
        raise _refused(act, name, error) from error


def _refused(act: str, name: bytes, error: OSError) -> LakehouseError:
    if error.errno in NO_SPACE:
        return StorageFull(
            f"the disk is full: free some space. path=`{_shown(name)}`",
            outcome=Outcome.NOT_COMMITTED,
            retry_after_s=5.0,
        )
    if error.errno == errno.ENAMETOOLONG:
        return Invalid(f"the path is too long for this file system. key=`{_shown(name)}`")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return Unavailable(
            f"the data directory does not let this user {act}: {_reason(error)}. path=`{_shown(name)}`",
            outcome=Outcome.NOT_COMMITTED,
        )
    return Unavailable(
        f"the disk failed to {act}: {_reason(error)}. path=`{_shown(name)}`", outcome=Outcome.NOT_COMMITTED
    )
