"""Conditions: what was found, each with its reason, and when it last turned.

All of a kind's conditions are written at the first look, `Unknown` where nothing can be said yet, so that whoever waits
for one finds it.  Merging keeps the time of the last turn while `status` stays, which is what makes a second look write
nothing.  What this module does not do: find out.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lakehouse.control.plan import Event, EventType

MESSAGE_MAX = 4_096
"""As in the resource definitions; longer ones are cut."""


class Status(enum.StrEnum):
    """What is known of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class ConditionType(enum.StrEnum):
    """Everything that is told of."""

    ACCEPTED = "Accepted"
    STORAGE_REACHABLE = "StorageReachable"
    SOURCE_RESOLVED = "SourceResolved"
    READY = "Ready"
    UP_TO_DATE = "UpToDate"
    SNAPSHOT_CURRENT = "SnapshotCurrent"
    DRAIN_CURRENT = "DrainCurrent"
    RESTORED = "Restored"
    SCHEMA_COMPATIBLE = "SchemaCompatible"
    FRESH = "Fresh"
    COMPLETE = "Complete"
    RECONCILIATION_PAUSED = "ReconciliationPaused"


INDEX_CONDITIONS = (
    ConditionType.ACCEPTED,
    ConditionType.STORAGE_REACHABLE,
    ConditionType.SOURCE_RESOLVED,
    ConditionType.READY,
    ConditionType.UP_TO_DATE,
    ConditionType.SNAPSHOT_CURRENT,
    ConditionType.DRAIN_CURRENT,
    ConditionType.RESTORED,
    ConditionType.RECONCILIATION_PAUSED,
)
DATASET_CONDITIONS = (
    ConditionType.ACCEPTED,
    ConditionType.STORAGE_REACHABLE,
    ConditionType.SCHEMA_COMPATIBLE,
    ConditionType.FRESH,
    ConditionType.READY,
    ConditionType.RECONCILIATION_PAUSED,
)
SNAPSHOT_CONDITIONS = (
    ConditionType.ACCEPTED,
    ConditionType.STORAGE_REACHABLE,
    ConditionType.COMPLETE,
    ConditionType.RECONCILIATION_PAUSED,
)


@dataclass(frozen=True, slots=True)
class Condition:
    """One finding."""

    type: ConditionType
    status: Status
    reason: str
    """CamelCase, one word for programs."""
    message: str = ""
    """For people: what is so, and what to do about it."""
    alarming: bool = False
    """Somebody should look at it: told as a Warning when it comes up.  Not stored."""

    def to_json(self, generation: int, since: str) -> dict[str, Any]:
        """As it stands in `status.conditions`."""
        return {
            "type": self.type.value,
            "status": self.status.value,
            "reason": self.reason,
            "message": self.message[:MESSAGE_MAX],
            "observedGeneration": generation,
            "lastTransitionTime": since,
        }


def true(kind: ConditionType, reason: str, message: str = "") -> Condition:
    """It is so."""
    return Condition(kind, Status.TRUE, reason, message)


def waiting(kind: ConditionType, reason: str, message: str = "") -> Condition:
    """It is not so yet or not for now, and nobody needs to do anything."""
    return Condition(kind, Status.FALSE, reason, message)


def false(kind: ConditionType, reason: str, message: str = "") -> Condition:
    """It is not so, and somebody should look at it."""
    return Condition(kind, Status.FALSE, reason, message, alarming=True)


def unknown(kind: ConditionType, reason: str, message: str = "") -> Condition:
    """It could not be seen, or was not asked for."""
    return Condition(kind, Status.UNKNOWN, reason, message)


def merged(
    old: Sequence[Mapping[str, Any]], found: Sequence[Condition], *, generation: int, now: datetime
) -> list[dict[str, Any]]:
    """`found` as JSON, in its order; each keeps its last transition time unless its status turned."""
    before = {one.get("type"): one for one in old}
    return [one.to_json(generation, _since(before.get(one.type.value), one, now)) for one in found]


def _since(before: Mapping[str, Any] | None, found: Condition, now: datetime) -> str:
    if before is not None and before.get("status") == found.status.value and "lastTransitionTime" in before:
        return str(before["lastTransitionTime"])
    return timestamp(now)


_GOALS = frozenset({ConditionType.READY, ConditionType.RESTORED, ConditionType.COMPLETE})
"""Told when they are reached for the first time, too."""


def events(old: Sequence[Mapping[str, Any]], found: Sequence[Condition]) -> tuple[Event, ...]:
    """What is worth telling of the way from `old` to `found`: trouble that came up or went, and goals reached."""
    before = {one.get("type"): (one.get("status"), one.get("reason")) for one in old}
    told = []
    for one in found:
        status, reason = before.get(one.type.value, (None, None))
        message = one.message or f"{one.type} is {one.status}"
        if one.alarming and (status, reason) != (one.status.value, one.reason):
            told.append(Event(EventType.WARNING, one.reason, message))
        turned = status == Status.FALSE.value or (one.type in _GOALS and status != Status.TRUE.value)
        if one.status is Status.TRUE and turned:
            told.append(Event(EventType.NORMAL, one.reason, message))
    return tuple(told)


def find(status: Mapping[str, Any], kind: ConditionType) -> Mapping[str, Any]:
    """A condition out of a status; empty when it is not there."""
    found: Mapping[str, Any]
    for found in status.get("conditions", ()):
        if found.get("type") == kind.value:
            return found
    return {}


def holds(status: Mapping[str, Any], kind: ConditionType) -> bool:
    """Whether a resource's status says that a condition is True."""
    return bool(find(status, kind).get("status") == Status.TRUE)


def timestamp(moment: datetime) -> str:
    """RFC 3339 in whole seconds, UTC, as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str | None) -> datetime | None:
    """What `timestamp` wrote; None for none."""
    return None if not text else datetime.fromisoformat(text).astimezone(UTC)
