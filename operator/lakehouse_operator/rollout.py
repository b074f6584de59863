"""How far an index's pods are on their way to a new make, and which index may go that way next.

What an upgrade of the operator changes (its image, its settings, its code) rolls one index at a time, in order of
namespace and name, each after the one before serves again.  The order has only those that can move, and whoever does
not move for ten minutes holds up nobody.

An index that waits keeps the pods' template it has; everything else of its Deployments is what its spec says, so it is
scaled and repaired meanwhile.  A change of its own spec that its pods are made of (placement, resources, storage)
rolls it at once, and to the new make: which parts of an older template came from the spec and which from the operator,
nobody could say any more.  What this module does not do: apply anything.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lakehouse.control.conditions import ConditionType, find
from lakehouse.control.state import Resource
from lakehouse_operator import names
from lakehouse_operator.kube import DEPLOYMENT
from lakehouse_operator.resources import PROGRESS_S, Body, suspended

Index = tuple[str, str]
"""Namespace and name."""
NAMED_MAX = 4
"""Deployments that a message names."""
_MADE_OF = (names.RELEASE_ANNOTATION, names.ASKED_ANNOTATION, names.SUSPENDED_ANNOTATION)
"""What a Deployment says of what it was made of: beside its replicas, all that an index's spec decides about it."""


def release_of(deployment: Mapping[str, Any]) -> str:
    """Which make of the operator a Deployment is of."""
    return str((deployment["metadata"].get("annotations") or {}).get(names.RELEASE_ANNOTATION, ""))


def is_replaced(deployment: Mapping[str, Any]) -> bool:
    """Whether every pod of a Deployment is of its newest make, as far as the cluster has got to know of it."""
    status, asked = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
    updated = status.get("updatedReplicas", 0)
    return bool(_is_known(deployment) and updated >= asked and status.get("replicas", 0) <= updated)


def is_done(deployment: Mapping[str, Any]) -> bool:
    """Whether its pods are all of the newest make and available."""
    asked = deployment["spec"].get("replicas", 1)
    return is_replaced(deployment) and (deployment.get("status") or {}).get("availableReplicas", 0) >= asked


def is_stuck(deployment: Mapping[str, Any]) -> bool:
    """Whether its rollout has not moved for so long that nobody waits for it."""
    conditions = (deployment.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Progressing" and one["status"] == "False" for one in conditions)


def _updated(deployment: Mapping[str, Any]) -> int:
    """How many of its pods are of the newest make."""
    return (deployment.get("status") or {}).get("updatedReplicas", 0) if _is_known(deployment) else 0


def _is_known(deployment: Mapping[str, Any]) -> bool:
    """Whether the status is about what is asked for now."""
    status = deployment.get("status") or {}
    return bool(status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0))


def progress(deployments: Sequence[Mapping[str, Any]]) -> str:
    """What is still to be replaced; empty when nothing is."""
    late = [one for one in deployments if not is_replaced(one)]
    if not late:
        return ""
    told = ", ".join(map(_told, late[:NAMED_MAX]))
    return f"pods of the newest make: {told}{', …' if len(late) > NAMED_MAX else ''}"


def _told(deployment: Mapping[str, Any]) -> str:
    status = deployment.get("status") or {}
    new, older = _updated(deployment), status.get("replicas", 0) - status.get("updatedReplicas", 0)
    beside = f" beside {older} older" if older > 0 else ""
    return f"{deployment['metadata']['name']} {new} of {deployment['spec'].get('replicas', 1)}{beside}"


def unapplied(wanted: Iterable[Mapping[str, Any]], there: Iterable[Mapping[str, Any]]) -> str:
    """Which Deployments among the `wanted` objects are not `there` as they are wanted; empty when all are.

    Told by their replicas and by what they were made of: a template is not compared, as the API server writes what it
    was given in its own way (`0.5` cores as `500m`).
    """
    found = {one["metadata"]["name"]: one for one in there}
    others = [
        one["metadata"]["name"]
        for one in wanted
        if one["kind"] == DEPLOYMENT and not _is_as(found.get(one["metadata"]["name"]), one)
    ]
    told = ", ".join(others[:NAMED_MAX])
    return f"not yet as the spec says: {told}{', …' if len(others) > NAMED_MAX else ''}" if others else ""


def _is_as(there: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    if there is None or there["metadata"].get("deletionTimestamp"):
        return False
    said, asked = (one["metadata"].get("annotations") or {} for one in (there, wanted))
    alike = all(said.get(name) == asked.get(name) for name in _MADE_OF)
    return alike and bool(there["spec"].get("replicas", 1) == wanted["spec"]["replicas"])


def refused(deployments: Iterable[Mapping[str, Any]]) -> str:
    """Why the cluster does not make pods: a quota, Pod Security; empty when it does."""
    for one in deployments:
        for condition in (one.get("status") or {}).get("conditions") or ():
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                return str(condition.get("message", ""))
    return ""


def moves(resource: Resource[Any] | None) -> bool:
    """Whether an index's Deployments become what they should be, as far as the resource itself tells; None: there is
    none that can be understood."""
    if resource is None or resource.meta.paused or resource.meta.deletion_requested:
        return False
    taken = find(resource.status, ConditionType.ACCEPTED).get("reason") == "ChildNameTaken"
    refused = find(resource.status, ConditionType.UP_TO_DATE).get("reason") == "ApplyFailed"
    return not (taken or refused)


@dataclass(frozen=True, slots=True)
class Place:
    """An index that an upgrade has not done with."""

    index: Index
    pods: int
    """How many are of the newest make: more than before means that it moves."""


def line(
    deployments: Iterable[Mapping[str, Any]], release: str, movable: Callable[[Index], bool]
) -> list[Place]:
    """Who others may have to wait for, of every index's `deployments`: those that roll, then those still to begin."""
    deployments = list(deployments)
    if all(release_of(one) == release for one in deployments):
        return []
    rolling, old = [], []
    for index, ours in sorted(_by_index(deployments).items()):
        new = [one for one in ours if release_of(one) == release]
        place = Place(index, sum(_updated(one) for one in new))
        if any(not is_done(one) and not is_stuck(one) for one in new):
            rolling.append(place)
        elif len(new) < len(ours) and movable(index):
            old.append(place)
    return [*rolling, *old]


def _by_index(deployments: Iterable[Mapping[str, Any]]) -> Mapping[Index, Sequence[Mapping[str, Any]]]:
    found: dict[Index, list[Mapping[str, Any]]] = defaultdict(list)
    for one in deployments:
        index = (one["metadata"].get("labels") or {}).get(names.INDEX_LABEL)
        if index is not None and not suspended(one):
            found[one["metadata"]["namespace"], index].append(one)
    return found


@dataclass(frozen=True, slots=True)
class Waited:
    """How far an index was when others began to wait for it to get further."""

    pods: int
    since_s: float


def first(
    line: Iterable[Place], waited: Mapping[Index, Waited], now_s: float
) -> tuple[Index | None, Mapping[Index, Waited]]:
    """The first of `line` that is still waited for, None for nobody; and what to remember for the next time."""
    given_up: dict[Index, Waited] = {}
    for place in line:
        before = waited.get(place.index)
        if before is None or place.pods > before.pods:
            before = Waited(place.pods, now_s)
        if now_s - before.since_s < PROGRESS_S:
            return place.index, {**given_up, place.index: before}
        given_up[place.index] = before
    return None, given_up


def waits_for(mine: Index, before: Index | None) -> str:
    """Why an index waits before its pods become those of the newest make, when `before` is the first of the line; empty
    when it need not."""
    if before in (None, mine):
        return ""
    return (
        f"an upgrade of the operator replaces the pods of one index at a time; before it: {'/'.join(before)}"
    )


def may_keep(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    """Whether the Deployment that is `there` is of another make, and the spec says of its pods what it said then."""
    return (
        release_of(there) != release_of(wanted)
        and _asked(there) in (None, _asked(wanted))
        and not suspended(there)
    )


def _asked(deployment: Mapping[str, Any]) -> str | None:
    return (deployment["metadata"].get("annotations") or {}).get(names.ASKED_ANNOTATION)


def kept(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> Body:
    """A Deployment as it is `wanted`, with the pods' template of the one that is `there`, and what that was made of."""
    metadata, spec = wanted["metadata"], wanted["spec"]
    made_of = {
        names.RELEASE_ANNOTATION: release_of(there),
        names.ASKED_ANNOTATION: _asked(there) or _asked(wanted),
    }
    return {
        **wanted,
        "metadata": {**metadata, "annotations": {**metadata["annotations"], **made_of}},
        "spec": {**spec, "template": there["spec"]["template"]},
    }
