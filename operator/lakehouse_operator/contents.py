"""What the bucket says of an index: the life that counts, the dataset it is built from, the index it drains into.

A bucket that does not answer is told of like anything else that was seen.  What this module does not do: look at pods'
own answers for the index itself (`looks`), or keep anything but what `records` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lakehouse.control import facts
from lakehouse.control.kinds import VECTOR_INDEX, Drain, VectorIndexSpec
from lakehouse.control.state import ObservedSource, ObservedTarget, Resource, StoreState
from lakehouse.core.errors import Corrupt, Invalid, LakehouseError
from lakehouse.core.incarnation import Incarnation
from lakehouse.store.base import ObjectStore
from lakehouse_operator import looks, records
from lakehouse_operator.cache import Key
from lakehouse_operator.parts import Parts
from lakehouse_operator.pods import Pods
from lakehouse_operator.records import Records
from lakehouse_operator.storage import Buckets, unreachable


@dataclass(frozen=True, slots=True)
class Stored:
    """What the bucket says of an index."""

    state: StoreState
    record: Incarnation | None = None
    unrecorded: str = ""
    """Where it was looked for, when there is no record of the name at all."""
    damaged: str = ""
    source: ObservedSource | None = None
    source_detail: str = ""
    """Why there can be none, where that is known."""
    target: ObservedTarget | None = None


class Contents:
    """Looks into buckets."""

    def __init__(self, parts: Parts, buckets: Buckets, pods: Pods, known: Records) -> None:
        self._parts = parts
        self._buckets = buckets
        self._pods = pods
        self._records = known

    async def look(self, key: Key, resource: Resource[VectorIndexSpec]) -> Stored:
        """Everything that the bucket says of a VectorIndex."""
        namespace, storage = key[1], resource.spec.storage
        leaving = resource.meta.deletion_requested
        store, state = await self._buckets.of(namespace, storage, key, last=leaving)
        if store is None:
            return Stored(state)
        try:
            record = await self._records.current(store, key[2])
        except Corrupt as error:
            return Stored(state, damaged=error.message)
        except LakehouseError as error:
            self._buckets.suspect(namespace, storage)
            return Stored(unreachable(error))
        if leaving:
            return Stored(state, record)
        try:
            source, why = await self._source(resource, store)
            return Stored(
                state,
                record,
                unrecorded="" if record is not None else self._place(namespace, storage),
                source=source,
                source_detail=why,
                target=await self._target(namespace, resource.spec),
            )
        except LakehouseError as error:
            self._buckets.suspect(namespace, storage)
            return Stored(unreachable(error))

    def _place(self, namespace: str, storage: Mapping[str, Any] | None) -> str:
        where = self._buckets.target(namespace, storage)
        return f"{where.url} at {where.endpoint}" if where.endpoint else where.url

    async def _source(
        self, resource: Resource[VectorIndexSpec], store: ObjectStore
    ) -> tuple[ObservedSource | None, str]:
        """The newest version of the dataset; for none, why there can be none, where that is known."""
        asked = resource.spec.source
        if asked is None:
            return None, ""
        try:
            there, _ = await records.dataset_store(self._parts, self._buckets, resource, store)
            return await self._records.newest_version(there, asked.dataset, asked.vector_column), ""
        except Invalid as error:
            return None, error.message

    async def _target(self, namespace: str, spec: VectorIndexSpec) -> ObservedTarget | None:
        if spec.drain is None:
            return None
        name = spec.drain.into
        chain = self._chain(namespace, name)
        other = self._parts.cache.parsed((VECTOR_INDEX, namespace, name))
        if other is None:
            return ObservedTarget(False, chain=chain)
        store, _ = await self._buckets.of(namespace, other.spec.storage)
        try:
            record = None if store is None else await self._records.current(store, name)
        except (Corrupt, Invalid):
            record = None
        life = facts.life(record)
        if life is None:
            return ObservedTarget(False, read_only=other.spec.read_only, chain=chain)
        pods = await self._pods.states(namespace, name)
        return ObservedTarget(
            True,
            life.params.dimension,
            life.params.distance.value,
            serving=looks.served(record, pods, life.shards, life.params.ef_search).serving,
            read_only=other.spec.read_only,
            going=other.meta.deletion_requested,
            chain=chain,
        )

    def _chain(self, namespace: str, name: str) -> tuple[str, ...]:
        """Where draining goes on to from `name`, up to the first name that comes again."""

        def drain_of(index: str) -> Drain | None:
            entry = self._parts.cache.parsed((VECTOR_INDEX, namespace, index))
            return None if entry is None else entry.spec.drain

        return facts.drain_chain(name, drain_of)
