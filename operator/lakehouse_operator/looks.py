"""What pods' answers and the cluster's objects come to for an index: pure, from values to values.

An index serves when each of its shards has a pod that the cluster sends requests to and that says, now, that it serves
the life that counts, or the one that this life has just replaced.  What this module does not do: ask anybody.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lakehouse.control.state import Failure
from lakehouse.core.errors import Invalid
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.types import Position
from lakehouse_operator import names, resources
from lakehouse_operator.kube import Body
from lakehouse_operator.pods import PodState, ShardState


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at an index found that whoever acts needs again."""

    record: Incarnation | None = None
    """As last read; None: never read, or nothing there."""
    pods: tuple[PodState, ...] = ()
    wanted: tuple[Body, ...] | None = None
    """The objects that there are to be; None: leave what is there."""
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Served:
    """How an index is served."""

    serving: bool = False
    detail: str = ""
    """Why not, or not by the newest life."""
    damaged: str = ""
    ready_replicas: int = 0
    replicas: int = 0
    items: int | None = None
    position: str | None = None
    ef_search: int | None = None
    behind: int = 0
    """Pods that serve the life before, until they have loaded the one that counts."""


def remembered(status: Mapping[str, Any], shards: int) -> Incarnation | None:
    """The life that a VectorIndex's own status tells of, for when the bucket does not say which one counts."""
    try:
        position = Position.parse(str(status.get("position", "")))
    except Invalid:
        return None
    return Incarnation(0, position.incarnation, None, shards)


def served(record: Incarnation | None, pods: Sequence[PodState], shards: int, ef_search: int) -> Served:
    """What the pods' answers come to, for the life that `record` begins; `ef_search` is what is asked for."""
    by_shard = {number: [pod for pod in pods if pod.shard == number] for number in range(shards)}
    replicas = min((len(found) for found in by_shard.values()), default=0)
    if record is None or record.uuid is None:
        return Served(replicas=replicas)
    current, before = record.uuid.hex, record.ends.hex if record.ends is not None else ""
    ready = {
        number: [pod for pod in found if _serves(pod, (current, before))]
        for number, found in by_shard.items()
    }
    states = {
        number: [state for pod in found if (state := _state(pod, current)) is not None]
        for number, found in by_shard.items()
    }
    whole = all(states.values())
    newest = [max(found, key=lambda state: state.position) for found in states.values()] if whole else []
    behind = sum(
        pod.index is not None and pod.index.life == before for found in ready.values() for pod in found
    )
    return Served(
        serving=all(ready.values()),
        detail=_detail(by_shard, ready),
        damaged=_damaged(states),
        ready_replicas=min((len(found) for found in ready.values()), default=0),
        replicas=replicas,
        items=sum(state.items for state in newest) if whole else None,
        position=str(Position(record.uuid, tuple(state.position for state in newest))) if whole else None,
        ef_search=_ef_search(pods, current, ef_search),
        behind=behind,
    )


def _serves(pod: PodState, lives: tuple[str, str]) -> bool:
    index = pod.index
    if index is None or not (pod.ready and pod.answers and index.serving) or index.life not in lives:
        return False
    return any(state.shard == pod.shard and not state.damage for state in index.shards)


def _state(pod: PodState, life: str) -> ShardState | None:
    if pod.index is None or pod.index.life != life:
        return None
    return next((state for state in pod.index.shards if state.shard == pod.shard), None)


def _damaged(states: Mapping[int, Sequence[ShardState]]) -> str:
    """A shard of which every pod that has it says that it is damaged; what is damaged is in the bucket."""
    for found in states.values():
        if found and all(state.damage for state in found):
            return found[0].damage
    return ""


def _ef_search(pods: Iterable[PodState], life: str, asked: int) -> int | None:
    """What searches use; where pods differ, what is not asked for."""
    used = [pod.index.ef_search for pod in pods if pod.index is not None and pod.index.life == life]
    return next((one for one in used if one != asked), asked if used else None)


def _detail(by_shard: Mapping[int, Sequence[PodState]], ready: Mapping[int, Sequence[PodState]]) -> str:
    missing = [number for number, found in ready.items() if not found]
    if not missing:
        return ""
    number = missing[0]
    told = next((f"{pod.name}: {pod.detail}" for pod in by_shard[number] if pod.detail), "")
    where = f"shard {number} has no pod that serves" if len(by_shard) > 1 else "no pod serves"
    more = f", nor have {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"{where}{more}{f': {told}' if told else ''}"


def cut_off(pods: Sequence[PodState]) -> str:
    """Which pods do not reach the bucket, and why the first of them does not; empty when all do."""
    found = [pod for pod in pods if pod.cut_off]
    if not found:
        return ""
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{found[0].name}{more}: {found[0].cut_off}"


def is_suspended(deployments: Sequence[Mapping[str, Any]], *, asked: bool, alive: bool) -> bool:
    """Whether nobody serves an index because that was asked for."""
    if not deployments:
        return asked and alive
    return all(resources.suspended(one) for one in deployments)


def selector(index: str) -> str:
    """Of one shard's pods: every shard has as many, and as much to do."""
    return ",".join(f"{name}={value}" for name, value in sorted(names.selector(index, 0).items()))


@dataclass(slots=True)
class Memory:
    """What the last look at each index found, and since when it holds items."""

    looks: dict[tuple[str, str], Look] = field(default_factory=dict)
    """By namespace and name."""

    def of(self, namespace: str | None, name: str) -> Look:
        return self.looks.get((str(namespace), name), Look())
