"""Beginning long actions as Jobs: at most so many at a time, each named so that it is begun once.

A refresh that would change nothing is found out here by listing its sources, which costs a Job less.  What this module
does not do: wait for a Job; the watches tell of its end.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from lakehouse.catalog import Catalog
from lakehouse.control import index_snapshot, plan, rounds
from lakehouse.control.kinds import DATASET, INDEX_SNAPSHOT, DatasetSpec, VectorIndexSpec
from lakehouse.control.plan import Action
from lakehouse.control.state import LastRefresh, RefreshResult, Resource
from lakehouse.core.errors import Conflict, NotFound, Outcome, Unavailable
from lakehouse.ingest import check
from lakehouse.ingest.declared import spec_of
from lakehouse.store.base import ObjectStore
from lakehouse_operator import jobs, records, resources, snapshots
from lakehouse_operator.cache import Key
from lakehouse_operator.children import Children
from lakehouse_operator.jobs import belongs
from lakehouse_operator.kube import JOB, Exists
from lakehouse_operator.looks import Memory
from lakehouse_operator.observe import Observer
from lakehouse_operator.parts import Parts
from lakehouse_operator.storage import Buckets

logger = logging.getLogger(__name__)

CHECK_S = 10.0
"""Longest that sources are listed here; a Job has the patience for more."""


class Starter:
    """Makes Jobs."""

    def __init__(
        self,
        parts: Parts,
        buckets: Buckets,
        children: Children,
        memory: Memory,
        observer: Observer,
    ) -> None:
        self._parts = parts
        self._buckets = buckets
        self._children = children
        self._memory = memory
        self._observer = observer
        self._gate = asyncio.Lock()
        """Counting Jobs and making one is one step."""

    async def start(self, action: Action, resource: Resource[Any]) -> None:
        """Make the Job of an action, unless it is there, or as many run as may.  Raises what stands in its way."""
        key = (resource.kind, str(resource.meta.namespace), resource.meta.name)
        store, state = await self._buckets.of(key[1], resource.spec.storage)
        if store is None:
            raise Unavailable(state.detail or "the bucket does not answer", outcome=Outcome.NOT_COMMITTED)
        if isinstance(action, plan.Ingest) and await self._is_unchanged(action, resource, store, key):
            return
        record = 0
        if not isinstance(resource.spec, DatasetSpec):
            newest = await self._observer.records.current(store, resource.meta.name)
            record = -1 if newest is None else newest.number
        attempt = self._attempt(action, key)
        where = self._buckets.target(key[1], resource.spec.storage)
        after = self._observer.ledger(resource).after(action.act)
        make = jobs.make(resource, where, self._parts.settings)
        seeded = jobs.seed(resource, action, attempt, record, after, make)
        task = await self._task(action, resource, store, seeded)
        await self._children.ensure(resource, list(resources.certificates(resource, where)))
        body = jobs.job(resource, action, task, where, self._parts.settings, seeded=seeded, attempt=attempt)
        async with self._gate:
            if self._observer.lines.free <= 0:
                logger.info("as many Jobs run as may: waiting. resource=%s/%s/%s act=%s", *key, action.act)
                return
            await self._make(body, resource)

    def _attempt(self, action: Action, key: Key) -> int:
        name = f"dataset/{key[2]}" if key[0] == DATASET else key[2]
        failed = rounds.failure_of(self._memory.of(key[1], name).failures, action.act, action.subject)
        return 1 if failed is None else failed.attempts + 1

    async def _make(self, body: dict[str, Any], resource: Resource[Any]) -> None:
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        try:
            there = await self._parts.kube.create(body)
        except Exists as error:
            found = await self._parts.kube.get(JOB, namespace, name)
            if found is None:
                raise Unavailable(
                    f"a Job of that name is just going: trying again. job=`{name}`",
                    outcome=Outcome.NOT_COMMITTED,
                ) from error
            if not belongs(found, resource.meta.uid):
                raise Conflict(
                    f"a Job of that name is there already and was not made for this resource. job=`{name}`"
                ) from error
            there = found
        self._parts.cache.put(there)

    # ------------------------------------------------------------------ tasks

    async def _task(
        self, action: Action, resource: Resource[Any], store: ObjectStore, seeded: str
    ) -> Mapping[str, Any]:
        life = jobs.life(seeded)
        match action:
            case plan.BuildIndex():
                _, url = await records.dataset_store(self._parts, self._buckets, resource, store)
                return jobs.build_task(action, life, url)
            case plan.RestoreIndex():
                files, uri = await self._restored(action, resource, store)
                return jobs.restore_task(action, life, files, uri)
            case plan.RebuildIndex():
                return jobs.rebuild_task(action, life)
            case plan.Ingest():
                key = (resource.kind, str(resource.meta.namespace), resource.meta.name)
                body = self._parts.cache.resource(key)
                if body is None:
                    raise NotFound(f"the resource is gone. name=`{resource.kind}/{resource.meta.name}`")
                return jobs.ingest_task(action, resource.meta.name, body["spec"])
            case _:
                raise NotImplementedError(f"no way to run {action.act}")

    async def _restored(
        self, action: plan.RestoreIndex, resource: Resource[VectorIndexSpec], store: ObjectStore
    ) -> tuple[tuple[str, ...] | None, str | None]:
        """What to restore: files of the index's own store, or where else it lies.  Raises `NotFound`."""
        if action.snapshot is None:
            return None, action.uri
        found = self._parts.cache.parsed((INDEX_SNAPSHOT, str(resource.meta.namespace), action.snapshot))
        if found is None:
            raise NotFound(f"no such IndexSnapshot. name=`{action.snapshot}`")
        uri, life = str(found.status.get("uri", "")), index_snapshot.life_of(found.status)
        if life is None or not uri.startswith(f"{store.url}/"):
            return None, uri
        named = await snapshots.files_of(store, found.spec.index, action.snapshot, life)
        if named is None:
            raise NotFound(f"the files of this IndexSnapshot are gone. name=`{action.snapshot}`")
        return named.keys, None

    # --------------------------------------------------------------- datasets

    async def _is_unchanged(
        self, action: plan.Ingest, resource: Resource[DatasetSpec], store: ObjectStore, key: Key
    ) -> bool:
        """Whether the newest version is what the sources hold: then that is all there is to say of this refresh.

        Raises `Invalid` and `Conflict`, which the refresh would end in.
        """
        where = self._buckets.target(key[1], resource.spec.storage)
        if not where.secret:
            return False  # a pod's own identity may be another than ours
        runtime, name = self._parts.runtime, resource.meta.name
        began = runtime.now()

        async def bucket(wanted: str) -> ObjectStore:
            return await self._buckets.beside(key[1], resource.spec.storage, wanted)

        try:
            async with asyncio.timeout(CHECK_S):
                spec = spec_of(name, resource.spec, where.url)
                newest = await check.unchanged(spec, Catalog(store, runtime), runtime, bucket)
        except (TimeoutError, Unavailable) as error:
            logger.info("sources not listed: a Job will. dataset=%s/%s error=%s", key[1], name, error)
            return False
        if newest is None:
            return False
        self._parts.workshop.refreshes[key] = LastRefresh(
            action.subject, began, runtime.now(), RefreshResult.UNCHANGED, newest.version
        )
        self._parts.workshop.succeeded(key, action)
        self._parts.call(key)
        return True
