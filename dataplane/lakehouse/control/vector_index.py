"""What to do next about a VectorIndex, from what it asks for and what was seen.

Level-triggered: the answer depends on the state only, never on how it came about, so a round may be lost, repeated or
interrupted between any two actions.  At most one long action runs for an index at a time; content comes before drains.
What this module does not do: snapshots' schedule (`snapshot_schedule`), drains (`draining`), or anything at all.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lakehouse.control import checks, conditions, draining, facts, rounds, snapshot_schedule
from lakehouse.control.conditions import Condition, ConditionType, Status, false, true, unknown, waiting
from lakehouse.control.documents import shown
from lakehouse.control.kinds import DeletionPolicy, Follow, Source, VectorIndexSpec
from lakehouse.control.plan import (
    Action,
    BuildIndex,
    CreateIndex,
    DropIndex,
    Plan,
    RebuildIndex,
    RestoreIndex,
    Resume,
    SetEfSearch,
    StopWork,
    Suspend,
    TakeOver,
    digest_of,
)
from lakehouse.control.state import (
    ADOPT_ANNOTATION,
    Act,
    Failure,
    Life,
    ObservedIndex,
    ObservedSource,
    Resource,
)

_CONTENT = (Act.CREATE, Act.BUILD, Act.RESTORE, Act.REBUILD)
_NOT_OURS = ("PrefixTaken", "ParamsMismatch")
_LIST = re.compile(r"(?P<item>[A-Z0-9]+)(\([0-9, ]+\))?\[(?P<length>[0-9]*)\]")
_NUMBERS = frozenset(
    {"FLOAT", "REAL", "DOUBLE", "DECIMAL", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"}
    | {"UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"}
)


@dataclass(frozen=True, slots=True)
class Look:
    """One look at an index: what is wanted, what was seen, and when."""

    resource: Resource[VectorIndexSpec]
    observed: ObservedIndex
    now: datetime

    @property
    def name(self) -> str:
        return self.resource.meta.name

    @property
    def spec(self) -> VectorIndexSpec:
        return self.resource.spec

    @property
    def adopts(self) -> bool:
        return self.resource.meta.annotations.get(ADOPT_ANNOTATION) == "true"

    @property
    def ours(self) -> Life | None:
        """The life, if this resource owns it."""
        life = self.observed.life
        return life if life is not None and life.owner == self.observed.identity else None


@dataclass(frozen=True, slots=True)
class Content:
    """What its content needs: an action, or why there is none."""

    action: Action | None
    blocked: Condition | None = None
    """`UpToDate` where something is needed and cannot be done."""


def reconcile(resource: Resource[VectorIndexSpec], observed: ObservedIndex, now: datetime) -> Plan:
    """The next round for one VectorIndex."""
    look = Look(resource, observed, now)
    if resource.meta.deletion_requested:
        return _deletion(look)
    accepted = _accepted(look)
    source = _source_resolved(look)
    content = _content(look, source) if _may_act(look, accepted) else Content(None)
    drained = draining.decide(resource, observed, now)
    kept = snapshot_schedule.decide(resource, observed, now)
    actions = _actions(look, accepted, content, drained, kept)
    found = [
        accepted,
        rounds.storage(observed.store, observed.cut_off),
        source,
        _ready(look, accepted, source),
        _up_to_date(look, accepted, source, content),
        kept.condition,
        draining.condition_of(drained, begins=drained.action in actions and not resource.meta.paused),
        _restored(look),
        rounds.paused(resource),
    ]
    waits = [*drained.waits, *kept.waits, *_waits(look, content)]
    return rounds.plan(resource, _fields(look, kept), found, actions, waits, now, failures=observed.failures)


# ---- what to do -----------------------------------------------------------------------------------------------------


def _may_act(look: Look, accepted: Condition) -> bool:
    return accepted.status is Status.TRUE and look.observed.store.reachable is True


def _actions(
    look: Look,
    accepted: Condition,
    content: Content,
    drained: draining.Decision,
    kept: snapshot_schedule.Decision,
) -> list[Action]:
    observed = look.observed
    if observed.store.reachable is True and _takes_over(look):
        return _allowed(look, [TakeOver(observed.identity)])
    if look.spec.suspend:
        return _suspending(look)
    if not _may_act(look, accepted):
        return []
    if observed.suspended:
        return _allowed(look, [Resume()])
    if _outdated(look):
        return [StopWork()]
    live = _live(look)
    actions: list[Action] = [] if live is None else [live]
    if content.action is not None and observed.work is None and not _queued(look, content.action):
        actions += _allowed(look, [content.action])
    if drained.action is not None and observed.work is None and not any(one.long for one in actions):
        actions.append(drained.action)
    return _allowed(look, [*actions, *kept.actions])


def _queued(look: Look, action: Action) -> bool:
    """Whether an action waits until others, of other resources, have ended."""
    return action.long and not look.observed.room


def _outdated(look: Look) -> bool:
    """Whether what is being made is not wanted in that form any more; a newer version of the dataset may wait."""
    work, spec = look.observed.work, look.spec
    if work is None or work.act not in _CONTENT:
        return False
    if rounds.replaceable(work):
        return True
    if work.act is Act.REBUILD:
        return work.subject != RebuildIndex(spec.params(look.name)).subject
    if work.act is not Act.BUILD:
        return False
    return spec.source is None or not work.subject.endswith(f"/{build_key(spec, spec.source)}")


def _live(look: Look) -> SetEfSearch | None:
    """What applies to searches at once."""
    wanted = look.spec.hnsw.ef_search
    if look.ours is None or look.observed.ef_search in (None, wanted):
        return None
    return SetEfSearch(wanted)


def _suspending(look: Look) -> list[Action]:
    """What is this resource's own goes to sleep also while the store is away, or the rest of the spec is refused:
    whatever was acknowledged is in the store."""
    observed = look.observed
    if observed.work is not None:
        return [StopWork()]
    own = look.ours is not None or (observed.life is None and observed.deployed)
    if own and not observed.suspended:
        return _allowed(look, [Suspend()])
    return []


def _turn(look: Look) -> Suspend | Resume | None:
    """What brings an index of ours to where `suspend` wants it; None where it is."""
    if look.spec.suspend == look.observed.suspended:
        return None
    return Suspend() if look.spec.suspend else Resume()


def _allowed(look: Look, actions: Sequence[Action]) -> list[Action]:
    """Those that did not fail a moment ago."""
    return [one for one in actions if not rounds.held_s(look.observed.failures, one, look.now)]


def _waits(look: Look, content: Content) -> list[float | None]:
    observed = look.observed
    starting = look.ours is not None and not observed.serving and not observed.suspended
    usual = rounds.waits(observed.store, observed.work, observed.failures, look.now)
    queued = content.action is not None and _queued(look, content.action)
    unsettled = starting or observed.rolling or observed.name_taken or queued
    return [*usual, rounds.WORKING_S if unsettled else None, observed.look_again_s]


# ---- who owns it ----------------------------------------------------------------------------------------------------


def _takes_over(look: Look) -> bool:
    """Whether the life there is another's or nobody's, and becomes ours.

    Nobody's is taken without being asked where that changes none of its items.
    """
    life = look.observed.life
    if life is None or look.ours is not None or _mismatch(look, life) or checks.problems(look.spec):
        return False
    harmless = life.owner is None and look.spec.source is None and look.spec.bootstrap is None
    return look.adopts or harmless


def _accepted(look: Look) -> Condition:
    kind, life = ConditionType.ACCEPTED, look.observed.life
    wrong = checks.problems(look.spec)
    if wrong:
        return false(kind, "InvalidSpec", "; ".join(f"{shown(one.path)}: {one.message}" for one in wrong))
    if look.observed.name_taken:
        return false(kind, "ChildNameTaken", look.observed.name_taken)
    if life is None:
        return _unseen(look)
    mismatch = _mismatch(look, life)
    if look.ours is None and not _takes_over(look) and not (mismatch and look.adopts):
        return false(kind, "PrefixTaken", _taken(life, look.observed.identity))
    if mismatch:
        return false(kind, "ParamsMismatch", mismatch)
    if look.ours is None:
        failed = rounds.failure_of(look.observed.failures, Act.TAKE_OVER)
        whose = f"of {life.owner}" if life.owner else "not declared"
        return unknown(kind, "TakingOver", failed.message if failed else f"the index was {whose} until now")
    return true(kind, "Valid", _built_otherwise(look, life))


def _unseen(look: Look) -> Condition:
    """Of a name under which no life is seen: whose it was is still so while the store does not tell."""
    kind, observed = ConditionType.ACCEPTED, look.observed
    before = conditions.find(look.resource.status, kind)
    silent = observed.store.reachable is not True or bool(observed.damaged)
    if silent and before.get("reason") in _NOT_OURS:
        return Condition(kind, Status.FALSE, before["reason"], before.get("message", ""))
    return true(kind, "Valid")


def _taken(life: Life, identity: str) -> str:
    whose = (
        f"belongs to {life.owner}" if life.owner else "was not declared, and this resource would replace it"
    )
    return (
        f"an index of this name is there already and {whose}; delete it, use another name, or take it over with the "
        f'annotation {ADOPT_ANNOTATION}: "true". identity=`{identity}`'
    )


def _mismatch(look: Look, life: Life) -> str:
    told = facts.differences(look.spec, life)
    return f"the index that is there differs: {told}; use another name, or drop it" if told else ""


def _built_otherwise(look: Look, life: Life) -> str:
    """A note for an index that was built once, and whose source has been changed since."""
    source = look.spec.source
    if source is None or source.follow is Follow.LATEST or "dataset" not in life.origin:
        return ""
    if _columns(source) == {name: life.origin.get(name) for name in _columns(source)}:
        return ""
    return "source was changed after the index was built from it, which follow Once does once only; nothing was done"


def _columns(source: Source) -> dict[str, Any]:
    return {
        "dataset": source.dataset,
        "id_column": source.id_column,
        "vector_column": source.vector_column,
        "metadata_columns": list(source.metadata_columns),
    }


# ---- what it holds --------------------------------------------------------------------------------------------------


def build_key(spec: VectorIndexSpec, source: Source) -> str:
    """Of everything but the version that shapes an index built from a dataset."""
    shape = [spec.dimension, spec.distance.value, spec.shards, spec.hnsw.m, spec.hnsw.ef_construction]
    return digest_of({"source": _columns(source), "shape": shape})


def _content(look: Look, resolved: Condition) -> Content:
    if look.observed.damaged:
        return Content(None, false(ConditionType.UP_TO_DATE, "Damaged", look.observed.damaged))
    life, source = look.ours, look.spec.source
    if life is None:
        return _beginning(look, resolved)
    if source is not None and _goes_with(source, life):
        return _following(look, life, source, resolved)
    return _rebuilding(look, life)


def _goes_with(source: Source | None, life: Life) -> bool:
    """Whether the dataset says what the index holds: always, or until it was built from it once."""
    return source is not None and (source.follow is Follow.LATEST or "dataset" not in life.origin)


def _missing(look: Look) -> str:
    """Why nothing is begun where nothing is: the status tells of content that the store has never heard of.

    So an installation that was pointed at another bucket, or an emptied one, does not pass for an empty index.  What
    only a dataset fills is built again: nothing else can be lost.
    """
    observed, status = look.observed, look.resource.status
    items, position = status.get("items"), status.get("position")
    if observed.life is not None or not observed.unrecorded or look.spec.read_only or not (items or position):
        return ""
    return (
        f"nothing of the index is there, and {items or 0} items were at position {position or 'unknown'}: put the "
        "storage settings, or the objects, back as they were; to begin empty or from a snapshot, delete the resource "
        f"and apply it again. looked in=`{observed.unrecorded}`"
    )


def _beginning(look: Look, resolved: Condition) -> Content:
    missing = _missing(look)
    if missing:
        return Content(None, false(ConditionType.UP_TO_DATE, "ContentMissing", missing))
    spec, identity = look.spec, look.observed.identity
    params = spec.params(look.name)
    if spec.source is not None:
        return Content(_build(look, spec.source, resolved, replaces=False))
    if spec.bootstrap is None:
        return Content(CreateIndex(params, spec.shards, identity))
    there = look.observed.bootstrap
    if spec.bootstrap.name is not None and (there is None or not there.exists or not there.complete):
        return Content(None)
    return Content(RestoreIndex(params, spec.shards, identity, spec.bootstrap.name, spec.bootstrap.uri))


def _build(look: Look, source: Source, resolved: Condition, *, replaces: bool) -> BuildIndex | None:
    seen, spec = look.observed.source, look.spec
    if seen is None or resolved.status is not Status.TRUE:
        return None
    return BuildIndex(
        params=spec.params(look.name),
        shards=spec.shards,
        owner=look.observed.identity,
        dataset=source.dataset,
        version=seen.version,
        id_column=source.id_column,
        vector_column=source.vector_column,
        metadata_columns=source.metadata_columns,
        replaces=replaces,
        adopts=replaces and look.adopts,
        build_key=build_key(spec, source),
        once=source.follow is Follow.ONCE,
    )


def _following(look: Look, life: Life, source: Source, resolved: Condition) -> Content:
    wanted = _build(look, source, resolved, replaces=True)
    once = life.origin.get("follow") == Follow.ONCE
    if wanted is None or (not once and dict(wanted.origin).items() <= dict(life.origin).items()):
        return Content(None)
    work = look.observed.work
    # What comes while it is built goes over: a build begins only where nothing is, and looks itself.
    building = work is not None and work.act is Act.BUILD
    filled = "dataset" not in life.origin and look.observed.items != 0 and not building
    # One that looks empty may be written to until its pods know that they may not.
    if (once or filled) and not look.adopts:
        holds = "was built from its dataset and open to writers since, so it may hold" if once else "holds"
        why = (
            f"the index {holds} items that no dataset gave it, and building it would remove them; move them with a "
            f'merge, or give them up with the annotation {ADOPT_ANNOTATION}: "true"'
        )
        return Content(None, false(ConditionType.UP_TO_DATE, "NotEmpty", why))
    return Content(wanted)


def _rebuilding(look: Look, life: Life) -> Content:
    asked, there = look.spec.hnsw, life.params
    if (asked.m, asked.ef_construction) == (there.m, there.ef_construction):
        return Content(None)
    return Content(RebuildIndex(look.spec.params(look.name)))


# ---- the dataset ----------------------------------------------------------------------------------------------------


def _source_resolved(look: Look) -> Condition:
    kind, source, seen = ConditionType.SOURCE_RESOLVED, look.spec.source, look.observed.source
    if source is None:
        return unknown(kind, "NotConfigured", "no source is asked for")
    if look.observed.store.reachable is not True:
        return unknown(kind, "StorageNotReachable")
    if seen is None and look.observed.source_detail:
        return false(kind, "DatasetNotUsable", look.observed.source_detail)
    if seen is None:
        return waiting(
            kind, "DatasetNotFound", f"no version of the dataset is there yet. dataset=`{source.dataset}`"
        )
    reason, message = _misfit(source, seen, look.spec.dimension)
    if reason:
        return false(kind, reason, message)
    return true(kind, "Resolved", f"{source.dataset}@v{seen.version}")


def _misfit(source: Source, seen: ObservedSource, dimension: int) -> tuple[str, str]:
    """Why the dataset's newest version cannot become the index: a reason and a message, or two empty texts."""
    names = (source.id_column, source.vector_column, *source.metadata_columns)
    missing = [name for name in names if seen.columns and name not in seen.columns]
    if missing:
        return (
            "ColumnNotFound",
            f"{source.dataset}@v{seen.version} has no such column. columns=`{', '.join(missing)}`",
        )
    kind = seen.columns.get(source.vector_column, "FLOAT[]")
    found = _LIST.fullmatch(kind)
    if found is None or found["item"] not in _NUMBERS:
        return "SchemaIncompatible", (
            f"column {source.vector_column} is not a list of numbers; a transform of the dataset can make it one, with "
            f"CAST({source.vector_column} AS FLOAT[{dimension}]). type=`{kind}`"
        )
    low, high = (
        (int(found["length"]),) * 2 if found["length"] else (seen.vector_lengths or (dimension, dimension))
    )
    if (low, high) != (dimension, dimension):
        lengths = f"{low}" if low == high else f"{low} to {high}"
        return "DimensionMismatch", (
            f"column {source.vector_column} has vectors of {lengths} numbers, and the index of {dimension}"
        )
    if seen.vector_nulls:
        return "NullVectors", (
            f"column {source.vector_column} is null in {seen.vector_nulls} rows; a transform of the dataset can leave "
            f"them out, with WHERE {source.vector_column} IS NOT NULL"
        )
    return "", ""


# ---- what was found -------------------------------------------------------------------------------------------------


def _ready(look: Look, accepted: Condition, source: Condition) -> Condition:
    kind, observed = ConditionType.READY, look.observed
    if accepted.reason in _NOT_OURS:
        return waiting(kind, "NotAccepted", "the index of this name is not this resource's")
    if observed.suspended:
        return waiting(kind, "Suspended")
    if observed.serving:
        asked = max(observed.asked_replicas, observed.replicas)
        whole = observed.ready_replicas >= asked
        told = f"{observed.ready_replicas} of {asked}"
        return true(kind, "AllReplicasServing" if whole else "SomeReplicasServing", told)
    if observed.damaged:
        return false(kind, "Damaged", observed.damaged)
    if accepted.reason == "ChildNameTaken":
        return waiting(kind, "ChildNameTaken", accepted.message)
    if observed.life is None and observed.store.reachable:
        return _not_there_yet(look, source)
    if conditions.holds(look.resource.status, kind):
        return false(kind, "ReplicasUnavailable", observed.serving_detail)
    before = conditions.find(look.resource.status, kind)
    if before.get("reason") == "ReplicasUnavailable":
        return false(kind, "ReplicasUnavailable", observed.serving_detail)
    return waiting(kind, "Starting", observed.serving_detail)


def _not_there_yet(look: Look, source: Condition) -> Condition:
    kind, observed = ConditionType.READY, look.observed
    missing = _missing(look)
    if missing:
        return false(kind, "ContentMissing", missing)
    if look.spec.suspend:
        return waiting(kind, "Suspended")
    if source.status is Status.FALSE:
        return waiting(kind, "SourceNotResolved", source.message)
    work = observed.work if observed.work is not None and observed.work.act in _CONTENT else None
    failed = next((one for one in observed.failures if one.act in _CONTENT), None)
    if failed is not None and (work is None or failed.subject == work.subject):
        return waiting(kind, f"{failed.act}Failed", failed.message)
    if work is not None:
        return waiting(kind, _doing(work.act), work.progress)
    return waiting(kind, "Pending", "nothing has been made of it yet")


def _doing(act: Act) -> str:
    return {Act.BUILD: "Building", Act.RESTORE: "Restoring", Act.REBUILD: "Rebuilding"}.get(act, "Creating")


def _up_to_date(look: Look, accepted: Condition, source: Condition, content: Content) -> Condition:
    kind, observed = ConditionType.UP_TO_DATE, look.observed
    if not _may_act(look, accepted):
        return unknown(kind, "NotAccepted" if observed.store.reachable else "StorageNotReachable")
    if content.blocked is not None:
        return content.blocked
    work = observed.work if observed.work is not None and observed.work.act in _CONTENT else None
    failed = None if work is None else rounds.failure_of(observed.failures, work.act, work.subject)
    if work is not None and failed is None:
        return waiting(kind, _doing(work.act), work.progress)
    if failed is not None:  # a second attempt that runs is no news until it ends otherwise
        return false(kind, f"{failed.act}Failed", _told(failed))
    if content.action is not None:
        return _pending(look, content.action)
    if look.ours is None:
        if look.spec.source is not None:
            return waiting(kind, "SourceNotResolved", source.message)
        restored = _restored(look)
        return waiting(kind, restored.reason, restored.message)
    if source.status is Status.FALSE and _goes_with(look.spec.source, look.ours):
        return waiting(kind, "SourceNotResolved", source.message)
    left = _live(look) or _turn(look)
    if left is not None:
        return _pending(look, left)
    if observed.rolling:
        return waiting(kind, "RollingOut", observed.rolling)
    return true(kind, "Current", _built_from(look.ours.origin))


def _told(failed: Failure) -> str:
    return f"{failed.message} (attempt {failed.attempts})"


def _pending(look: Look, action: Action) -> Condition:
    kind = ConditionType.UP_TO_DATE
    failed = rounds.failure_of(look.observed.failures, action.act, action.subject)
    if failed is not None:
        return false(kind, f"{action.act}Failed", _told(failed))
    if look.spec.suspend and action.act is not Act.SUSPEND:
        return waiting(kind, "Suspended", f"{action.act} waits until the index is no longer suspended")
    if _queued(look, action):
        return waiting(kind, "Queued", f"{action.act} waits until other Jobs have ended")
    return waiting(kind, "RebuildRequired" if action.act is Act.REBUILD else f"{action.act}Required")


def _built_from(origin: Mapping[str, Any]) -> str:
    return f"{origin['dataset']}@v{origin['version']}" if "dataset" in origin else ""


_RESTORE_FAILED = {"Corrupt": "DigestMismatch", "NotFound": "SnapshotNotFound"}


def _restored(look: Look) -> Condition:
    kind, asked, observed = ConditionType.RESTORED, look.spec.bootstrap, look.observed
    if asked is None:
        return unknown(kind, "NotConfigured", "no bootstrap is asked for")
    if observed.life is not None:
        made = look.ours.origin if look.ours is not None else {}
        wanted = {"snapshot": asked.name} if asked.name is not None else {"uri": asked.uri}
        if wanted.items() <= made.items():
            return true(kind, "Verified")
        return false(
            kind, "NotEmpty", "the index was there before and was not restored: restore into a new name"
        )
    if observed.work is not None and observed.work.act is Act.RESTORE:
        return unknown(kind, "InProgress", observed.work.progress)
    failed = rounds.failure_of(observed.failures, Act.RESTORE, asked.name or asked.uri)
    if failed is not None:
        return false(kind, _RESTORE_FAILED.get(failed.reason, "RestoreFailed"), failed.message)
    if (
        asked.name is not None
        and observed.store.reachable
        and not (observed.bootstrap and observed.bootstrap.exists)
    ):
        return waiting(kind, "SnapshotNotFound", f"no such IndexSnapshot. name=`{asked.name}`")
    if asked.name is not None and observed.bootstrap and not observed.bootstrap.complete:
        told = false if observed.bootstrap.failed else unknown
        return told(kind, "SnapshotNotComplete", observed.bootstrap.detail)
    return unknown(kind, "Pending")


# ---- status and deletion --------------------------------------------------------------------------------------------


def _fields(look: Look, kept: snapshot_schedule.Decision) -> dict[str, Any]:
    observed, before = look.observed, look.resource.status
    drained = observed.last_drain
    origin = look.ours.origin if look.ours is not None else {}
    built = {"dataset": origin["dataset"], "version": origin["version"]} if "dataset" in origin else None
    last = {"lastTime": conditions.timestamp(drained.at), "lastMerged": drained.merged} if drained else None
    unseen = observed.store.reachable is not True
    return {
        "replicas": observed.replicas,
        "readyReplicas": observed.ready_replicas,
        "selector": observed.selector or None,
        "endpoint": observed.endpoint or None,
        "items": before.get("items") if observed.items is None else observed.items,
        "position": before.get("position") if observed.position is None else observed.position,
        "snapshot": kept.status or None,
        "drain": last or before.get("drain"),
        "source": before.get("source") if unseen else built,
    }


def _deletion(look: Look) -> Plan:
    return rounds.deletion(
        look.resource,
        cleanup=DropIndex() if look.ours is not None else None,
        wanted=look.spec.deletion_policy is DeletionPolicy.DELETE,
        store=look.observed.store,
        failures=look.observed.failures,
        working=look.observed.work is not None,
        ready=ConditionType.READY,
        now=look.now,
        unreadable=look.observed.damaged if look.observed.life is None else "",
    )
