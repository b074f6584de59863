"""Doing what a plan says, in a cluster: light things in the bucket at once, heavy ones as Jobs, the rest by pods.

Every action may be repeated: what is done already is found done.  Whatever the operator itself was doing when it ended
is begun again by the next one; Jobs go on meanwhile.  What this module does not do: decide, or make Jobs (`starting`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from typing import Any

from lakehouse import lives, named_snapshots
from lakehouse.catalog import Catalog
from lakehouse.control import index_snapshot, plan
from lakehouse.control.kinds import VECTOR_INDEX, IndexSnapshotSpec, VectorIndexSpec
from lakehouse.control.plan import Action
from lakehouse.control.state import Act, LastDrain, ObservedIndex, Resource
from lakehouse.core.errors import Conflict, Denied, Invalid, LakehouseError, NotFound, Outcome, Unavailable
from lakehouse.loop.work import DeadlineExceeded, Work
from lakehouse.store.base import ObjectStore
from lakehouse_operator import finalizers, jobs, names, resources, rollout, snapshots
from lakehouse_operator.attending import attended
from lakehouse_operator.cache import Key, key_of
from lakehouse_operator.children import Children
from lakehouse_operator.kube import DEPLOYMENT, INDEX_SNAPSHOT, JOB, Body, Exists
from lakehouse_operator.looks import Memory
from lakehouse_operator.observe import Observer
from lakehouse_operator.parts import Parts
from lakehouse_operator.peers import Peers
from lakehouse_operator.pods import Pods, PodState
from lakehouse_operator.starting import Starter
from lakehouse_operator.storage import Buckets

logger = logging.getLogger(__name__)

MERGE_S = 3_600.0
"""A merge moves some thousand items a second; what it has not moved by then, the next one does."""
IN_BUCKET_S = 120.0
"""Dropping may take longer than a turn should: what was removed by then stays removed, and the next turn goes on."""
LAST_SNAPSHOT_S = 30.0
"""Before an index is suspended: it makes resuming fast, and nothing depends on it."""


class Actor:
    """Applies what was decided."""

    def __init__(
        self,
        parts: Parts,
        buckets: Buckets,
        pods: Pods,
        peers: Peers,
        children: Children,
        memory: Memory,
        observer: Observer,
    ) -> None:
        self._parts = parts
        self._buckets = buckets
        self._pods = pods
        self._peers = peers
        self._children = children
        self._memory = memory
        self._observer = observer
        self._starter = Starter(parts, buckets, children, memory, observer)

    # ---------------------------------------------------------------- objects

    async def children(self, resource: Resource[Any], observed: Any) -> None:
        """The finalizer, and for an index the objects that the look before called for."""
        await finalizers.ensure(self._parts.kube, self._parts.cache, resource)
        if isinstance(observed, ObservedIndex) and not observed.name_taken:
            look = self._memory.of(resource.meta.namespace, resource.meta.name)
            if look.wanted is not None:
                await self._ensure(resource, look.wanted)

    async def _ensure(self, resource: Resource[VectorIndexSpec], wanted: Sequence[Body]) -> None:
        if wanted:
            self._check_image()
            await self._peers.ensure(str(resource.meta.namespace))
        await self._children.ensure(resource, wanted)
        await self._children.prune(resource, wanted)

    def _check_image(self) -> None:
        if not self._parts.settings.image:
            raise Invalid("the operator was told no image for pods: set LAKEHOUSE_OPERATOR_IMAGE")

    async def forget(self, key: Key) -> None:
        """A resource is gone; its objects go by themselves."""
        if key[0] != INDEX_SNAPSHOT:
            self._memory.looks.pop((key[1], key[2] if key[0] == VECTOR_INDEX else f"dataset/{key[2]}"), None)
        self._observer.forget(key)
        self._buckets.forget(key)
        if key[0] == VECTOR_INDEX:
            self._children.forget(key[1], key[2])

    # ---------------------------------------------------------------- actions

    async def apply(self, action: Action, resource: Resource[Any]) -> None:
        """Do it, or begin it when it is long.  Raises what the API server, the bucket and the pods say."""
        key = (resource.kind, str(resource.meta.namespace), resource.meta.name)
        if action.act in jobs.ACTS:
            self._check_image()
            await self._starter.start(action, resource)
            return
        match action:
            case plan.Merge():
                self._parts.workshop.start(key, action, lambda _: self._merge(key, action))
            case plan.TakeSnapshot():
                self._parts.workshop.start(
                    key, action, lambda work: self._take_snapshot(action, resource, work)
                )
            case plan.StopWork():
                await self._stop(key, resource, action.failed)
            case plan.RemoveResource():
                await finalizers.remove(self._parts.kube, self._parts.cache, key, resource.meta.uid)
            case plan.CreateSnapshotResource():
                await self._create_snapshot(key[1], action)
            case plan.SetEfSearch() | plan.Suspend() | plan.Resume():
                await self._on_pods(action, resource)
            case _:
                try:
                    async with asyncio.timeout(IN_BUCKET_S):
                        await self._in_bucket(action, resource, key)
                except TimeoutError as error:
                    raise Unavailable(f"not done within {IN_BUCKET_S:g} s: going on later") from error

    async def _in_bucket(self, action: Action, resource: Resource[Any], key: Key) -> None:
        store = await self._store(resource, key)
        runtime, name = self._parts.runtime, resource.meta.name
        try:
            match action:
                case plan.CreateIndex():
                    await lives.begin_empty(store, runtime, action.params, action.shards, action.owner)
                case plan.TakeOver():
                    await lives.take_over(store, runtime, name, action.owner)
                case plan.DropIndex():
                    with contextlib.suppress(
                        Denied
                    ):  # with its namespace goes our Role there; its pods go, too
                        await self._children.prune(resource, ())  # nobody serves what is about to go
                    await _absent_is_well(lives.end(store, runtime, name))
                case plan.RetireVersions():
                    await Catalog(store, runtime).retire(name, action.keep, action.pinned)
                case plan.DropDataset():
                    await _absent_is_well(Catalog(store, runtime).drop(name))
                case plan.DeleteSnapshotFiles():
                    await self._delete_snapshot_files(store, resource)
                case plan.RetireSnapshot():
                    await self._retire_snapshot(store, key[1], action.name)
                case _:
                    raise NotImplementedError(f"no way to apply {action.act}")
        except Unavailable:
            self._buckets.suspect(key[1], getattr(resource.spec, "storage", None))
            raise

    async def _store(self, resource: Resource[Any], key: Key) -> ObjectStore:
        if isinstance(resource.spec, IndexSnapshotSpec):
            store, state = await self._observer.snapshot_store(key, resource)
        else:
            leaving = resource.meta.deletion_requested
            store, state = await self._buckets.of(key[1], resource.spec.storage, last=leaving)
        if store is None:
            raise Unavailable(state.detail or "the bucket does not answer", outcome=Outcome.NOT_COMMITTED)
        return store

    # ------------------------------------------------------------------- pods

    async def _on_pods(self, action: Action, resource: Resource[VectorIndexSpec]) -> None:
        namespace, name = str(resource.meta.namespace), resource.meta.name
        look = self._memory.of(namespace, name)
        if isinstance(action, plan.SetEfSearch):
            path = f"/internal/indexes/{name}/ef-search"
            failed = await self._pods.each(
                namespace, look.pods, "POST", path, {"ef_search": action.ef_search}
            )
            if failed:
                raise failed[0]
            return
        where, asleep = self._buckets.target(namespace, resource.spec.storage), action.act is Act.SUSPEND
        wanted = resources.index(resource, where, self._parts.settings, suspended=asleep)
        if asleep:
            await self._last_snapshot(namespace, name)
            await self._children.ensure(resource, self._asleep(resource, wanted))
        else:
            await self._ensure(resource, wanted)

    def _asleep(self, resource: Resource[VectorIndexSpec], wanted: Iterable[Body]) -> Iterator[Body]:
        """The resource's own Deployments that are there, without pods.  A template that the cluster refuses cannot keep
        them up: they keep the one they have, and the next turn makes them what they should be."""
        for body in wanted:
            there = self._parts.cache.resource(key_of(body))
            if body["kind"] == DEPLOYMENT and there is not None and jobs.belongs(there, resource.meta.uid):
                yield rollout.kept(body, there)

    async def _last_snapshot(self, namespace: str, name: str) -> None:
        try:
            pod = self._pod(namespace, name)
            path = f"/v1/vectors/index/{name}/snapshot"
            await self._pods.call(namespace, pod, "POST", path, {}, timeout_s=LAST_SNAPSHOT_S)
        except LakehouseError as error:
            logger.info("suspended without a snapshot. index=%s/%s error=%s", namespace, name, error)

    def _pod(self, namespace: str, name: str) -> PodState:
        """One that serves, by its last word.  Raises `Unavailable`."""
        for pod in self._memory.of(namespace, name).pods:
            if pod.ready and pod.answers and pod.index is not None and pod.index.serving:
                return pod
        raise Unavailable(f"no pod serves the index now. index=`{name}`", outcome=Outcome.NOT_COMMITTED)

    async def _merge(self, key: Key, action: plan.Merge) -> None:
        _, namespace, name = key
        body = {
            "dest": action.into,
            "dest_url": names.shard_url(action.into, namespace),
            "clear_source": action.clear,
            "replace": action.replace,
        }
        pod, path = self._pod(namespace, name), f"/internal/indexes/{name}/merge"
        result = await self._attended(namespace, pod, path, body, MERGE_S)
        if result.get("failed"):
            raise Invalid(f"{result['failed']} items could not be merged: {result.get('first_error', '')}")
        self._parts.workshop.drains[key] = LastDrain(self._parts.runtime.now(), int(result.get("merged", 0)))

    async def _take_snapshot(
        self, action: plan.TakeSnapshot, resource: Resource[IndexSnapshotSpec], work: Work
    ) -> None:
        key = (resource.kind, str(resource.meta.namespace), resource.meta.name)
        namespace, index = key[1], action.index
        # The index's own look may be old or missing: this is another resource's turn.
        serving = [
            pod for pod in await self._pods.states(namespace, index) if pod.index and pod.index.serving
        ]
        if not serving:
            raise Unavailable(f"no pod serves the index now. index=`{index}`", outcome=Outcome.NOT_COMMITTED)
        work.tell(f"asked pod {serving[0].name}")
        # Attended: what is stopped here ends there, too, and leaves nothing that comes up later.
        path = f"/v1/vectors/index/{index}/snapshot?attended=true"
        try:
            await self._attended(
                namespace, serving[0], path, {"name": action.name}, max(1.0, action.deadline_s)
            )
        except Conflict as error:
            if await self._is_whole(key, resource):
                return
            # Another is taking it, or its record is damaged: asking at once again would be for ever.
            raise Unavailable(error.message, outcome=Outcome.NOT_COMMITTED) from error
        self._parts.workshop.snapshots[key] = self._parts.runtime.now()

    async def _attended(self, namespace: str, pod: PodState, path: str, body: Body, timeout_s: float) -> Any:
        """What a pod answers in the end to something long."""
        asked = self._pods.call(namespace, pod, "POST", path, body, timeout_s=timeout_s)
        return await attended(self._parts.runtime, self._pods, namespace, pod, asked)

    async def _is_whole(self, key: Key, resource: Resource[IndexSnapshotSpec]) -> bool:
        store = await self._store(resource, key)
        alive = await self._observer.records.current(store, resource.spec.index)
        return await snapshots.record_of(self._parts, store, resource, alive) is not None

    # -------------------------------------------------------------------- work

    async def _stop(self, key: Key, resource: Resource[Any], failed: str) -> None:
        await self._parts.workshop.stop(key, failed)
        running = self._observer.ledger(resource).running
        if running is None:
            return
        kube, cache = self._parts.kube, self._parts.cache
        await kube.delete(JOB, key[1], running.name, running.uid)
        there = await kube.get(JOB, key[1], running.name)
        if there is None:
            cache.remove((JOB, key[1], running.name), running.uid)
        else:
            cache.put(there)
        if failed and running.act is Act.INGEST:
            self._parts.workshop.failed(key, plan.Ingest(running.subject), DeadlineExceeded(failed))

    async def _create_snapshot(self, namespace: str, action: plan.CreateSnapshotResource) -> None:
        """The resource of a scheduled snapshot.  It outlives its index, so it has no owner reference."""
        body = action.document()
        body["metadata"]["namespace"] = namespace
        try:
            made: Body | None = await self._parts.kube.create(body)
        except Exists:
            made = await self._parts.kube.get(INDEX_SNAPSHOT, namespace, action.name)
            if made is not None and made["spec"].get("indexRef") != body["spec"]["indexRef"]:
                raise Conflict(
                    f"another resource has this name already. name=`{INDEX_SNAPSHOT}/{action.name}`"
                ) from None
        if made is not None:
            self._parts.cache.put(made)

    async def _retire_snapshot(self, store: ObjectStore, namespace: str, name: str) -> None:
        snapshot = self._parts.cache.parsed((INDEX_SNAPSHOT, namespace, name))
        if snapshot is not None:
            if index_snapshot.has_begun(snapshot.status):  # else what has its name is another's
                await self._delete_snapshot_files(store, snapshot)
            await self._parts.kube.delete(INDEX_SNAPSHOT, namespace, name, snapshot.meta.uid)

    async def _delete_snapshot_files(self, store: ObjectStore, snapshot: Resource[IndexSnapshotSpec]) -> None:
        """Those of the life that it was taken of; another life may have a snapshot of the same name."""
        index, alive = snapshot.spec.index, None
        if index_snapshot.life_of(snapshot.status) is None:
            alive = await self._observer.records.current(store, index)
        life = index_snapshot.home_of(snapshot.status, alive)
        if life is not None:
            await _absent_is_well(named_snapshots.delete(store, index, snapshot.meta.name, life))


async def _absent_is_well(act: Awaitable[object]) -> None:
    with contextlib.suppress(NotFound):
        await act
