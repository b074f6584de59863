"""Which files a source names, and in which state they are.

A local file is known by size and modification time, an object by its ETag, an upload by the digest of its
bytes.  What this module does not do: read what is in them.
"""

import glob
import itertools
import os
import re
import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lakehouse.core.errors import Invalid, LakehouseError, NotFound, Outcome, Unavailable
from lakehouse.ingest.spec import Source
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectInfo, ObjectStore

FILES_MAX = 100_000
"""Files of one ingest; each is a line in the manifest."""
FORMS = "a path, `file:///path`, `s3://bucket/key`, each with `*`, `?`, `[…]` or `**`"
UPLOAD = "upload:"
S3 = "s3://"
_WILD = re.compile(r"[*?\[]")

OpenBucket = Callable[[str], Awaitable[ObjectStore]]
"""Opens the bucket of that name."""


@dataclass(frozen=True, slots=True)
class Found:
    """One file in the state it was found in."""

    uri: str
    etag: str
    size: int
    source: Source
    path: Path | None = None
    """Where it lies; None for an object."""
    bucket: str | None = None
    key: str | None = None

    @property
    def reader(self) -> str:
        return self.source.reader


async def resolve(asked: Sequence[Source], runtime: Runtime, open_bucket: OpenBucket) -> tuple[Found, ...]:
    """The files of all sources, each once, in order.  Raises `NotFound` naming a source that matches none."""
    found: dict[str, Found] = {}
    for source in asked:
        if source.uri.startswith(S3):
            matches = await _in_bucket(source, open_bucket)
        else:
            matches = await runtime.run_io(_on_disk, source)
        for each in matches:
            found.setdefault(each.uri, each)
        if len(found) > FILES_MAX:
            raise Invalid(f"one ingest reads at most {FILES_MAX} files. uri=`{source.uri}`")
    return tuple(found.values())


# --- local files


def _on_disk(source: Source) -> list[Found]:
    if source.path is not None:
        return [_uploaded(source, source.path)]
    path = _path(source.uri)
    is_one = os.path.lexists(path) or not _WILD.search(str(path))
    paths = [path] if is_one else _matching(str(path))
    if not paths:
        raise NotFound(f"no file matches. uri=`{source.uri}`")
    return [_local(source, path) for path in paths]


def _uploaded(source: Source, path: Path) -> Found:
    state = path.stat()
    return Found(source.uri, source.etag or str(state.st_mtime_ns), state.st_size, source, path)


def _path(uri: str) -> Path:
    """The local path or pattern that a URI names.  Raises `Invalid`."""
    if uri.startswith("file:"):
        parts = urlsplit(uri.replace("?", "%3F").replace("#", "%23"))
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise Invalid(f"a file URL has three slashes and a path. uri=`{uri}`")
        path = unquote(parts.path)
    elif "://" in uri or uri.startswith(UPLOAD):
        raise Invalid(f"not the address of a source: use {FORMS}. uri=`{uri}`")
    else:
        path = uri
    if not path or "\0" in path:
        raise Invalid(f"not the address of a source: use {FORMS}. uri=`{uri}`")
    return Path(path).expanduser().absolute()


def _matching(pattern: str) -> list[Path]:
    """Files, in order.  Those whose name begins with a dot are left out, as a shell does."""
    found = map(Path, glob.iglob(pattern, recursive=True))  # noqa: PTH207  pathlib would take the hidden ones
    return list(itertools.islice((path for path in sorted(found) if not path.is_dir()), FILES_MAX + 1))


def _local(source: Source, path: Path) -> Found:
    try:
        state = path.stat()
    except FileNotFoundError as error:
        raise NotFound(f"no such file. uri=`{source.uri}`") from error
    except OSError as error:
        raise Invalid(f"the source cannot be read: {error.strerror}. uri=`{source.uri}`") from error
    if not stat.S_ISREG(state.st_mode):
        raise Invalid(f"the source is not a regular file. uri=`{source.uri}` path=`{path}`")
    if not os.access(path, os.R_OK):
        raise Invalid(f"the source cannot be read by this user. uri=`{source.uri}` path=`{path}`")
    return Found(path.as_uri(), str(state.st_mtime_ns), state.st_size, source, path)


def check_unchanged(found: Found) -> None:
    """Blocks on the disk.  Raises `Unavailable` when the file is not in the state it was found in."""
    if found.path is None or found.source.path is not None:
        return
    try:
        state = found.path.stat()
    except OSError as error:
        raise changed(found) from error
    if (str(state.st_mtime_ns), state.st_size) != (found.etag, found.size):
        raise changed(found)


def changed(found: Found) -> Unavailable:
    """The error for a source that is not what it was a moment ago."""
    return Unavailable(
        f"the source changed while it was read: run the ingest again. uri=`{found.uri}`",
        outcome=Outcome.NOT_COMMITTED,
    )


# --- objects


async def _in_bucket(source: Source, open_bucket: OpenBucket) -> list[Found]:
    bucket, _, key = source.uri.removeprefix(S3).partition("/")
    if not key:
        raise Invalid(f"an object's address is `s3://bucket/key`. uri=`{source.uri}`")
    store = await open_bucket(bucket)
    try:
        infos = [*await _objects(store, key)]
    except NotFound as error:
        raise NotFound(f"no such object. uri=`{source.uri}`") from error
    except LakehouseError as error:
        error.message = f"{error.message} uri=`{source.uri}`"
        raise
    if not infos:
        raise NotFound(f"no object matches. uri=`{source.uri}`")
    return [
        Found(f"{S3}{bucket}/{info.key}", info.etag, info.size, source, bucket=bucket, key=info.key)
        for info in infos
    ]


async def _objects(store: ObjectStore, key: str) -> Iterable[ObjectInfo]:
    wild = _WILD.search(key)
    if wild is None:
        return [await store.head(key)]
    matches = re.compile(_as_regex(key)).fullmatch
    listed = await store.list(key[: wild.start()])
    return [info for info in listed if matches(info.key)][: FILES_MAX + 1]


def _as_regex(pattern: str) -> str:
    """As in a shell: `*` and `?` stop at a slash, `**/` is any number of folders."""
    return "".join(_tokens(pattern))


def _tokens(pattern: str) -> Iterator[str]:
    at = 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            yield "(?:[^/]+/)*"
            at += 3
        elif pattern.startswith("**", at):
            yield ".*"
            at += 2
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            inside = pattern[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            yield f"[{'^' + inside[1:] if inside.startswith('!') else inside}]"
            at = end + 1
        else:
            yield {"*": "[^/]*", "?": "[^/]"}.get(pattern[at], re.escape(pattern[at]))
            at += 1
