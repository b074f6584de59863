"""What to do next about a Dataset, from what it asks for and what was seen.

A refresh is wanted when the wish is another one than the last refresh fulfilled (its key: a hash of the spec and of the
refresh annotation), when the schedule has fired since, or when the newest version is not the one it left.  The refresh
itself finds out whether any file changed; one that failed leaves the version that is there.  What this module does not
do: read a file.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from lakehouse.control import checks, conditions, rounds, schedule
from lakehouse.control.conditions import Condition, ConditionType, false, true, unknown, waiting
from lakehouse.control.documents import shown
from lakehouse.control.kinds import DatasetSpec, DeletionPolicy
from lakehouse.control.plan import Action, DropDataset, Ingest, Plan, RetireVersions, StopWork, digest_of
from lakehouse.control.state import (
    REFRESH_ANNOTATION,
    Act,
    Failure,
    LastRefresh,
    Meta,
    ObservedDataset,
    RefreshResult,
    Resource,
)

_SCHEMA_REASONS = ("SchemaConflict",)
"""Failures that say: the files' schema is not the one allowed."""
OVERRUN_S = 60
"""After its deadline a refresh is given so long to end by itself, and say what it was doing."""
_SOURCE_REASONS = ("Unavailable", "NotFound", "CredentialsRefused", "Denied")


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a dataset: what is wanted, what was seen, and when."""

    resource: Resource[DatasetSpec]
    observed: ObservedDataset
    now: datetime
    last: LastRefresh | None
    """The last refresh that ended well, seen or remembered."""
    ingest: Ingest
    """The refresh that would fulfil the present wish."""
    due: datetime | None
    """The schedule's firing that has not been made up for."""

    @property
    def spec(self) -> DatasetSpec:
        return self.resource.spec

    @property
    def wanted(self) -> bool:
        """Whether a refresh is to be made now."""
        return not self.spec.refresh.suspend and (
            self.last is None or self.last.key != self.ingest.key or self.due is not None or self.drifted
        )

    @property
    def drifted(self) -> bool:
        """Whether the newest version is not the one that the last refresh left: somebody else wrote, or dropped it."""
        observed, last = self.observed, self.last
        if last is None or last.version is None or observed.damaged or observed.store.reachable is not True:
            return False
        return observed.current is None or observed.current.version != last.version

    @property
    def failure(self) -> Failure | None:
        """Of the present wish."""
        return rounds.failure_of(self.observed.failures, Act.INGEST, self.ingest.subject)


def refresh_key(spec: DatasetSpec, meta: Meta) -> str:
    """Another key asks for a refresh: of everything that shapes the rows, a dash, and of the refresh annotation."""
    shape = digest_of(
        {
            "sources": [[one.uri, one.format, dict(one.options)] for one in spec.sources],
            "mode": spec.mode.value,
            "transform": spec.transform,
            "schema": [spec.schema_policy, spec.schema_fingerprint],
            "rejects": spec.rejects_max,
        }
    )
    return f"{shape}-{digest_of(meta.annotations.get(REFRESH_ANNOTATION, ''))}"


def reconcile(resource: Resource[DatasetSpec], observed: ObservedDataset, now: datetime) -> Plan:
    """The next round for one Dataset."""
    if resource.meta.deletion_requested:
        return _deletion(resource, observed, now)
    wrong = checks.problems(resource.spec)
    last = _last(resource, observed)
    look = Look(
        resource,
        observed,
        now,
        last,
        Ingest(refresh_key(resource.spec, resource.meta)),
        None if wrong else _due(resource, last, now),
    )
    told = "; ".join(f"{shown(one.path)}: {one.message}" for one in wrong)
    kind = ConditionType.ACCEPTED
    accepted = false(kind, "InvalidSpec", told) if wrong else true(kind, "Valid")
    actions = [] if wrong else _actions(look)
    found = [accepted, rounds.storage(observed.store), _compatible(look), _fresh(look), _ready(look)]
    found.append(rounds.paused(resource))
    upcoming = None if wrong else _upcoming(look)
    usual = rounds.waits(observed.store, observed.work, observed.failures, now)
    return rounds.plan(
        resource,
        _fields(look, upcoming),
        found,
        actions,
        [*usual, rounds.seconds_until(upcoming, now) or None, *_looks_again(look)],
        now,
        failures=observed.failures,
    )


# ---- when -----------------------------------------------------------------------------------------------------------


def _last(resource: Resource[DatasetSpec], observed: ObservedDataset) -> LastRefresh | None:
    """What was seen, or else what the status remembers; the newer of both."""
    told = resource.status.get("lastRefresh")
    seen = observed.last_refresh
    if not told or "key" not in told:
        return seen
    ended = conditions.moment(told["completedAt"])
    began = conditions.moment(told.get("startedAt")) or ended
    if ended is None or began is None or (seen is not None and seen.completed_at >= ended):
        return seen
    result = RefreshResult(told.get("result", RefreshResult.UNCHANGED))
    return LastRefresh(told["key"], began, ended, result, told.get("version"), told.get("rejected", 0))


def _due(resource: Resource[DatasetSpec], last: LastRefresh | None, now: datetime) -> datetime | None:
    asked = resource.spec.refresh
    if asked.schedule is None:
        return None
    # A refresh that was running at a firing may have listed its files before it: only its start counts.
    since = last.started_at if last is not None else resource.meta.created_at
    return schedule.due(asked.schedule, asked.time_zone, since, now)


def _upcoming(look: Look) -> datetime | None:
    asked = look.spec.refresh
    if asked.schedule is None or asked.suspend:
        return None
    return look.due or schedule.next_after(asked.schedule, asked.time_zone, look.now)


# ---- what to do -----------------------------------------------------------------------------------------------------


def _actions(look: Look) -> list[Action]:
    observed = look.observed
    if observed.store.reachable is not True:
        return []
    if observed.work is not None:
        if _overrun(look):
            return [StopWork(failed=f"the refresh took longer than {look.spec.deadline_s} s and was stopped")]
        return [StopWork()] if look.spec.refresh.suspend or _outdated(look) else []
    if _queued(look):
        return []
    actions: list[Action] = [look.ingest] if look.wanted else []
    if not actions and _retirable(look):
        actions = [RetireVersions(look.spec.keep_versions, observed.pinned)]
    return [one for one in actions if not rounds.held_s(observed.failures, one, look.now)]


def _queued(look: Look) -> bool:
    """Whether the refresh that is wanted waits until others, of other resources, have ended."""
    return look.wanted and look.observed.work is None and not look.observed.room


def _looks_again(look: Look) -> tuple[float | None, ...]:
    return look.observed.look_again_s, rounds.WORKING_S if _queued(look) else None


def _outdated(look: Look) -> bool:
    """Whether what is being read is not wanted in that form any more.  Being asked again is no reason to begin anew."""
    work = look.observed.work
    if work is None or work.act is not Act.INGEST:
        return False
    shape = look.ingest.key.partition("-")[0]
    return work.subject.partition("-")[0] != shape or rounds.replaceable(work)


def _overrun(look: Look) -> bool:
    work = look.observed.work
    allowed = timedelta(seconds=look.spec.deadline_s + OVERRUN_S)
    return work is not None and look.now - work.started_at > allowed


def _retirable(look: Look) -> bool:
    older = look.observed.versions[: -look.spec.keep_versions]
    return bool(set(older) - look.observed.pinned)


# ---- what was found -------------------------------------------------------------------------------------------------


def _compatible(look: Look) -> Condition:
    kind, current, pin = ConditionType.SCHEMA_COMPATIBLE, look.observed.current, look.spec.schema_fingerprint
    failed = look.failure
    if failed is not None and failed.reason in _SCHEMA_REASONS:
        return false(kind, "FingerprintMismatch" if pin else "SchemaChanged", failed.message)
    if look.observed.store.reachable is not True:
        return unknown(kind, "StorageNotReachable")
    if current is None:
        return unknown(kind, "Pending", "no version is there yet")
    if pin is not None and current.schema_fingerprint != pin:
        told = f"the version that is there has another schema. fingerprint=`{current.schema_fingerprint}`"
        return false(kind, "FingerprintMismatch", told)
    return true(kind, "Compatible")


def _fresh(look: Look) -> Condition:
    kind, observed, failed = ConditionType.FRESH, look.observed, look.failure
    if look.spec.refresh.suspend:
        return unknown(kind, "Suspended")
    if observed.store.reachable is not True:
        return unknown(kind, "StorageNotReachable")
    if failed is not None and look.wanted:
        return false(kind, _why(failed), f"{failed.message} (attempt {failed.attempts})")
    if not look.wanted and look.last is not None:
        told = f"{look.last.rejected} rows were set aside" if look.last.rejected else ""
        return true(kind, "Refreshed" if look.last.result is RefreshResult.PUBLISHED else "Unchanged", told)
    progress = observed.work.progress if observed.work is not None else ""
    if look.last is not None and look.last.key == look.ingest.key and not (_late(look) or look.drifted):
        return true(kind, "Refreshing", progress)  # the schedule has just fired
    if _queued(look):
        return waiting(kind, "Queued", "the refresh waits until other Jobs have ended")
    return waiting(kind, "Refreshing" if observed.work else "Overdue" if _late(look) else "Pending", progress)


def _late(look: Look) -> bool:
    return look.due is not None and look.now - look.due > timedelta(seconds=look.spec.deadline_s)


def _why(failed: Failure) -> str:
    if failed.reason in _SCHEMA_REASONS:
        return "SchemaIncompatible"
    return "SourceUnreachable" if failed.reason in _SOURCE_REASONS else "RefreshFailed"


def _ready(look: Look) -> Condition:
    kind, observed = ConditionType.READY, look.observed
    if observed.store.reachable is not True:
        return unknown(kind, "StorageNotReachable")
    if observed.damaged:
        return false(kind, "Damaged", observed.damaged)
    if observed.current is not None:
        return true(kind, "Published", f"version {observed.current.version}")
    if look.failure is not None:
        return waiting(kind, "RefreshFailed", "no version is there yet")
    if observed.work is not None:
        return waiting(kind, "Refreshing", observed.work.progress)
    return waiting(kind, "Pending", "no version is there yet")


# ---- status and deletion --------------------------------------------------------------------------------------------


def _fields(look: Look, upcoming: datetime | None) -> dict[str, Any]:
    seen = look.observed.store.reachable is True and not look.observed.damaged
    return {
        "current": _current(look.observed) if seen else look.resource.status.get("current"),
        "lastRefresh": _told(look.last) if look.last is not None else None,
        "nextRefreshTime": conditions.timestamp(upcoming) if upcoming is not None else None,
        "consecutiveFailures": _consecutive(look),
    }


def _current(observed: ObservedDataset) -> dict[str, Any] | None:
    current = observed.current
    if current is None:
        return None
    told = {
        "version": current.version,
        "manifest": current.manifest,
        "schemaFingerprint": current.schema_fingerprint,
        "rows": current.rows,
        "bytes": current.bytes,
        "files": current.files,
        "publishedAt": conditions.timestamp(current.published_at) if current.published_at else None,
    }
    return {name: value for name, value in told.items() if value is not None}


def _told(last: LastRefresh) -> dict[str, Any]:
    told = {
        "key": last.key,
        "startedAt": conditions.timestamp(last.started_at),
        "completedAt": conditions.timestamp(last.completed_at),
        "result": last.result.value,
        "version": last.version,
        "rejected": last.rejected,
    }
    return {name: value for name, value in told.items() if value is not None}


def _consecutive(look: Look) -> int:
    failed = rounds.failure_of(look.observed.failures, Act.INGEST)
    if failed is not None:
        return failed.attempts
    ended_well = look.last is not None and look.last.key == look.ingest.key and look.due is None
    return 0 if ended_well else int(look.resource.status.get("consecutiveFailures", 0))


def _deletion(resource: Resource[DatasetSpec], observed: ObservedDataset, now: datetime) -> Plan:
    there = observed.current is not None or observed.versions or observed.damaged or observed.left_behind
    return rounds.deletion(
        resource,
        cleanup=DropDataset() if there else None,
        wanted=resource.spec.deletion_policy is DeletionPolicy.DELETE,
        store=observed.store,
        failures=observed.failures,
        working=observed.work is not None,
        ready=ConditionType.READY,
        now=now,
    )
