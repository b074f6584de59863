"""One turn: a resource is observed, decided about, told of in its status, and brought one step further.

A turn never remembers the turn before, and it is the only writer of status.  Whatever happens (an event, a timer, a
restart, another leader) leads to the same turn, so a crash at any step is one more beginning.  What this module does
not do: know what a kind needs (`lakehouse.control`), see it (`observe`) or do it (`apply`).
"""

import asyncio
import contextlib
import logging
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lakehouse.control import conditions, dataset, index_snapshot, kinds, rounds, vector_index
from lakehouse.control.conditions import ConditionType
from lakehouse.control.plan import (
    Action,
    BuildIndex,
    CreateIndex,
    Event,
    EventType,
    Ingest,
    Plan,
    RestoreIndex,
    Resume,
    TakeOver,
    TakeSnapshot,
)
from lakehouse.control.state import Resource
from lakehouse.core.errors import Conflict, Denied, LakehouseError, NotFound, Unavailable
from lakehouse.log import Backoff
from lakehouse.loop.queue import Queue
from lakehouse.loop.work import Workshop
from lakehouse.runtime import Runtime
from lakehouse_operator import finalizers
from lakehouse_operator.cache import Cache, Key
from lakehouse_operator.events import Recorder
from lakehouse_operator.kube import KINDS, POD, VECTOR_INDEX, Body, Kube
from lakehouse_operator.metrics import Metrics
from lakehouse_operator.parts import Domain
from lakehouse_operator.settings import Settings

logger = logging.getLogger(__name__)

REPEAT = Backoff(first_s=1.0, most_s=10.0)
"""A plan that asks for the same again may be waiting for something that nobody tells of."""
RETRY = Backoff(first_s=0.5, most_s=60.0)
POLL_S = 8.0
"""Within it the pods of every index that is served are asked how they are."""
POLLS_AT_ONCE = 64
"""Those of a node that has died take their time all together."""
UNASKED_S = math.inf
"""Until the next turn of a resource that asks for none: it has its own moment in every interval."""
ROUTED = (kinds.VECTOR_INDEX, kinds.DATASET)
"""What the routing table names."""
ROUTES_AGAIN_S = 5.0
"""Between attempts to write the routing table."""
ROUTES_CHECK_S = 10.0
"""Between looks whether the table still says what was written: nobody tells when it was edited or deleted."""
RECONCILE: Mapping[str, Callable[..., Plan]] = {
    kinds.VECTOR_INDEX: vector_index.reconcile,
    kinds.DATASET: dataset.reconcile,
    kinds.INDEX_SNAPSHOT: index_snapshot.reconcile,
}
CONDITIONS: Mapping[str, Sequence[ConditionType]] = {
    kinds.VECTOR_INDEX: conditions.INDEX_CONDITIONS,
    kinds.DATASET: conditions.DATASET_CONDITIONS,
    kinds.INDEX_SNAPSHOT: conditions.SNAPSHOT_CONDITIONS,
}


Acts = tuple[tuple[str, str], ...]
"""Act and subject of each action."""
CHILDREN_CHANGED = ("Children", "")


class Controller:
    """Gives turns, and what belongs to one."""

    def __init__(
        self, settings: Settings, runtime: Runtime, kube: Kube, cache: Cache, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._kube = kube
        self._cache = cache
        self._metrics = metrics
        self._events = Recorder(kube, runtime, settings.identity)
        self.queue: Queue[Key] = Queue(runtime, self._turn, settings.workers)
        self.workshop: Workshop[Key] = Workshop(runtime, self._ended)
        self._domain: Domain | None = None
        self._acted: dict[Key, tuple[Acts, int]] = {}
        """What was done last, and how often in a row."""
        self._errors: dict[Key, int] = {}
        self._rerouted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------------- life

    def start(self, domain: Domain) -> None:
        """Begin to give turns; the cache must be whole."""
        self._domain = domain
        self.queue.start()
        for key in self._cache.keys(kinds.KINDS):
            self.queue.call(key)
        self._rerouted.set()
        spawn = self._runtime.spawn
        self._tasks = [spawn(self._poll(), name="poll"), spawn(self._reroute(), name="routes")]

    async def close(self) -> None:
        """Stop, also in the middle of work: whoever leads next begins anew."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.queue.close()
        await self.workshop.stop_all()

    def call(self, key: Key) -> None:
        """Give a resource a turn soon, if it is ours."""
        if self._settings.serves(key[1]):
            self.queue.call(key)

    def _ended(self, key: Key) -> None:
        self._call_concerned(key)
        self.call(key)

    def _call_concerned(self, key: Key) -> None:
        for other in self._cache.concerned(key):
            self.call(other)

    @property
    def _world(self) -> Domain:
        if self._domain is None:
            raise AssertionError("a turn before start()")
        return self._domain

    # ------------------------------------------------------------------ turns

    async def _turn(self, key: Key) -> float | None:
        with self._metrics.reconciling(key[0]) as outcome:
            try:
                wait_s = await self._converge(key)
            except LakehouseError as error:
                logger.warning("cannot converge: trying again. resource=%s/%s/%s error=%s", *key, error)
            except Exception:
                logger.exception("cannot converge: trying again. resource=%s/%s/%s", *key)
            else:
                self._errors.pop(key, None)
                return None if wait_s is None else min(wait_s, self._resync_in_s(key))
            outcome.failed()
        self._errors[key] = self._errors.get(key, 0) + 1
        return RETRY.delay_s(self._errors[key], self._runtime)

    def _resync_in_s(self, key: Key) -> float:
        return next_moment_s(key, self._settings.resync_s, self._runtime.monotonic())

    async def _converge(self, key: Key) -> float | None:
        """One turn; seconds until the next, None when the resource is gone."""
        body = self._cache.resource(key)
        if body is None:
            await self._forget(key)
            return None
        resource = self._cache.parsed(key)
        if resource is None:
            return await self._refuse(key, body)
        seen = self._cache.changes(key)
        observed = await self._world.observer.observe(key, resource)
        plan = RECONCILE[key[0]](resource, observed, self._runtime.now())
        trouble = await self._children(resource, observed)
        if trouble is not None and self._is_told(key, trouble):
            plan = rounds.troubled(
                resource, plan, ConditionType.UP_TO_DATE, trouble.message, self._runtime.now()
            )
        if await self._tell(key, body, plan, trouble) is None:
            return 0.0
        actions = [one for one in plan.actions if trouble is None or not _begins(one)]
        await self._act(key, replace(resource, status=plan.status), actions)
        if trouble is not None:
            raise trouble
        return self._wait_s(key, plan, self._cache.changes(key) != seen)

    def _wait_s(self, key: Key, plan: Plan, changed: bool) -> float:
        """Until the next turn: at once when this one did something, so that it is seen as done."""
        acts = _acts(plan.actions)
        if changed:
            acts = (*acts, CHILDREN_CHANGED)
        if not acts:
            self._acted.pop(key, None)
            return UNASKED_S if plan.requeue_after_s is None else plan.requeue_after_s
        before, times = self._acted.get(key, ((), 0))
        times = times + 1 if before == acts else 1
        self._acted[key] = (acts, times)
        return 0.0 if times == 1 else REPEAT.delay_s(times - 2, self._runtime)

    async def _children(self, resource: Resource[Any], observed: Any) -> LakehouseError | None:
        """What stood in the way of the cluster's objects being what they should be: told before it is tried again."""
        if resource.meta.deletion_requested or resource.meta.paused:
            return None
        try:
            await self._world.actor.children(resource, observed)
        except LakehouseError as error:
            return error
        return None

    def _is_told(self, key: Key, trouble: LakehouseError) -> bool:
        """Whether trouble with objects belongs in the status: what may be over in a second does not yet."""
        return not isinstance(trouble, (Unavailable, Conflict)) or self._errors.get(key, 0) > 0

    async def _act(self, key: Key, resource: Resource[Any], actions: Sequence[Action]) -> None:
        """In order; the first that fails ends the round, and the next turn sees that it did."""
        for action in actions:
            logger.info("acting. resource=%s/%s/%s act=%s subject=%s", *key, action.act, action.subject)
            try:
                await self._world.actor.apply(action, resource)
            except LakehouseError as error:
                logger.warning("act failed. resource=%s/%s/%s act=%s error=%s", *key, action.act, error)
                self.workshop.failed(key, action, error)
                break
            if not action.long:
                self.workshop.succeeded(key, action)
        if not set(_acts(actions)) <= set(self._acted.get(key, ((), 0))[0]):
            # Once, and not for each repetition: two that wait for each other would call each other without end.
            self._call_concerned(key)

    async def _forget(self, key: Key) -> None:
        await self.workshop.stop(key)
        self.workshop.forget(key)
        await self._world.actor.forget(key)
        self._acted.pop(key, None)
        if key[0] in ROUTED:
            self._rerouted.set()

    # ---------------------------------------------------------------- telling

    async def _tell(self, key: Key, body: Body, plan: Plan, trouble: LakehouseError | None) -> Body | None:
        """Write down what was seen, if that is new; None when somebody was faster, and it must be looked at again."""
        written: Body | None = body
        if plan.status_changed:
            if key[0] == VECTOR_INDEX and _becomes_ready(body, plan.status):
                await self._open_route({**body, "status": plan.status})
            try:
                written = await self._write(key, body, plan.status)
            except Denied as error:
                if not body["metadata"].get("deletionTimestamp"):
                    raise
                # With its namespace goes our Role there: what is to go is let go all the same.
                logger.warning("status not written. resource=%s/%s/%s error=%s", *key, error)
            if written is None:
                return None
            self._call_concerned(key)
            if key[0] in ROUTED:
                self._rerouted.set()
        news = list(plan.events)
        if trouble is not None:
            news.append(Event(EventType.WARNING, "ApplyFailed", trouble.message))
        await self._events.record(body, news)
        return written

    async def _open_route(self, coming: Body) -> None:
        """Who waits for Ready finds the gateway open; where that can't be written now, the table follows the status."""
        try:
            await self._world.routes(coming)
        except LakehouseError as error:
            logger.warning("cannot write the routing table: the status goes before. error=%s", error)

    async def _write(self, key: Key, body: Body, status: Mapping[str, Any]) -> Body | None:
        """The object as written; None when the one that was decided about is not there any more."""
        kind, metadata = KINDS[key[0]], body["metadata"]
        version = self._version(key, metadata)
        try:
            written = await self._kube.apply_status(kind, key[1], key[2], status, version)
        except Conflict:
            there = await self._kube.get(kind, key[1], key[2])
            if there is not None and there["metadata"]["resourceVersion"] == version:
                raise  # nobody was faster: at once again would be for ever
            if there is not None:
                self._cache.put(there)
                return None
        except NotFound:
            pass
        else:
            self._cache.put(written)
            return written
        if self._cache.remove(key, metadata["uid"]):
            self._call_concerned(key)
        return None

    def _version(self, key: Key, metadata: Mapping[str, Any]) -> str:
        """The newest version that says the same as the one that was decided about: we set finalizers ourselves."""
        newest = self._cache.resource(key)
        if newest is not None and all(
            newest["metadata"].get(part) == metadata.get(part)
            for part in ("uid", "generation", "annotations")
        ):
            metadata = newest["metadata"]
        return str(metadata["resourceVersion"])

    async def _refuse(self, key: Key, body: Body) -> float:
        """Say that a resource cannot be understood, and leave it; seconds until the next look.

        One that is to go is let go: nobody knows where its data is.
        """
        why = self._cache.trouble(key)
        if finalizers.is_going(body):
            if finalizers.holds(body):
                skipped = f"the data was left where it is: {why}"
                await self._events.record(body, [Event(EventType.WARNING, "CleanupSkipped", skipped)])
            await finalizers.remove(self._kube, self._cache, key, str(body["metadata"]["uid"]))
            return UNASKED_S
        found = [
            conditions.false(one, "InvalidSpec", why)
            if one is ConditionType.ACCEPTED
            else conditions.unknown(one, "NotAccepted")
            for one in CONDITIONS[key[0]]
        ]
        status = dict(body.get("status") or {})
        news = conditions.events(status.get("conditions") or (), found)
        generation = body["metadata"].get("generation", 1)
        wanted = {
            **status,
            "observedGeneration": generation,
            "conditions": conditions.merged(
                status.get("conditions") or (), found, generation=generation, now=self._runtime.now()
            ),
        }
        if wanted == status:
            return UNASKED_S
        if await self._write(key, body, wanted) is None:
            return 0.0
        logger.warning("resource cannot be understood. resource=%s/%s/%s error=%s", *key, why)
        await self._events.record(body, news)
        if key[0] in ROUTED:
            self._rerouted.set()
        return UNASKED_S

    # --------------------------------------------------------------- watching

    async def _poll(self) -> None:
        """Call the indexes whose pods answer otherwise than before: they change without an event."""
        gate = asyncio.Semaphore(POLLS_AT_ONCE)
        async with asyncio.TaskGroup() as polls:
            while True:
                began_s = self._runtime.monotonic()
                served = [key for key in self._cache.keys((VECTOR_INDEX,)) if self._is_served(key)]
                for number, key in enumerate(served, 1):
                    polls.create_task(self._polled(key, gate))
                    # Evenly over the time there is, not all at its beginning; and nobody waits for a pod that hangs.
                    await self._until_s(began_s + POLL_S * number / len(served))
                await self._until_s(began_s + POLL_S)

    async def _until_s(self, moment_s: float) -> None:
        await self._runtime.sleep(max(0.0, moment_s - self._runtime.monotonic()))

    async def _polled(self, key: Key, gate: asyncio.Semaphore) -> None:
        try:
            async with gate:
                changed = await self._world.poll(key)
        except Exception:
            logger.exception("cannot poll. resource=%s/%s/%s", *key)
        else:
            if changed:
                self.call(key)

    def _is_served(self, key: Key) -> bool:
        resource = self._cache.parsed(key)
        if resource is None or resource.spec.suspend:
            return False
        labels = {"lakehouse.agentview.dev/index": key[2]}
        return bool(self._cache.children(POD, key[1], labels))

    async def _reroute(self) -> None:
        """Keep the routing table current; changes that come together are one write."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUTES_CHECK_S):
                    await self._rerouted.wait()
            self._rerouted.clear()
            try:
                await self._world.routes()
            except LakehouseError as error:
                logger.warning("cannot write the routing table: trying again. error=%s", error)
            except Exception:
                logger.exception("cannot write the routing table: trying again")
            else:
                continue
            await self._runtime.sleep(ROUTES_AGAIN_S)
            self._rerouted.set()


def next_moment_s(key: Key, interval_s: float, now_s: float) -> float:
    """Until a resource's own moment, of which every interval has one: what was applied together is not looked at
    together, then or ever.  A moment that comes within a quarter of the interval is passed over."""
    moment_s = interval_s * zlib.crc32("/".join(key).encode()) / 2**32
    rest_s = (moment_s - now_s) % interval_s
    return rest_s if rest_s > interval_s / 4 else rest_s + interval_s


def _becomes_ready(body: Body, status: Mapping[str, Any]) -> bool:
    before = body.get("status") or {}
    return conditions.holds(status, ConditionType.READY) and not conditions.holds(before, ConditionType.READY)


def _acts(actions: Sequence[Action]) -> Acts:
    return tuple((action.act.value, action.subject) for action in actions)


def _begins(action: Action) -> bool:
    """Whether an action needs the cluster's objects first: it makes data that only the finalizer has removed again, or
    pods.  What goes on with what is there (a drain, a schedule, a new version, an end) does not."""
    first = isinstance(action, BuildIndex) and not action.replaces
    return first or isinstance(action, (CreateIndex, TakeOver, RestoreIndex, Ingest, TakeSnapshot, Resume))
