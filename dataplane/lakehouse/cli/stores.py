"""The store that the settings name, for commands that work on it without a server.

What it does not do: decide which locks are needed; the caller says so.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakehouse.runtime import Runtime
    from lakehouse.settings import Settings
    from lakehouse.store.base import ObjectStore


@contextlib.asynccontextmanager
async def opened(
    settings: "Settings", locks: Sequence[str] = ()
) -> "AsyncIterator[tuple[ObjectStore, Runtime]]":
    """The store, probed, and a runtime to use it with; both are closed afterwards."""
    from lakehouse.runtime import SystemRuntime
    from lakehouse.store.open import open_store

    runtime = SystemRuntime()
    try:
        s3 = None
        if settings.data.startswith("s3://"):
            from lakehouse.store.s3 import S3Settings  # boto3 takes a third of a second

            s3 = S3Settings.of(settings)
        store = await open_store(settings.data, runtime, locks=locks, s3=s3)
        try:
            yield store, runtime
        finally:
            await store.close()
    finally:
        runtime.close()
