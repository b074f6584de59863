"""How far an index's pods are on their way to a new make, and which index may go that way next.

A change of its own spec rolls an index at once.  What an upgrade of the operator changes (its image, its settings, its
code) rolls one index at a time, in order of namespace and name, each after the one before serves again; one that does
not get anywhere in ten minutes holds up nobody.  What this module does not do: apply anything.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lakehouse_operator import names
from lakehouse_operator.resources import suspended

Index = tuple[str, str]
"""Namespace and name."""


def release_of(deployment: Mapping[str, Any]) -> str:
    """Which make of the operator a Deployment is of."""
    return str((deployment["metadata"].get("annotations") or {}).get(names.RELEASE_ANNOTATION, ""))


def is_replaced(deployment: Mapping[str, Any]) -> bool:
    """Whether every pod of a Deployment is of its newest make, as far as the cluster has got to know of it."""
    status, asked = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
    known = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    updated = status.get("updatedReplicas", 0)
    return bool(known and updated >= asked and status.get("replicas", 0) <= updated)


def is_done(deployment: Mapping[str, Any]) -> bool:
    """Whether its pods are all of the newest make and available."""
    asked = deployment["spec"].get("replicas", 1)
    return is_replaced(deployment) and (deployment.get("status") or {}).get("availableReplicas", 0) >= asked


def is_stuck(deployment: Mapping[str, Any]) -> bool:
    """Whether its rollout has not moved for so long that nobody waits for it."""
    conditions = (deployment.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Progressing" and one["status"] == "False" for one in conditions)


def progress(deployments: Sequence[Mapping[str, Any]]) -> str:
    """What is still to be replaced; empty when nothing is."""
    late = [one for one in deployments if not is_replaced(one)]
    if not late:
        return ""
    told = ", ".join(
        f"{one['metadata']['name']} {(one.get('status') or {}).get('updatedReplicas', 0)} of "
        f"{one['spec'].get('replicas', 1)}"
        for one in late[:4]
    )
    return f"pods of the newest make: {told}{', …' if len(late) > 4 else ''}"


def refused(deployments: Iterable[Mapping[str, Any]]) -> str:
    """Why the cluster does not make pods: a quota, Pod Security; empty when it does."""
    for one in deployments:
        for condition in (one.get("status") or {}).get("conditions") or ():
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                return str(condition.get("message", ""))
    return ""


def waits_for(mine: Index, deployments: Iterable[Mapping[str, Any]], release: str) -> str:
    """Whom an index waits for before its pods become those of `release`; empty when it is its turn, or needs none.

    `deployments` are those of every index.
    """
    deployments = list(deployments)
    if all(release_of(one) == release for one in deployments):
        return ""
    by_index: dict[Index, list[Mapping[str, Any]]] = defaultdict(list)
    for one in deployments:
        index = (one["metadata"].get("labels") or {}).get(names.INDEX_LABEL)
        if index is not None and not suspended(one):
            by_index[one["metadata"]["namespace"], index].append(one)
    old = sorted(index for index, ours in by_index.items() if any(release_of(one) != release for one in ours))
    if mine not in old:
        return ""
    rolling = sorted(
        index
        for index, ours in by_index.items()
        if index != mine
        and any(release_of(one) == release and not is_done(one) and not is_stuck(one) for one in ours)
    )
    before = rolling[0] if rolling else old[0]
    if before == mine:
        return ""
    return (
        f"an upgrade of the operator replaces the pods of one index at a time; before it: {'/'.join(before)}"
    )
