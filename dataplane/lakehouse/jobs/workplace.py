"""What a task works with: the parts of its process, and where it tells how far it is.

What this module does not do: open any of them.
"""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from lakehouse.runtime import Runtime
from lakehouse.settings import Settings
from lakehouse.store.base import ObjectStore
from lakehouse.store.open import open_store
from lakehouse.store.s3 import S3Settings


class Workplace:
    """The parts of one process that does one task."""

    def __init__(self, store: ObjectStore, runtime: Runtime, settings: Settings, scratch: Path) -> None:
        self.store = store
        self.runtime = runtime
        self.settings = settings
        self.scratch = scratch
        self.progress = "starting"
        """How far it is, for people."""

    def tell(self, progress: str) -> None:
        self.progress = progress

    @contextlib.asynccontextmanager
    async def other_store(self, url: str) -> AsyncIterator[ObjectStore]:
        """Another bucket, or another prefix, that is only read; with the same credentials and endpoint."""
        settings = self.settings
        s3 = S3Settings.of(settings)
        store = await open_store(url, self.runtime, s3=s3, probed=False)
        try:
            yield store
        finally:
            await store.close()
