"""One string names a store: a directory, `file:///…`, `s3://bucket/prefix` or `memory:`.

What it does not do: read settings; the caller passes them.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from lakehouse.core.errors import Invalid
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore
from lakehouse.store.local import LocalStore
from lakehouse.store.memory import MemoryStore
from lakehouse.store.probe import probe

if TYPE_CHECKING:
    from lakehouse.store.s3 import S3Settings

FORMS = "use a directory, `file:///directory`, `s3://bucket/prefix` or `memory:`"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


async def open_store(
    where: "str | os.PathLike[str]",
    runtime: Runtime,
    *,
    locks: Sequence[str] = (),
    s3: "S3Settings | None" = None,
    probed: bool = True,
) -> ObjectStore:
    """Open the store and, unless `probed` is false, prove that a log may rely on it.

    `locks` names what this process alone may write; only a directory can lock.  Raises `Invalid` for a bad
    address or an unfit store, `Conflict` for a directory that another process holds, `CredentialsRefused`,
    `Unavailable`.
    Without the right to write, open with `probed=False`.
    """
    store = await runtime.run_io(_connected, os.fspath(where), runtime, locks, s3)
    if probed and not isinstance(store, MemoryStore):
        try:
            await probe(store, runtime)
        except BaseException:
            await store.close()
            raise
    return store


def _connected(where: str, runtime: Runtime, locks: Sequence[str], s3: "S3Settings | None") -> ObjectStore:
    if where == "memory:":
        return MemoryStore()
    scheme = _SCHEME.match(where)
    if scheme is None:
        return LocalStore(_directory(where), runtime, locks)
    if scheme[1] == "file":
        return LocalStore(_file_url(where), runtime, locks)
    if scheme[1] == "s3":
        from lakehouse.store.s3 import (
            S3Settings,
            S3Store,
        )  # a third of a second that a directory need not pay

        bucket, _, prefix = where.removeprefix("s3://").partition("/")
        return S3Store(_bucket(bucket, where), prefix.rstrip("/"), runtime, s3 or S3Settings())
    raise Invalid(f"no store has the scheme `{scheme[1]}`: {FORMS}. store=`{where}`")


def _directory(where: str) -> Path:
    if not where or "\0" in where or where.startswith(("memory:", "s3:", "file:")):
        raise Invalid(f"not the address of a store: {FORMS}. store=`{where}`")
    return Path(where).expanduser()


def _file_url(where: str) -> Path:
    parts = urlsplit(where)
    if (
        parts.netloc not in ("", "localhost")
        or not parts.path.startswith("/")
        or parts.query
        or parts.fragment
    ):
        raise Invalid(f"a file URL has three slashes and a path: {FORMS}. store=`{where}`")
    return _directory(unquote(parts.path))


def _bucket(bucket: str, where: str) -> str:
    if not _BUCKET.fullmatch(bucket):
        raise Invalid(
            "a bucket's name has 3 to 63 lower-case letters, digits, dots or hyphens, as in "
            f"`s3://bucket/prefix`. store=`{where}`"
        )
    return bucket
