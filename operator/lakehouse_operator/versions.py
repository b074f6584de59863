"""A dataset's versions as the operator sees them, and which of them may not go.

What indexes were built from stays: what VectorIndexes' statuses and Jobs say is asked first, for it costs nothing;
every life in the bucket is read only when something would go.  What this module does not do: retire a version.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lakehouse import lives
from lakehouse.control import facts
from lakehouse.control.kinds import VECTOR_INDEX
from lakehouse.control.state import DatasetVersion
from lakehouse.core import names
from lakehouse.core.errors import Corrupt, Invalid, NotFound
from lakehouse.store.base import ObjectStore
from lakehouse_operator import jobs
from lakehouse_operator.kube import JOB
from lakehouse_operator.parts import Parts
from lakehouse_operator.records import Records

READS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Found:
    """What the catalog has of a dataset."""

    current: DatasetVersion | None = None
    versions: tuple[int, ...] = ()
    pinned: frozenset[int] = frozenset()
    left_behind: bool = False


async def of_dataset(
    parts: Parts, records: Records, store: ObjectStore, namespace: str, name: str, keep: int
) -> Found:
    """The versions there are.  Raises `Corrupt` when the newest cannot be read, and `Unavailable`."""
    try:
        chain = await records.chain(store, name)
    except NotFound:  # it went just now
        return Found()
    if chain.newest is None:
        return Found(left_behind=chain.left_behind)
    numbers = tuple(chain.versions)
    pinned = frozenset(_declared(parts.cache.resources(VECTOR_INDEX, namespace), name))
    pinned |= frozenset(_building(parts.cache.resources(JOB, namespace), name))
    if set(numbers[:-keep]) - pinned:
        pinned |= await _living(store, name)
    return Found(facts.version(chain.newest), numbers, pinned)


def _declared(bodies: Iterable[Mapping[str, Any]], dataset: str) -> Iterable[int]:
    for body in bodies:
        source = (body.get("status") or {}).get("source") or {}
        if source.get("dataset") == dataset and isinstance(source.get("version"), int):
            yield source["version"]


def _building(bodies: Iterable[Mapping[str, Any]], dataset: str) -> Iterable[int]:
    for body in bodies:
        if not jobs.is_running(body):
            continue
        task = jobs.task_of(body)
        if task.get("dataset") == dataset and isinstance(task.get("version"), int):
            yield int(task["version"])


async def _living(store: ObjectStore, dataset: str) -> frozenset[int]:
    """Versions that any life of the store was built from, declared or not."""
    level = await store.children(names.VECTORS)
    gate = asyncio.Semaphore(READS_AT_ONCE)

    async def version(index: str) -> int | None:
        async with gate:
            try:
                record = await lives.current(store, index)
            except (Corrupt, Invalid):
                return None
        origin = (record.origin if record is not None else None) or {}
        found = origin.get("version")
        return found if origin.get("dataset") == dataset and isinstance(found, int) else None

    asked = (version(prefix[len(names.VECTORS) : -1]) for prefix in level.prefixes)
    return frozenset(one for one in await asyncio.gather(*asked) if one is not None)
