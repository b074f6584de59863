"""The loop of one process: whoever is called is observed, decided about, and brought one step further.

A turn never remembers the turn before: it reads the resource and the world, writes down what it saw if that is new, and
acts.  What a crash leaves undone the next turn finds.  What this module does not do: know what a kind needs
(`lakehouse.control`), see it (`observe`) or do it (`act`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lakehouse import ingest
from lakehouse.control import crd, dataset, index_snapshot, vector_index
from lakehouse.control.crd import Definition
from lakehouse.control.documents import shown
from lakehouse.control.kinds import API_VERSION, DATASET, INDEX_SNAPSHOT, KINDS, VECTOR_INDEX, DatasetSpec
from lakehouse.control.plan import Action, Event, EventType, Plan
from lakehouse.control.state import Resource
from lakehouse.core.errors import Conflict, Invalid, LakehouseError, NotFound
from lakehouse.embedded.act import Actor, Convert, Wishes
from lakehouse.embedded.events import recorded
from lakehouse.embedded.known import Key, Known, Registry, definition, known
from lakehouse.embedded.observe import Observer
from lakehouse.log import Backoff
from lakehouse.loop.queue import Queue
from lakehouse.loop.work import Work, Workshop
from lakehouse.resources import Resource as Stored
from lakehouse.resources import Resources, Seen
from lakehouse.server.declared import Applied, Declared, InvalidDocument, Parts

logger = logging.getLogger(__name__)

RESYNC_S = 300.0
WATCH_S = 1.0
"""Between looks at what changes without a message: the lengths of fresh tiers, and datasets that others publish."""
WATCH_SHARED_S = 15.0
"""Between looks at datasets in a store that others may write to: 5,760 LISTs a day for each, 3 US cents on S3."""
ITEMS_S = 5.0
"""Between statuses that are written only because an index holds more or fewer items."""
REPEAT_S = 1.0
"""A plan that asks for the same again waits so long: it may be waiting for something that nobody tells of."""
RETRY = Backoff(first_s=0.5, most_s=60.0)
RACES_MAX = 8
RECONCILE: Mapping[str, Callable[..., Plan]] = {
    VECTOR_INDEX: vector_index.reconcile,
    DATASET: dataset.reconcile,
    INDEX_SNAPSHOT: index_snapshot.reconcile,
}
Companion = Callable[["Embedded"], Awaitable[None]]
"""Something that runs before the loop, or beside it for as long as it does."""


class Embedded:
    """The declared resources of one process, kept converging: a `lakehouse.server.declared.Controller`."""

    def __init__(
        self,
        parts: Parts,
        first: "Companion | None" = None,
        companions: Sequence[Companion] = (),
        told: Callable[[Known], None] | None = None,
        convert: Convert = ingest.run,
    ) -> None:
        """`first` runs before anything converges, `companions` run beside it; `told` hears of each change of a status.

        `convert` reads files.
        """
        self._parts = parts
        self.runtime = parts.runtime
        self._first = first
        self._companions = companions
        self._told = told
        self._resources = Resources(parts.store, parts.runtime)
        self.registry = Registry()
        self.workshop = Workshop(parts.runtime, self._ended)
        self._observer = Observer(parts, self.registry, self.workshop)
        wishes = Wishes(self._create, self._ask_deletion, self._forget)
        self._actor = Actor(parts, self.registry, self.workshop, wishes, convert)
        self.queue = Queue(parts.runtime, self._turn)
        self._acted: dict[Key, tuple[tuple[str, str], ...]] = {}
        self._errors: dict[Key, int] = {}
        self._waiters: dict[Key, list[asyncio.Future[None]]] = {}
        self._tiers: dict[str, tuple[bool, bool]] = {}
        self._lengths: dict[str, tuple[int, float]] = {}
        """How many items each index had when its status was last written for that, and when."""
        self._versions: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------------- life

    async def start(self) -> None:
        """Read what was applied, do what comes first, and begin.  Raises what that raises."""
        await self._load()
        if self._first is not None:
            await self._first(self)
        for name, entry in self.registry.of(VECTOR_INDEX):
            if entry.resource.spec.suspend:
                with contextlib.suppress(NotFound):
                    await self._parts.indexes.suspend(name)
        self.queue.start()
        spawn = self._parts.runtime.spawn
        self._tasks = [
            spawn(self._resync(), name="resync"),
            spawn(self._watch(), name="watch"),
            *(spawn(_run(companion, self), name="companion") for companion in self._companions),
        ]

    async def close(self) -> None:
        """Stop, also in the middle of work: nothing that is half done can be seen."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.queue.close()
        await self.workshop.stop_all()
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.cancel()

    async def _load(self) -> None:
        for kind in KINDS:
            for stored in await self._resources.all_of(definition(kind).plural):
                self._known(stored, await self._resources.seen(stored))
        for key in self.registry.all_keys():
            self.queue.call(key)

    def _known(self, stored: Stored, seen: Seen) -> Known | None:
        try:
            entry = known(stored, seen)
        except (LakehouseError, ValueError, KeyError, TypeError):
            logger.exception("resource cannot be understood. resource=%s/%s", stored.kind, stored.name)
            return None
        self.registry.put(entry)
        return entry

    async def _resync(self) -> None:
        while True:
            await self._parts.runtime.sleep(RESYNC_S)
            try:
                await self._load()
            except LakehouseError as error:
                logger.warning("resources cannot be listed: later. error=%s", error)
            except Exception:
                logger.exception("resources cannot be listed: later")

    # --------------------------------------------------------------- watching

    async def _watch(self) -> None:
        every_s = WATCH_S if self._parts.store.exclusive else WATCH_SHARED_S
        looked_s = -every_s
        while True:
            await self._parts.runtime.sleep(WATCH_S)
            try:
                self._watch_tiers()
                self._watch_lengths()
                if self.runtime.monotonic() - looked_s >= every_s:
                    looked_s = self.runtime.monotonic()
                    await self._watch_datasets()
            except Exception:
                logger.exception("cannot watch: trying again")

    def _watch_tiers(self) -> None:
        """Call a fresh tier that got its first item, or is full; memory knows."""
        for name, entry in self.registry.of(VECTOR_INDEX):
            drain, life = entry.resource.spec.drain, self._parts.indexes.opened(name)
            if drain is None or life is None:
                continue
            self._observer.pending(name, life.length)
            state = (life.length > 0, life.length >= drain.max_items)
            if self._tiers.get(name) != state:
                self._tiers[name] = state
                self.queue.call((VECTOR_INDEX, name))

    def _watch_lengths(self) -> None:
        """Call an index whose number of items is not what its status says, but not at every write."""
        now_s = self.runtime.monotonic()
        for name, entry in self.registry.of(VECTOR_INDEX):
            life = self._parts.indexes.opened(name)
            if life is None or entry.seen.status.get("items") == life.length:
                continue
            length, at_s = self._lengths.get(name, (-1, -ITEMS_S))
            if length != life.length and now_s - at_s >= ITEMS_S:
                self._lengths[name] = (life.length, now_s)
                self.queue.call((VECTOR_INDEX, name))

    async def _watch_datasets(self) -> None:
        """Call the indexes of a dataset that somebody published into."""
        for dataset_name in {
            entry.resource.spec.source.dataset
            for _, entry in self.registry.of(VECTOR_INDEX)
            if entry.resource.spec.source is not None
        }:
            try:
                last = await self._observer.last_version(dataset_name)
            except LakehouseError:
                continue
            if self._versions.get(dataset_name) != last:
                self._versions[dataset_name] = last
                self._call_concerned((DATASET, dataset_name), itself=True)

    def _call_concerned(self, key: Key, *, itself: bool = False) -> None:
        for other in self.registry.concerned(key) | ({key} if itself else set()):
            self.queue.call(other)

    def _ended(self, key: Key) -> None:
        self._call_concerned(key, itself=True)

    # ------------------------------------------------------------- converging

    async def _turn(self, key: Key) -> float | None:
        try:
            wait_s = await self._converge(key)
        except LakehouseError as error:
            logger.warning("cannot converge: trying again. resource=%s/%s error=%s", *key, error)
        except Exception:
            logger.exception("cannot converge: trying again. resource=%s/%s", *key)
        else:
            self._errors.pop(key, None)
            return wait_s
        self._errors[key] = self._errors.get(key, 0) + 1
        return RETRY.delay_s(self._errors[key], self._parts.runtime)

    async def _converge(self, key: Key) -> float | None:
        """One turn; seconds until the next, None to wait to be called."""
        entry = await self._read(key)
        if entry is None:
            return None
        observed = await self._observer.observe(key, entry.resource)
        plan = RECONCILE[key[0]](entry.resource, observed, self._parts.runtime.now())
        await self._record(entry, plan)
        if not plan.actions:
            self._acted.pop(key, None)
            return plan.requeue_after_s
        acts = tuple((action.act.value, action.subject) for action in plan.actions)
        again = self._acted.get(key) == acts
        self._acted[key] = acts
        await self._act(key, entry.resource, plan.actions)
        if self.registry.get(key) is None:
            return None
        self._call_concerned(key)
        return REPEAT_S if again else 0.0

    async def _read(self, key: Key) -> Known | None:
        """The resource as it is in the store now."""
        stored = await self._resources.find(definition(key[0]).plural, key[1])
        if stored is None:
            self.registry.remove(key)
            return None
        return self._known(stored, await self._resources.seen(stored))

    async def _record(self, entry: Known, plan: Plan) -> None:
        """Write down what was seen, when it is new."""
        news = (*_unused(entry.resource), *plan.events)
        if not plan.status_changed and not news:
            return
        seen = Seen(plan.status, recorded(entry.seen.events, news, self._parts.runtime.now()))
        await self._resources.put_seen(entry.stored, seen)
        changed = replace(entry, seen=seen, resource=replace(entry.resource, status=seen.status))
        self.registry.put(changed)
        if self._told is not None:
            self._told(changed)
        if plan.status_changed:
            self._call_concerned((entry.stored.kind, entry.stored.name))

    async def _act(self, key: Key, resource: Resource[Any], actions: Sequence[Action]) -> None:
        """In order; the first that fails ends the round, and the next turn sees that it did."""
        for action in actions:
            logger.info("acting. resource=%s/%s act=%s subject=%s", *key, action.act, action.subject)
            try:
                await self._actor.apply(action, resource)
            except LakehouseError as error:
                logger.warning("act failed. resource=%s/%s act=%s error=%s", *key, action.act, error)
                self.workshop.failed(key, action, error)
                return
            if not action.long:
                self.workshop.succeeded(key, action)

    # ----------------------------------------------------- what actions ask for

    async def _create(self, document: Mapping[str, Any]) -> None:
        """Apply a document unless its resource is there.  Raises `Conflict` when another one has its name."""
        kind, name = str(document["kind"]), str(document["metadata"]["name"])
        there = await self._resources.find(definition(kind).plural, name)
        if there is None:
            await self.apply(kind, name, document, dry_run=False)
        elif there.spec.get("indexRef") != document["spec"].get("indexRef"):
            raise Conflict(f"another resource has this name already. name=`{kind}/{name}`")

    async def _ask_deletion(self, key: Key) -> None:
        plural = definition(key[0]).plural
        for _ in range(RACES_MAX):
            stored = await self._resources.find(plural, key[1])
            if stored is None:
                return
            try:
                asked = await self._resources.ask_deletion(stored)
            except Conflict:
                continue
            self._known(asked, await self._resources.seen(asked))
            self._call_concerned(key, itself=True)
            return
        raise Conflict(f"the resource keeps changing: try again. name=`{key[0]}/{key[1]}`")

    async def _forget(self, key: Key) -> None:
        stored = await self._resources.find(definition(key[0]).plural, key[1])
        if stored is not None:
            await self._resources.forget(stored)
        self._call_concerned(key)
        self.registry.remove(key)
        self.workshop.forget(key)
        if key[0] == VECTOR_INDEX and key[1] in self._parts.indexes.suspended:
            with contextlib.suppress(NotFound):  # it stays, as an index that nobody declares
                await self._parts.indexes.resume(key[1])
        self._acted.pop(key, None)
        for waiter in self._waiters.pop(key, ()):
            if not waiter.done():
                waiter.set_result(None)

    # ------------------------------------------------- what the routes ask for

    def declared(self, index: str) -> Declared | None:
        """The resource that declares an index; never waits."""
        entry = self.registry.get((VECTOR_INDEX, index))
        if entry is None or _is_anothers(entry.seen.status):
            return None
        spec = entry.resource.spec
        why = f"it follows dataset {spec.source.dataset}" if spec.read_only else ""
        return Declared(f"{VECTOR_INDEX}/{index}", why, spec.suspend)

    def declares_dataset(self, dataset: str) -> str | None:
        """The resource that declares a dataset, as `Dataset/<name>`; never waits."""
        return None if self.registry.get((DATASET, dataset)) is None else f"{DATASET}/{dataset}"

    async def items(self, kind: str | None) -> Sequence[Mapping[str, Any]]:
        """Resources with their status, of one kind or all.  Raises `NotFound` for an unknown kind."""
        wanted = KINDS if kind is None else (definition(kind).kind,)
        return [_shown(entry) for one in wanted for _, entry in self.registry.of(one)]

    async def item(self, kind: str, name: str) -> Mapping[str, Any]:
        """One resource with its status.  Raises `NotFound`."""
        return _shown(self._entry(kind, name))

    async def events(self, kind: str, name: str) -> Sequence[Mapping[str, Any]]:
        """What happened to a resource lately, oldest first.  Raises `NotFound`."""
        return self._entry(kind, name).seen.events

    def _entry(self, kind: str, name: str) -> Known:
        key = (definition(kind).kind, name)
        entry = self.registry.get(key)
        if entry is None:
            raise NotFound(f"no such resource. name=`{key[0]}/{name}`")
        return entry

    async def apply(self, kind: str, name: str, document: Mapping[str, Any], *, dry_run: bool) -> Applied:
        """Take a wish.  Raises `InvalidDocument`, `Conflict`, `NotFound` for an unknown kind."""
        asked = definition(kind)
        _check_identity(document, asked.kind, name)
        base = await self._resources.find(asked.plural, name)
        seen = Seen() if base is None else await self._resources.seen(base)
        wanted = _valid(asked, document, base)
        before = None if base is None else base.body
        if base is not None and _is_same(base, wanted):
            return Applied("unchanged", _with_status(base.body, seen), before)
        result = "created" if base is None else "configured"
        if dry_run:
            return Applied(result, wanted, before)
        stored = await self._resources.apply(asked.plural, name, wanted, base)
        entry = self._known(stored, seen)
        self._call_concerned((asked.kind, name), itself=True)
        return Applied(result, stored.body if entry is None else _shown(entry), before)

    async def delete(self, kind: str, name: str, *, wait_s: float) -> bool:
        """Ask for a resource to go; whether it is gone.  Raises `NotFound`."""
        entry = self._entry(kind, name)
        key = (entry.stored.kind, name)
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(key, []).append(gone)
        await self._ask_deletion(key)
        if wait_s > 0:
            await asyncio.wait([gone], timeout=wait_s)
        if not gone.done():
            with contextlib.suppress(ValueError):
                self._waiters.get(key, []).remove(gone)
            return False
        return not gone.cancelled()

    def progress(self) -> Mapping[Key, Work]:
        """The work under way."""
        return self.workshop.all_running()


async def _run(companion: Companion, embedded: Embedded) -> None:
    try:
        await companion(embedded)
    except Exception:
        logger.exception("a companion ended; everything else goes on")


def _check_identity(document: Mapping[str, Any], kind: str, name: str) -> None:
    metadata = document.get("metadata")
    named = metadata.get("name") if isinstance(metadata, Mapping) else None
    if document.get("kind") != kind or named != name:
        raise Invalid(
            f"the document is of another resource than the path says. "
            f"document=`{document.get('kind')}/{named}` path=`{kind}/{name}`"
        )
    if document.get("apiVersion") != API_VERSION:
        raise Invalid(f"apiVersion is `{API_VERSION}`. apiVersion=`{document.get('apiVersion')}`")


def _valid(kind: Definition, document: Mapping[str, Any], base: Stored | None) -> Mapping[str, Any]:
    """The document with its defaults.  Raises `InvalidDocument` with everything that is wrong, a line for each."""
    checked = crd.check(kind, document, None if base is None else base.body)
    if not checked.problems:
        return checked.body
    problems = [{"path": shown(one.path), "message": one.message} for one in checked.problems]
    told = "\n".join(f"{one['path']}: {one['message']}" for one in problems)
    raise InvalidDocument(f"{kind.kind}/{document['metadata']['name']}: {told}", problems)


def _is_same(base: Stored, wanted: Mapping[str, Any]) -> bool:
    metadata = wanted.get("metadata", {})
    return base.spec == wanted.get("spec", {}) and all(
        base.metadata.get(part, {}) == metadata.get(part, {}) for part in ("labels", "annotations")
    )


def _shown(entry: Known) -> Mapping[str, Any]:
    return _with_status(entry.stored.body, entry.seen)


def _with_status(body: Mapping[str, Any], seen: Seen) -> Mapping[str, Any]:
    return {**body, "status": seen.status} if seen.status else body


def _is_anothers(status: Mapping[str, Any]) -> bool:
    """Whether the index of that name belongs to somebody else, so that the resource says nothing about it."""
    return any(
        condition["type"] == "Accepted" and condition.get("reason") == "PrefixTaken"
        for condition in status.get("conditions", ())
    )


def _unused(resource: Resource[Any]) -> tuple[Event, ...]:
    """Told once per generation: fields that mean something in a cluster only."""
    if resource.status.get("observedGeneration") == resource.meta.generation:
        return ()
    spec = resource.spec
    parts = {"storage": getattr(spec, "storage", None), "pod": getattr(spec, "pod", None)}
    if isinstance(spec, DatasetSpec):
        parts["job.resources"] = (spec.job or {}).get("resources")
    unused = [name for name, value in parts.items() if value]
    if getattr(spec, "replicas", 1) > 1:
        unused.append("replicas")
    if not unused:
        return ()
    message = f"not used in one process, where everything lies in its data directory: {', '.join(unused)}"
    return (Event(EventType.NORMAL, "NotApplicable", message),)
