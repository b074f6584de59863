"""What the operator sees of a resource, gathered afresh before every decision.

The watches' cache says what the cluster has, the bucket what there is to serve, the pods what they serve now; nothing
that was decided before is taken for granted, and a bucket that does not answer is itself something seen.  What this
module does not do: decide, or change anything but that pods are told to look at a record they do not know yet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from lakehouse.control import conditions, facts, index_snapshot
from lakehouse.control.conditions import ConditionType
from lakehouse.control.kinds import (
    INDEX_SNAPSHOT,
    VECTOR_INDEX,
    DatasetSpec,
    IndexSnapshotSpec,
    VectorIndexSpec,
)
from lakehouse.control.state import (
    Act,
    Failure,
    LastRefresh,
    Life,
    ObservedBootstrap,
    ObservedDataset,
    ObservedIndex,
    ObservedIndexSnapshot,
    RefreshResult,
    Resource,
    Running,
    SnapshotState,
    StoreState,
)
from lakehouse.core.errors import Corrupt, Invalid, LakehouseError
from lakehouse.core.incarnation import Incarnation
from lakehouse.store.base import ObjectStore
from lakehouse_operator import finalizers, jobs, looks, names, resources, rollout, snapshots, versions
from lakehouse_operator.cache import Key, key_of
from lakehouse_operator.children import Children
from lakehouse_operator.contents import Contents
from lakehouse_operator.job_events import JobEvents
from lakehouse_operator.jobs import Ledger
from lakehouse_operator.kube import DEPLOYMENT, JOB, POD, Body
from lakehouse_operator.lines import Lines
from lakehouse_operator.looks import Look, Memory
from lakehouse_operator.parts import Parts
from lakehouse_operator.pods import Pods, PodState
from lakehouse_operator.records import Records
from lakehouse_operator.storage import Buckets, unreachable

FOLLOW_S = 15.0
"""Between looks at a dataset that an index follows: others may publish it, and nobody tells."""
RENEW_S = 5.0
"""Patience with a pod that is told of a new life; it may be loading it for long."""
RENEW_AGAIN_S = 30.0


@dataclass(slots=True)
class _Times:
    """What only this process remembers."""

    pending_since: dict[Key, datetime] = field(default_factory=dict)
    counted: set[Key] = field(default_factory=set)
    """Indexes whose items this process has seen counted."""
    renewed: dict[tuple[str, str, int], float] = field(default_factory=dict)
    """When a pod of a namespace was told of a record, on the monotonic clock."""
    waited: Mapping[rollout.Index, rollout.Waited] = field(default_factory=dict)
    """For whom others wait in an upgrade of the operator, or have."""
    kept: dict[Key, dict[Key, Body]] = field(default_factory=dict)
    """An index's Deployments as they were when it began to wait: what edits them meanwhile is put right."""


class Observer:
    """Looks at indexes, datasets and snapshots."""

    def __init__(
        self, parts: Parts, buckets: Buckets, pods: Pods, children: Children, memory: Memory
    ) -> None:
        self._parts = parts
        self._buckets = buckets
        self._pods = pods
        self._children = children
        self._memory = memory
        self.records = Records(parts.runtime)
        self.lines = Lines(parts)
        self._contents = Contents(parts, buckets, pods, self.records)
        self._times = _Times()
        self._work = JobEvents(parts)
        self._release = resources.release(parts.settings)

    async def observe(self, key: Key, resource: Resource[Any]) -> Any:
        """What its kind's `reconcile` wants to know.  Raises what the API server does."""
        if key[0] == VECTOR_INDEX:
            return await self.vector_index(key, resource)
        if key[0] == INDEX_SNAPSHOT:
            return await self.index_snapshot(key, resource)
        return await self.dataset(key, resource)

    def forget(self, key: Key) -> None:
        """A resource is gone."""
        self._times.pending_since.pop(key, None)
        self._times.counted.discard(key)
        self._times.kept.pop(key, None)

    # ---------------------------------------------------------------- indexes

    async def vector_index(self, key: Key, resource: Resource[VectorIndexSpec]) -> ObservedIndex:
        """Everything seen of a VectorIndex."""
        _, namespace, name = key
        spec = resource.spec
        before = self._memory.of(namespace, name)
        stored = await self._contents.look(key, resource)
        # Pods may go on serving while the bucket does not tell which life counts.
        record = stored.record if stored.state.reachable else before.record
        pods = await self._renewed(namespace, name, record, await self._pods.states(namespace, name))
        identity = f"{self._parts.identity}/{namespace}/{name}"
        deployments = self._deployments(resource)
        life = facts.life(stored.record)
        suspended = looks.is_suspended(deployments, asked=spec.suspend, alive=life is not None)
        wanted = self._wanted(resource, stored.state, life, identity, deployments, suspended=suspended)
        wanted, hold = self._in_turn(key, wanted)
        taken = "" if wanted is None else await self._children.taken(resource, wanted)
        counts = record
        if counts is None and not stored.state.reachable:
            counts = looks.remembered(resource.status, spec.shards)
        found = looks.served(counts, pods, spec.shards, spec.hnsw.ef_search)
        cut_off = looks.cut_off(pods)
        if cut_off and stored.state.reachable:
            self._buckets.refused(namespace, spec.storage, [pod.name for pod in pods if pod.cut_off])
        done = await self._work.told(self.ledger(resource))
        failures = self._failures(key, done)
        self._memory.looks[namespace, name] = Look(record, tuple(pods), wanted, failures)
        running = self._running(key, resource, done)
        return ObservedIndex(
            identity=identity,
            store=stored.state,
            cut_off=cut_off,
            life=life,
            unrecorded=stored.unrecorded,
            damaged=stored.damaged or found.damaged,
            ef_search=found.ef_search,
            items=found.items,
            position=found.position,
            serving=found.serving and not taken and not suspended,
            serving_detail=rollout.refused(deployments) or found.detail,
            replicas=found.replicas,
            ready_replicas=found.ready_replicas,
            asked_replicas=spec.replicas,
            selector=looks.selector(name),
            endpoint=f"{names.url(name, namespace)}/v1/vectors/index/{name}",
            suspended=suspended,
            deployed=bool(deployments),
            source=stored.source,
            source_detail=stored.source_detail,
            target=stored.target,
            last_drain=self._parts.workshop.drains.get(key),
            pending_since=self._pending(key, resource, found.items),
            bootstrap=self._bootstrap(resource),
            snapshots=snapshots.of_index(self._parts.cache, namespace, name),
            name_taken=taken,
            rolling=""
            if life is None
            else hold or _rolling(deployments, wanted, pods, found.behind, suspended),
            room=self.lines.may_begin(key),
            look_again_s=FOLLOW_S if _waits_for_data(spec, life) else None,
            work=running,
            failures=failures,
        )

    def _bootstrap(self, resource: Resource[VectorIndexSpec]) -> ObservedBootstrap | None:
        asked = resource.spec.bootstrap
        if asked is None:
            return None
        if asked.name is None:
            return ObservedBootstrap(None)
        entry = self._parts.cache.parsed((INDEX_SNAPSHOT, str(resource.meta.namespace), asked.name))
        if entry is None:
            return ObservedBootstrap(False)
        state = index_snapshot.state_of(entry.status)
        told = conditions.find(entry.status, ConditionType.COMPLETE).get("message", "")
        return ObservedBootstrap(
            True,
            state is SnapshotState.SUCCEEDED,
            uri=entry.status.get("uri", ""),
            detail=f"IndexSnapshot {asked.name} is not complete{f': {told}' if told else ''}",
            failed=state is SnapshotState.FAILED,
        )

    def _pending(self, key: Key, resource: Resource[VectorIndexSpec], items: int | None) -> datetime | None:
        """Since when an index has held items.  Those that were there when this process began may have come at any time
        since the last drain: waiting anew after each restart could last for ever."""
        times = self._times
        drained = conditions.moment((resource.status.get("drain") or {}).get("lastTime"))
        if items is None:
            unseen = drained or resource.meta.created_at if resource.status.get("items") else None
            return times.pending_since.get(key, unseen)
        known, now = key in times.counted, self._parts.runtime.now()
        times.counted.add(key)
        if not items:
            times.pending_since.pop(key, None)
            return None
        if key not in times.pending_since:
            times.pending_since[key] = now if known else drained or resource.meta.created_at
        return times.pending_since[key]

    # ---------------------------------------------------- its objects and pods

    def _deployments(self, resource: Resource[VectorIndexSpec]) -> list[Body]:
        meta = resource.meta
        bodies = self._parts.cache.children(DEPLOYMENT, str(meta.namespace), {names.INDEX_LABEL: meta.name})
        return [body for body in bodies if jobs.belongs(body, meta.uid)]

    def _wanted(
        self,
        resource: Resource[VectorIndexSpec],
        store: StoreState,
        life: Life | None,
        identity: str,
        deployments: Sequence[Body],
        *,
        suspended: bool,
    ) -> tuple[Body, ...] | None:
        """The objects there are to be: those that serve, once there is something to serve; None: leave all as it is."""
        if resource.meta.deletion_requested or (not store.reachable and not deployments):
            return None
        try:
            where = self._buckets.target(str(resource.meta.namespace), resource.spec.storage)
        except Invalid:
            return None
        if life is not None and life.owner != identity:
            return ()
        if life is not None and not deployments and facts.differences(resource.spec, life):
            return ()
        if life is None and not deployments:
            return tuple(resources.certificates(resource, where))
        return tuple(resources.index(resource, where, self._parts.settings, suspended=suspended))

    def _in_turn(self, key: Key, wanted: tuple[Body, ...] | None) -> tuple[tuple[Body, ...] | None, str]:
        """`wanted`, with pods kept as they are until it is the index's turn to get new ones, and why they are."""
        hold = rollout.waits_for((key[1], key[2]), self._first())
        if not hold or not wanted:
            self._times.kept.pop(key, None)
            return wanted, ""
        before, kept = self._times.kept.get(key, {}), dict[Key, Body]()
        for body in wanted:
            there = self._parts.cache.resource(key_of(body))
            if body["kind"] == DEPLOYMENT and there is not None and rollout.may_keep(body, there):
                kept[key_of(body)] = before.get(key_of(body), there)
        self._times.kept[key] = kept
        found = (rollout.kept(body, kept[key_of(body)]) if key_of(body) in kept else body for body in wanted)
        return tuple(found), hold if kept else ""

    def _first(self) -> rollout.Index | None:
        """Whose turn it is to get pods of the newest make."""
        cache = self._parts.cache
        line = rollout.line(
            cache.resources(DEPLOYMENT),
            self._release,
            lambda index: rollout.moves(cache.parsed((VECTOR_INDEX, *index))),
        )
        found, self._times.waited = rollout.first(line, self._times.waited, self._parts.runtime.monotonic())
        return found

    async def _renewed(
        self, namespace: str, name: str, record: Incarnation | None, pods: list[PodState]
    ) -> list[PodState]:
        """Pods that do not know the life that counts are told to look, and asked again."""
        if record is None or record.uuid is None:
            return pods
        now_s = self._parts.runtime.monotonic()
        late = []
        for pod in pods:
            told = (namespace, pod.name, record.number)
            knows = pod.index is not None and pod.index.life == record.uuid.hex
            due = now_s - self._times.renewed.get(told, float("-inf")) >= RENEW_AGAIN_S
            if pod.answers and not knows and due:
                self._times.renewed[told] = now_s
                late.append(pod)
        if not late:
            return pods
        self._times.renewed = {
            told: at_s for told, at_s in self._times.renewed.items() if now_s - at_s < RENEW_AGAIN_S
        }
        path = f"/internal/indexes/{name}/renew"
        await self._pods.each(namespace, late, "POST", path, timeout_s=RENEW_S)
        return await self._pods.states(namespace, name)

    # ------------------------------------------------------------------- work

    def ledger(self, resource: Resource[Any]) -> Ledger:
        """The Jobs of an index or a dataset."""
        meta = resource.meta
        label = names.INDEX_LABEL if resource.kind == VECTOR_INDEX else names.DATASET_LABEL
        labels = {label: meta.name}
        cache, namespace = self._parts.cache, str(meta.namespace)
        found = cache.children(JOB, namespace, labels)
        if not found:
            return jobs.ledger((), (), meta.uid)
        return jobs.ledger(found, cache.children(POD, namespace, labels), meta.uid, self._make(resource))

    def _make(self, resource: Resource[Any]) -> str:
        """How the pods of its Jobs would be made now; empty where nobody says in which bucket they would work."""
        try:
            where = self._buckets.target(str(resource.meta.namespace), resource.spec.storage)
        except Invalid:
            return ""
        return jobs.make(resource, where, self._parts.settings)

    def _running(self, key: Key, resource: Resource[Any], done: Ledger) -> Running | None:
        """What is under way; for a resource whose data is to go with it also what has been stopped and still ends."""
        running = done.running.running if done.running is not None else self._parts.workshop.running(key)
        if running is not None or not (resource.meta.deletion_requested and finalizers.wanted(resource)):
            return running
        label = names.INDEX_LABEL if resource.kind == VECTOR_INDEX else names.DATASET_LABEL
        pods = self._parts.cache.children(POD, key[1], {label: key[2]})
        return jobs.ending(pods)

    def _failures(self, key: Key, done: Ledger) -> tuple[Failure, ...]:
        """Of Jobs and of what this process did; of each act the newer, and none that a Job has since made good."""
        found: dict[Act, Failure] = {one.act: one for one in done.failures}
        for one in self._parts.workshop.failures(key):
            made = done.succeeded(one.act)
            if made is not None and made.ended_at is not None and made.ended_at >= one.at:
                continue
            if one.act not in found or found[one.act].at < one.at:
                found[one.act] = one
        return tuple(found.values())

    # --------------------------------------------------------------- datasets

    async def dataset(self, key: Key, resource: Resource[DatasetSpec]) -> ObservedDataset:
        """Everything seen of a Dataset."""
        _, namespace, name = key
        done = await self._work.told(self.ledger(resource))
        failures = self._failures(key, done)
        self._memory.looks[namespace, f"dataset/{name}"] = Look(failures=failures)
        always: dict[str, Any] = {
            "last_refresh": _newer(_refreshed(done), self._parts.workshop.refreshes.get(key)),
            "room": self.lines.may_begin(key),
            "work": self._running(key, resource, done),
            "failures": failures,
        }
        leaving = resource.meta.deletion_requested
        store, state = await self._buckets.of(namespace, resource.spec.storage, key, last=leaving)
        if store is None:
            return ObservedDataset(state, **always)
        try:
            found = await versions.of_dataset(
                self._parts, self.records, store, namespace, name, resource.spec.keep_versions
            )
        except Corrupt as error:
            return ObservedDataset(state, damaged=error.message, **always)
        except LakehouseError as error:
            self._buckets.suspect(namespace, resource.spec.storage)
            return ObservedDataset(unreachable(error), **always)
        return ObservedDataset(
            state,
            current=found.current,
            versions=found.versions,
            pinned=found.pinned,
            left_behind=found.left_behind,
            **always,
        )

    # -------------------------------------------------------------- snapshots

    async def index_snapshot(self, key: Key, resource: Resource[IndexSnapshotSpec]) -> ObservedIndexSnapshot:
        """Everything seen of an IndexSnapshot."""
        namespace, index = key[1], resource.spec.index
        always: dict[str, Any] = {
            "in_use": snapshots.is_in_use(self._parts.cache, namespace, resource),
            "work": self._parts.workshop.running(key),
            "failures": self._parts.workshop.failures(key),
        }
        store, state = await self.snapshot_store(key, resource)
        if store is None:
            return ObservedIndexSnapshot(state, **always)
        try:
            alive = await self.records.current(store, index)
            found = await snapshots.record_of(self._parts, store, resource, alive)
            asked = found is None and resource.meta.deletion_requested
            left = asked and await snapshots.left_behind(store, resource, alive)
        except Corrupt as error:
            return ObservedIndexSnapshot(StoreState(False, "NotUsable", error.message), **always)
        except LakehouseError as error:
            self._buckets.suspect(namespace, self._storage_of(namespace, index))
            return ObservedIndexSnapshot(unreachable(error), **always)
        life = facts.life(alive)
        serving = False
        if found is None and life is not None:
            pods = await self._pods.states(namespace, index)
            serving = looks.served(alive, pods, life.shards, life.params.ef_search).serving
        return ObservedIndexSnapshot(
            state,
            record=found,
            index_declared=self._parts.cache.parsed((VECTOR_INDEX, namespace, index)) is not None,
            left_behind=left,
            index_exists=life is not None,
            index_serving=serving,
            **always,
        )

    async def snapshot_store(
        self, key: Key, resource: Resource[IndexSnapshotSpec]
    ) -> tuple[ObjectStore | None, StoreState]:
        """Where a snapshot lies: with its index, and when that is not declared any more, where the installation says;
        if the snapshot is there: an index may be declared again elsewhere."""
        namespace, index = key[1], resource.spec.index
        store, state = await self._buckets.of(
            namespace, self._storage_of(namespace, index), key, last=resource.meta.deletion_requested
        )
        uri = str(resource.status.get("uri", ""))
        if store is not None and uri and not uri.startswith(f"{store.url}/"):
            declared = self._parts.cache.parsed((VECTOR_INDEX, namespace, index)) is not None
            why = "lies elsewhere now" if declared else "is gone"
            told = f"the VectorIndex that said how to reach it {why}. index=`{index}` uri=`{uri}`"
            return None, StoreState(False, "StorageUnknown", told)
        return store, state

    def _storage_of(self, namespace: str, index: str) -> Any:
        declared = self._parts.cache.parsed((VECTOR_INDEX, namespace, index))
        return None if declared is None else declared.spec.storage


def _waits_for_data(spec: VectorIndexSpec, life: Life | None) -> bool:
    """Whether a dataset may bring news of which nobody tells: it need not be declared."""
    if spec.source is None or spec.suspend:
        return False
    return spec.read_only or life is None or "dataset" not in life.origin


def _rolling(
    deployments: Sequence[Body],
    wanted: tuple[Body, ...] | None,
    pods: Sequence[PodState],
    behind: int,
    suspended: bool,
) -> str:
    unapplied = rollout.unapplied(wanted or (), deployments)
    if unapplied or suspended:
        return unapplied
    late = rollout.progress(deployments)
    if late:
        why = next((f"; {pod.name}: {pod.detail}" for pod in pods if not pod.address and pod.detail), "")
        return f"{late}{why}"
    return f"{behind} pods still load the new content" if behind else ""


def _refreshed(done: Ledger) -> LastRefresh | None:
    """The last refresh that a Job ended well."""
    job = done.succeeded(Act.INGEST)
    if job is None or job.ended_at is None:
        return None
    result = job.result
    version, rejected = result.get("version"), result.get("rejected")
    return LastRefresh(
        job.subject,
        job.started_at,
        job.ended_at,
        RefreshResult.PUBLISHED
        if result.get("result") == RefreshResult.PUBLISHED
        else RefreshResult.UNCHANGED,
        version if isinstance(version, int) else None,
        rejected if isinstance(rejected, int) else 0,
    )


def _newer(one: LastRefresh | None, other: LastRefresh | None) -> LastRefresh | None:
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda refresh: refresh.completed_at)
