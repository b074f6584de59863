"""A lake in memory, or in a directory where the test needs real files."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.lake import Lake
from lakehouse.store.local import LocalStore
from lakehouse.store.memory import MemoryStore


@pytest.fixture
async def lake(tmp_path: Path) -> AsyncIterator[Lake]:
    made = Lake(MemoryStore(), tmp_path)
    yield made
    made.runtime.close()


@pytest.fixture
async def disk_lake(tmp_path: Path) -> AsyncIterator[Lake]:
    from lakehouse.runtime import SystemRuntime

    runtime = SystemRuntime()
    store = LocalStore(tmp_path / "data", runtime)
    yield Lake(store, tmp_path, runtime)
    await store.close()
    runtime.close()
