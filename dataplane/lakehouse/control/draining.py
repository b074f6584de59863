"""When a fresh tier is merged into its target: when it holds enough, or its first item has waited long.

A target that cannot take the items (it is missing, of another shape, follows a dataset, or drains back here) is told of
at once, not only when a drain is due.  What this module does not do: merge.
"""

from dataclasses import dataclass
from datetime import datetime

from lakehouse.control import conditions, rounds
from lakehouse.control.conditions import Condition, ConditionType, Status, false, true, unknown, waiting
from lakehouse.control.kinds import Drain, OnConflict, VectorIndexSpec
from lakehouse.control.plan import Merge
from lakehouse.control.state import Act, ObservedIndex, ObservedTarget, Resource

_KIND = ConditionType.DRAIN_CURRENT


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to drain now, what to tell, and when to look again."""

    action: Merge | None
    condition: Condition
    """As it is once the action has begun."""
    waits: tuple[float | None, ...] = ()


def decide(resource: Resource[VectorIndexSpec], observed: ObservedIndex, now: datetime) -> Decision:
    """The drain's part of a round."""
    spec, name = resource.spec, resource.meta.name
    drain = spec.drain
    if drain is None:
        return Decision(None, unknown(_KIND, "NotConfigured", "no drain is asked for"))
    if observed.store.reachable is not True:
        return Decision(None, unknown(_KIND, "StorageNotReachable"))
    blocked = _blocked(drain, name, spec, observed.target)
    if blocked is not None:
        return Decision(None, blocked)
    if spec.suspend or observed.suspended:
        return Decision(None, unknown(_KIND, "Suspended"))
    items = resource.status.get("items") if observed.items is None else observed.items
    wait = _wait_s(drain, items, observed, now)
    if wait is not None and wait <= 0:
        return _due(drain, observed, now)
    told = f"{items} of {drain.max_items} items" if items else "empty"
    if observed.items is None:
        when = "how many items it holds is not known" if items is None else f"when it last answered: {told}"
        return Decision(
            None, unknown(_KIND, "NotServing", f"the index itself does not answer; {when}"), (wait,)
        )
    return Decision(None, true(_KIND, "BelowLimit", told), (wait,))


def condition_of(decision: Decision, *, begins: bool) -> Condition:
    """The condition, where something else may keep a drain that is due from beginning."""
    if decision.action is None or begins or decision.condition.status is not Status.TRUE:
        return decision.condition
    return waiting(_KIND, "Waiting", "a drain is due, and the index itself is not as it should be")


def _wait_s(drain: Drain, items: int | None, observed: ObservedIndex, now: datetime) -> float | None:
    """Seconds until a drain of so many `items` is due; None when nothing is known to be there."""
    if not items:
        return None
    if items >= drain.max_items:
        return 0.0
    since = observed.pending_since or now
    if (
        observed.last_drain is not None
    ):  # what is there now came since: under a steady inflow it is never empty
        since = max(since, observed.last_drain.at)
    return (since + drain.max_age - now).total_seconds()


def _due(drain: Drain, observed: ObservedIndex, now: datetime) -> Decision:
    if observed.work is not None:
        if observed.work.act is Act.MERGE:
            return Decision(None, true(_KIND, "Draining", observed.work.progress))
        return Decision(None, waiting(_KIND, "Waiting", f"until {observed.work.act} has ended"))
    if not observed.serving:
        return Decision(None, waiting(_KIND, "NotServing", "the index itself does not answer"))
    if observed.target is None or not observed.target.serving:
        return Decision(
            None, false(_KIND, "TargetNotServing", f"the target does not answer. into=`{drain.into}`")
        )
    merge = Merge(drain.into, replace=drain.on_conflict is OnConflict.REPLACE)
    failed = rounds.failure_of(observed.failures, Act.MERGE, merge.subject)
    if failed is None:
        return Decision(merge, true(_KIND, "Draining", "a drain is starting"))
    held = rounds.held_s(observed.failures, merge, now)
    pending = observed.pending_since
    since = f"; the first item waits since {conditions.timestamp(pending)}" if pending else ""
    told = f"{failed.message} (attempt {failed.attempts}{since})"
    return Decision(None if held else merge, false(_KIND, "DrainFailed", told), (held,))


def _blocked(
    drain: Drain, name: str, spec: VectorIndexSpec, target: ObservedTarget | None
) -> Condition | None:
    if target is None or not target.exists:
        return waiting(_KIND, "TargetNotFound", f"no such index. into=`{drain.into}`")
    if target.going:
        return waiting(_KIND, "TargetDeleting", f"the target is being deleted. into=`{drain.into}`")
    if name in target.chain:
        ring = " → ".join((name, drain.into, *target.chain[: target.chain.index(name) + 1]))
        return false(
            _KIND, "DrainCycle", f"the drains go round in a ring, and nothing would ever rest: {ring}"
        )
    if target.dimension != spec.dimension:
        return false(
            _KIND, "DimensionMismatch", f"{drain.into} has dimension {target.dimension}, not {spec.dimension}"
        )
    if target.distance != spec.distance.value:
        return false(
            _KIND,
            "DistanceMismatch",
            f"{drain.into} has distance {target.distance}, not {spec.distance.value}",
        )
    if target.read_only:
        return false(
            _KIND, "TargetReadOnly", f"{drain.into} follows a dataset, so nothing else may write to it"
        )
    return None
