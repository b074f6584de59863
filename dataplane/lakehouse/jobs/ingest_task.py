"""Bringing a dataset in line with its sources, as a task.

What this module does not do: convert; `lakehouse.ingest` does.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from lakehouse import ingest as ingesting
from lakehouse.catalog import Catalog
from lakehouse.control import kinds
from lakehouse.ingest.declared import spec_of
from lakehouse.jobs.tasks import Ingest
from lakehouse.jobs.workplace import Workplace
from lakehouse.loop.work import DeadlineExceeded

BUCKET = "s3://"


async def ingest(task: Ingest, place: Workplace) -> Mapping[str, Any]:
    """`{"result": "Published" | "Unchanged", "version", "rejected"}`.  Raises what `lakehouse.ingest.run` raises."""
    store, runtime = place.store, place.runtime
    wanted = kinds.dataset(task.spec)
    spec = spec_of(task.dataset, wanted, store.url if store.url.startswith(BUCKET) else None)
    try:
        async with asyncio.timeout(wanted.deadline_s):
            result = await ingesting.run(
                spec,
                Catalog(store, runtime),
                store,
                runtime,
                place.settings,
                lambda progress: place.tell(progress.told),
                scratch=place.scratch,
            )
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"the refresh took longer than {wanted.deadline_s} s and was stopped"
        ) from error
    return {
        "result": "Published" if result.published else "Unchanged",
        "version": result.manifest.version,
        "rejected": result.rejects,
    }
