"""What the buckets say of indexes and datasets, with as few calls as the truth allows.

A record or a manifest is written once and never changed, so it is read once and only its listing is looked at again;
what was put in the place of a store that was emptied lists with another ETag.
What this module does not do: write anything.
"""

from lakehouse.catalog import Catalog, Chain, Newest
from lakehouse.control import facts
from lakehouse.control.kinds import DATASET, VectorIndexSpec
from lakehouse.control.state import ObservedSource, Resource
from lakehouse.core import incarnation, names
from lakehouse.core.errors import Corrupt, Invalid, NotFound, Unavailable
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.manifest import checked_dataset_name
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore
from lakehouse_operator.parts import Parts
from lakehouse_operator.storage import Buckets

KNOWN_MAX = 4_096
"""Records kept decoded; of those that are forgotten each costs one GET more."""


class Records:
    """The records of indexes' lives, as `lakehouse.lives.current` reads them, and the newest manifests of datasets."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._newest = Newest()
        self._known: dict[tuple[str, str, str], Incarnation] = {}
        """By the store's URL, the record's key and its ETag: a bucket of the same name at another address lists others,
        since no two records begin a life under the same uuid."""

    async def current(self, store: ObjectStore, name: str) -> Incarnation | None:
        """The record that counts; None for a name that was never used.  Raises `Corrupt`, `Unavailable`."""
        infos = await store.list(names.incarnation_prefix(name))
        if not infos:
            return None
        key = infos[-1].key
        place = (store.url, key, infos[-1].etag)
        known = self._known.get(place)
        if known is not None and infos[-1].etag:
            return known
        try:
            record = incarnation.decode(await store.get(key))
        except NotFound as error:
            raise Unavailable(f"the store lists a record that it does not give. key=`{key}`") from error
        while len(self._known) >= KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known[place] = record
        return record

    async def chain(self, store: ObjectStore, dataset: str) -> Chain:
        """Where the versions of a dataset end now.

        Raises `Corrupt`, `Unavailable`, `NotFound` when it goes meanwhile, and `Invalid` for what no dataset may be
        called.
        """
        return await Catalog(store, self._runtime, self._newest).chain(checked_dataset_name(dataset))

    async def newest_version(
        self, store: ObjectStore, dataset: str, vector_column: str
    ) -> ObservedSource | None:
        """The newest version of a dataset, as an index sees it; None for none that can be read.

        Raises `Invalid` for what no dataset may be called.
        """
        try:
            newest = (await self.chain(store, dataset)).newest
        except (NotFound, Corrupt):
            return None
        return None if newest is None else facts.source(newest, vector_column)


async def dataset_store(
    parts: Parts, buckets: Buckets, resource: Resource[VectorIndexSpec], own: ObjectStore
) -> tuple[ObjectStore, str | None]:
    """Where the dataset is that an index is built from, and its URL where that is not the index's own store.

    Another store is used only where a Dataset of the namespace says so, and who reaches the index's reaches it, too.
    Raises `Unavailable` when it does not answer, `Invalid` where nobody says in which bucket the Dataset lies.
    """
    source, namespace = resource.spec.source, str(resource.meta.namespace)
    declared = None if source is None else parts.cache.parsed((DATASET, namespace, source.dataset))
    if declared is None:
        return own, None
    mine = buckets.target(namespace, resource.spec.storage)
    try:
        theirs = buckets.target(namespace, declared.spec.storage)
    except Invalid as error:
        raise Invalid(
            f"where the Dataset lies is not known: {error.message} dataset=`{declared.meta.name}`"
        ) from error
    if mine.url == theirs.url or not mine.reached_alike(theirs):
        return own, None
    store, state = await buckets.of(namespace, declared.spec.storage)
    if store is None:
        raise Unavailable(
            f"the dataset's bucket does not answer: {state.detail}. dataset=`{declared.meta.name}`"
        )
    return store, theirs.url
