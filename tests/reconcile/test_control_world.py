"""Whatever happens to the world, and wherever a round is cut off, repeated rounds come to rest where they should.

A model of the world takes the actions: it holds an index, its snapshots and a dataset, forgets what only memory held
when it crashes, and fails what it is told to fail.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import given, note, settings
from hypothesis import strategies as st

from control_samples import COLUMNS, IDENTITY, NOW, ONCE, SOURCE
from lakehouse.control import dataset, index_snapshot, kinds, plan, state, vector_index
from lakehouse.control.plan import Action, Plan
from lakehouse.control.state import (
    REACHABLE,
    Failure,
    Life,
    Meta,
    Resource,
    Running,
    SnapshotState,
    StoreState,
)

ROUNDS_MAX = 80
DOWN = StoreState(False, "Timeout", "no answer")


@dataclass
class Memory:
    """What one process knows of one resource, and forgets when it dies."""

    work: Running | None = None
    action: Action | None = None
    failures: dict[state.Act, Failure] = field(default_factory=dict)
    last_drain: state.LastDrain | None = None
    last_refresh: state.LastRefresh | None = None
    pending_since: datetime | None = None
    suspended: bool = False
    ef_search: int | None = None

    def fails(self, action: Action, now: datetime, reason: str) -> None:
        before = self.failures.get(action.act)
        again = before.attempts + 1 if before and before.subject == action.subject else 1
        self.failures[action.act] = Failure(action.act, action.subject, reason, "it broke", now, again)


@dataclass
class Stored:
    """One resource as the API keeps it."""

    kind: str
    meta: Meta
    spec: dict[str, Any]
    status: dict[str, Any] = field(default_factory=dict)
    scheduled_for: datetime | None = None

    def parsed(self) -> Resource[Any]:
        return Resource(self.kind, self.meta, kinds.parse(self.kind, self.spec), self.status)


class World:
    """An index called products, its snapshots, and the dataset called catalog."""

    def __init__(self) -> None:
        self.now = NOW
        self.store = REACHABLE
        self.resources: dict[tuple[str, str], Stored] = {}
        self.memory: dict[tuple[str, str], Memory] = {}
        self.life: Life | None = None
        self.items = 0
        self.versions: list[int] = []
        self.files = 1
        self.read: int | None = None
        self.records: set[str] = set()
        self.taken_at: dict[str, datetime] = {}
        self.target = state.ObservedTarget(True, 3, "cosine", serving=True)
        self.dropped = False
        self.moved: list[int] = []

    # ---------------------------------------------------------------- what is there

    def put(self, kind: str, name: str, spec: dict[str, Any], scheduled_for: datetime | None = None) -> None:
        before = self.resources.get((kind, name))
        if before is None:
            made = Meta(name, None, f"uid-{name}", 1, self.now)
            self.resources[kind, name] = Stored(kind, made, spec, scheduled_for=scheduled_for)
        elif before.spec != spec:
            before.spec, before.meta = spec, replace(before.meta, generation=before.meta.generation + 1)

    def ask_deletion(self, kind: str, name: str) -> None:
        stored = self.resources.get((kind, name))
        if stored is not None and not stored.meta.deletion_requested:
            stored.meta = replace(stored.meta, deletion_requested_at=self.now)

    def crash(self) -> None:
        self.memory = {}

    def of(self, key: tuple[str, str]) -> Memory:
        return self.memory.setdefault(key, Memory())

    # ---------------------------------------------------------------- looking

    def plan(self, key: tuple[str, str]) -> Plan:
        resource = self.resources[key].parsed()
        if key[0] == kinds.VECTOR_INDEX:
            return vector_index.reconcile(resource, self.seen_index(key), self.now)
        if key[0] == kinds.DATASET:
            return dataset.reconcile(resource, self.seen_dataset(key), self.now)
        return index_snapshot.reconcile(resource, self.seen_snapshot(key), self.now)

    def seen_index(self, key: tuple[str, str]) -> state.ObservedIndex:
        memory, up = self.of(key), self.store.reachable
        if not up:
            return state.ObservedIndex(
                IDENTITY,
                self.store,
                suspended=memory.suspended,
                deployed=self.life is not None and self.life.owner == IDENTITY,
                work=memory.work,
                failures=(*memory.failures.values(),),
            )
        memory.pending_since = (memory.pending_since or self.now) if self.items and self.life else None
        serving = self.life is not None and not memory.suspended
        if serving and memory.ef_search is None and self.life is not None:
            memory.ef_search = self.life.params.ef_search
        return state.ObservedIndex(
            IDENTITY,
            self.store,
            self.life,
            ef_search=memory.ef_search if serving else None,
            items=self.items if self.life else None,
            serving=serving,
            replicas=int(serving),
            ready_replicas=int(serving),
            suspended=memory.suspended,
            source=state.ObservedSource(self.versions[-1], COLUMNS) if self.versions else None,
            target=self.target,
            last_drain=memory.last_drain,
            pending_since=memory.pending_since,
            snapshots=tuple(self.listed()),
            work=memory.work,
            failures=(*memory.failures.values(),),
        )

    def listed(self) -> list[state.ObservedSnapshot]:
        return [
            state.ObservedSnapshot(
                stored.meta.name,
                index_snapshot.state_of(stored.status),
                stored.meta.created_at,
                self.now if stored.status.get("completedAt") else None,
                stored.scheduled_for,
                deleting=stored.meta.deletion_requested,
            )
            for (kind, _), stored in sorted(self.resources.items())
            if kind == kinds.INDEX_SNAPSHOT
        ]

    def seen_dataset(self, key: tuple[str, str]) -> state.ObservedDataset:
        memory = self.of(key)
        if not self.store.reachable:
            return state.ObservedDataset(self.store, work=memory.work, failures=(*memory.failures.values(),))
        pins = {self.life.origin["version"]} if self.life and "version" in self.life.origin else set()
        newest = self.versions[-1] if self.versions else None
        return state.ObservedDataset(
            self.store,
            state.DatasetVersion(newest, "m", "f" * 64, 1, 1, 1, NOW) if newest else None,
            versions=tuple(self.versions),
            pinned=frozenset(pins),
            last_refresh=memory.last_refresh,
            work=memory.work,
            failures=(*memory.failures.values(),),
        )

    def seen_snapshot(self, key: tuple[str, str]) -> state.ObservedIndexSnapshot:
        memory = self.of(key)
        if not self.store.reachable:
            return state.ObservedIndexSnapshot(self.store, work=memory.work)
        at = self.taken_at.get(key[1])
        record = (
            state.SnapshotRecord(f"s3://{key[1]}", "d", "p", 1, 1, at) if key[1] in self.records else None
        )
        served = self.life is not None and not self.of((kinds.VECTOR_INDEX, "products")).suspended
        return state.ObservedIndexSnapshot(
            self.store,
            record,
            index_exists=self.life is not None,
            index_serving=served,
            work=memory.work,
            failures=(*memory.failures.values(),),
        )

    # ---------------------------------------------------------------- acting

    def apply(self, key: tuple[str, str], action: Action, fails: str = "") -> None:
        memory = self.of(key)
        if action.long:
            assert memory.work is None, "a second start"
            memory.work, memory.action = Running(action.act, action.subject, self.now), action
            return
        if fails:
            memory.fails(action, self.now, fails)
            return
        self.do(key, action, memory)
        memory.failures.pop(action.act, None)

    def finish(self, key: tuple[str, str], fails: str = "") -> None:
        """The long action ends."""
        memory = self.of(key)
        action, memory.work, memory.action = memory.action, None, None
        if action is None:
            return
        if fails or not self.store.reachable:
            memory.fails(action, self.now, fails or "Unavailable")
            return
        self.do(key, action, memory)
        memory.failures.pop(action.act, None)

    def do(self, key: tuple[str, str], action: Action, memory: Memory) -> None:
        match action:
            case plan.CreateIndex():
                assert self.life is None
                self.life, self.items = Life(action.params, action.shards, action.owner), 0
            case plan.BuildIndex():
                assert action.replaces == (self.life is not None)
                assert self.life is None or self.life.origin.get("follow") != "Once", "items given up unasked"
                self.life = Life(action.params, action.shards, action.owner, action.origin)
                self.items, memory.ef_search = 7, None
            case plan.RebuildIndex():
                assert self.life is not None
                self.life, memory.ef_search = replace(self.life, params=action.params), None
            case plan.SetEfSearch():
                memory.ef_search = action.ef_search
            case plan.TakeOver():
                assert self.life is not None
                self.life = replace(self.life, owner=action.owner)
            case plan.Suspend():
                memory.suspended = True
            case plan.Resume():
                memory.suspended = False
            case plan.Merge():
                self.moved.append(self.items)
                memory.last_drain, self.items = state.LastDrain(self.now, self.items), 0
            case plan.DropIndex():
                assert self.life is not None
                self.life, self.items, self.dropped = None, 0, True
                self.records = set()
            case _:
                self.do_more(key, action, memory)

    def do_more(self, key: tuple[str, str], action: Action, memory: Memory) -> None:
        match action:
            case plan.CreateSnapshotResource():
                document = action.document()
                self.put(kinds.INDEX_SNAPSHOT, action.name, document["spec"], action.scheduled_for)
            case plan.RetireSnapshot():
                self.records.discard(action.name)
                self.ask_deletion(kinds.INDEX_SNAPSHOT, action.name)
            case plan.TakeSnapshot():
                self.records.add(action.name)
                self.taken_at[action.name] = self.now
            case plan.DeleteSnapshotFiles():
                self.records.discard(action.name)
            case plan.Ingest():
                if self.read != self.files or not self.versions:
                    self.versions.append(self.versions[-1] + 1 if self.versions else 1)
                    self.read = self.files
                result = state.RefreshResult.PUBLISHED
                memory.last_refresh = state.LastRefresh(
                    action.key, self.now, self.now, result, self.versions[-1]
                )
            case plan.RetireVersions():
                keep = {*self.versions[-action.keep :], *action.pinned}
                self.versions = [one for one in self.versions if one in keep]
            case plan.DropDataset():
                self.versions, self.read = [], None
            case plan.StopWork():
                stopped = memory.action
                memory.work = memory.action = None
                if action.failed and stopped is not None:
                    memory.fails(stopped, self.now, "DeadlineExceeded")
            case plan.RemoveResource():
                del self.resources[key]
                self.memory.pop(key, None)
            case _:
                raise NotImplementedError(action)

    # ---------------------------------------------------------------- rounds

    def round(self, key: tuple[str, str], *, cut: int | None = None, fails: str = "") -> bool:
        """One round for one resource, cut off after `cut` steps; whether anything was done or written."""
        made = self.plan(key)
        steps: list[Callable[[], None]] = [
            lambda one=one: self.apply(key, one, fails)  # type: ignore[misc]
            for one in made.actions
        ]
        if made.status_changed:
            steps.append(lambda: self.write(key, made))
        for step in steps[:cut]:
            step()
        return bool(steps)

    def write(self, key: tuple[str, str], made: Plan) -> None:
        if key in self.resources:
            self.resources[key].status = dict(made.status)

    def settle(self) -> None:
        """Nothing fails any more: rounds until nothing is left to do, at one moment."""
        self.store = REACHABLE
        for key in sorted(self.memory):
            self.finish(key)
        self.now += timedelta(seconds=700)  # past every wait after a failure
        for _ in range(ROUNDS_MAX):
            done = [self.round(key) for key in sorted(self.resources)]
            for key in sorted(self.memory):
                done.append(self.of(key).work is not None)
                self.finish(key)
            if not any(done):
                return
        raise AssertionError("no rest was found")

    def picture(self) -> Any:
        """What matters of where it came to rest."""
        told = {
            key: [(one["type"], one["status"], one["reason"]) for one in stored.status["conditions"]]
            for key, stored in self.resources.items()
        }
        return told, self.life, self.versions, self.records


# ---- what happens ---------------------------------------------------------------------------------------------------

PLAIN: dict[str, Any] = {"dimension": 3}
SPECS: list[dict[str, Any]] = [
    PLAIN,
    {**PLAIN, "hnsw": {"m": 32, "efSearch": 100}},
    {**PLAIN, "source": SOURCE},
    {**PLAIN, "source": ONCE},
    {**PLAIN, "drain": {"into": "workers", "maxItems": 5, "maxAge": "1m"}},
    {**PLAIN, "snapshots": {"schedule": "*/10 * * * *", "retention": {"keepLast": 2}}},
    {**PLAIN, "suspend": True},
    {**PLAIN, "source": SOURCE, "hnsw": {"m": 8}, "deletionPolicy": "Delete"},
]
FILES: list[dict[str, Any]] = [
    {"sources": [{"uri": "a"}], "retention": {"keepVersions": 2}},
    {"sources": [{"uri": "a"}], "refresh": {"schedule": "*/15 * * * *"}},
    {"sources": [{"uri": "b"}], "refresh": {"suspend": True}},
    {"sources": [{"uri": "b"}], "deletionPolicy": "Delete"},
]
INDEX, CATALOG = (kinds.VECTOR_INDEX, "products"), (kinds.DATASET, "catalog")


@dataclass(frozen=True)
class Happening:
    """Something that happens to the world; its text is what a failing example shows."""

    text: str
    do: Callable[[World], None] = field(repr=False)


def _put_index(at: int) -> Happening:
    return Happening(f"apply SPECS[{at}]", lambda world: world.put(*INDEX, SPECS[at]))


def _put_files(at: int) -> Happening:
    return Happening(f"apply FILES[{at}]", lambda world: world.put(*CATALOG, FILES[at]))


def _pass(minutes: int) -> Happening:
    def passes(world: World) -> None:
        world.now += timedelta(minutes=minutes)

    return Happening(f"{minutes} minutes pass", passes)


def _rounds(cut: int | None, fails: str) -> Happening:
    def rounds(world: World) -> None:
        for key in sorted(world.resources):
            world.round(key, cut=cut, fails=fails)

    return Happening(f"rounds, cut after {cut}, failing with {fails or 'nothing'}", rounds)


def _ends(fails: str) -> Happening:
    def ends(world: World) -> None:
        for key in sorted(world.memory):
            world.finish(key, fails)

    return Happening(f"work ends with {fails or 'success'}", ends)


def _store(seen: StoreState) -> Happening:
    def becomes(world: World) -> None:
        world.store = seen

    return Happening(f"store answers: {seen.reachable}", becomes)


def _write(world: World) -> None:
    memory = world.of(INDEX)
    read_only = INDEX in world.resources and world.resources[INDEX].parsed().spec.read_only
    if world.life is not None and not memory.suspended and not read_only:
        world.items += 3


def _change_files(world: World) -> None:
    world.files += 1


def _begin_foreign(world: World) -> None:
    if world.life is None and INDEX not in world.resources:
        params = kinds.vector_index(PLAIN).params("products")
        world.life, world.items = Life(params, 1, "elsewhere/x/products"), 9


happenings = st.lists(
    st.one_of(
        st.integers(0, len(SPECS) - 1).map(_put_index),
        st.integers(0, len(FILES) - 1).map(_put_files),
        st.sampled_from([1, 11, 200]).map(_pass),
        st.builds(
            _rounds, st.sampled_from([None, 0, 1, 2]), st.sampled_from(["", "", "Unavailable", "Conflict"])
        ),
        st.sampled_from(["", "", "Corrupt"]).map(_ends),
        st.sampled_from([REACHABLE, DOWN]).map(_store),
        st.sampled_from(
            [
                Happening("crash", World.crash),
                Happening("items are written", _write),
                Happening("files change", _change_files),
                Happening("another cluster's index is there", _begin_foreign),
                Happening("kubectl delete vix", lambda world: world.ask_deletion(*INDEX)),
                Happening("kubectl delete dset", lambda world: world.ask_deletion(*CATALOG)),
            ]
        ),
    ),
    max_size=25,
)


def _after(happened: list[Happening]) -> World:
    note("; ".join(one.text for one in happened))
    world = World()
    for one in happened:
        one.do(world)
    return world


@settings(max_examples=300, deadline=None)
@given(happenings)
def test_rounds_come_to_rest_and_a_further_one_does_nothing(happened: list[Happening]) -> None:
    world = _after(happened)
    world.settle()
    for key in sorted(world.resources):
        made = world.plan(key)
        assert made.actions == ()
        assert not made.status_changed
        assert made.events == ()
        assert made.requeue_after_s is None or made.requeue_after_s > 0
    _check_goals(world)


@settings(max_examples=200, deadline=None)
@given(happenings)
def test_a_restart_at_rest_changes_nothing(happened: list[Happening]) -> None:
    world = _after(happened)
    world.settle()
    before = world.picture()
    world.crash()
    suspends = INDEX in world.resources and world.resources[INDEX].parsed().spec.suspend
    for key in sorted(world.resources):
        again = [one for one in world.plan(key).actions if not isinstance(one, plan.SetEfSearch)]
        # What nobody serves and how searches are tuned lives in the process: both are put in place again.
        assert again == [] or (suspends and again == [plan.Suspend()])
    world.settle()
    if world.now.replace(minute=0) == NOW.replace(minute=0):
        assert world.picture() == before


@settings(max_examples=200, deadline=None)
@given(happenings, st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12))
def test_being_cut_off_and_restarted_between_any_two_steps_leads_to_the_same_rest(
    happened: list[Happening], cuts: list[tuple[int, bool]]
) -> None:
    calm, rough = _after(happened), _after(happened)
    for world in (calm, rough):
        world.store = REACHABLE
        world.crash()
    for cut, ends in cuts:
        for key in sorted(rough.resources):
            rough.round(key, cut=cut)
        if ends:
            _ends("").do(rough)
        rough.crash()
    calm.settle()
    rough.settle()
    assert _rest(rough) == _rest(calm)


def _rest(world: World) -> Any:
    """What must be the same whatever the way; which version an index was built from once depends on the way."""
    life = world.life
    origin = {name: value for name, value in life.origin.items() if name != "version"} if life else {}
    declared = {key for key in world.resources if key[0] != kinds.INDEX_SNAPSHOT}
    return declared, life and replace(life, origin=origin), world.versions[-1:]


def _check_goals(world: World) -> None:
    assert not any(stored.meta.deletion_requested for stored in world.resources.values())
    if world.life is not None and world.life.owner != IDENTITY:
        assert world.items >= 9
        assert not world.dropped
        return
    if CATALOG in world.resources:
        asked = world.resources[CATALOG].parsed().spec
        if not asked.refresh.suspend:
            assert world.versions
            removable = set(world.versions[: -asked.keep_versions]) - {
                world.life.origin.get("version") if world.life else None
            }
            assert not removable
    if INDEX in world.resources:
        _check_index(world, world.resources[INDEX].parsed().spec)


def _check_index(world: World, asked: kinds.VectorIndexSpec) -> None:
    if asked.suspend:
        assert world.life is None or world.of(INDEX).suspended
        return
    if asked.source is not None and not world.versions:
        return
    assert world.life is not None
    if asked.read_only and world.life.origin.get("follow") == "Once":
        return  # writers may have given it items, and nothing may take those away
    if asked.source is not None and "dataset" not in world.life.origin:
        assert world.items > 0  # it held something, and nothing may take that away
        return
    if asked.read_only:
        assert world.life.origin["version"] == world.versions[-1]
    assert (world.life.params.m, world.of(INDEX).ef_search) == (asked.hnsw.m, asked.hnsw.ef_search)
    if asked.drain is not None:
        assert world.items < asked.drain.max_items
    if asked.snapshots is not None:
        good = [one for one in world.listed() if one.state is SnapshotState.SUCCEEDED]
        assert len(good) <= 2
