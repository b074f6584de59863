"""Our one finalizer: it holds a resource back until its data is gone, and only where that was asked for.

Under `deletionPolicy: Retain` there is none, so a namespace can be deleted with nobody there to help.  Under `Delete`
it is set before anything is made, and goes when the data has gone, when nothing can be cleaned up any more (no Secret,
no bucket), or when the deadline has passed: `lakehouse.control.rounds.deletion` decides which.  What this module does
not do: clean up.
"""

from typing import Any

from lakehouse.control.kinds import DeletionPolicy
from lakehouse.control.state import Resource
from lakehouse.core.errors import Conflict, NotFound
from lakehouse_operator.cache import Cache, Key, key_of
from lakehouse_operator.kube import KINDS, Body, Kube
from lakehouse_operator.names import FINALIZER

RACES_MAX = 5
"""Others that write to the same resource in between, before it is left for the next turn."""


def wanted(resource: Resource[Any]) -> bool:
    """Whether a resource that is to stay has our finalizer."""
    return bool(resource.spec.deletion_policy is DeletionPolicy.DELETE)


def holds(body: Body) -> bool:
    """Whether our finalizer is on a resource."""
    return FINALIZER in (body["metadata"].get("finalizers") or ())


def is_asked_for(body: Body) -> bool:
    """The same as `wanted`, of a resource as an object, which need not be understood."""
    return (body.get("spec") or {}).get("deletionPolicy") == DeletionPolicy.DELETE.value


def is_going(body: Body) -> bool:
    """Whether a resource is to be deleted, and only finalizers keep it."""
    return bool(body["metadata"].get("deletionTimestamp"))


async def ensure(kube: Kube, cache: Cache, resource: Resource[Any]) -> None:
    """Set our finalizer, or take it off, as the policy says.  Raises `Conflict` when the resource keeps changing."""
    key = (resource.kind, str(resource.meta.namespace), resource.meta.name)
    await _until(kube, cache, key, resource.meta.uid, there=wanted(resource), going=False)


async def remove(kube: Kube, cache: Cache, key: Key, uid: str) -> None:
    """Let a resource go that was to be deleted; others' finalizers stay.  Raises `Conflict` as `ensure` does."""
    await _until(kube, cache, key, uid, there=False, going=True)


async def _until(kube: Kube, cache: Cache, key: Key, uid: str, *, there: bool, going: bool) -> None:
    """Write until our finalizer is there, or is not, on a resource that is to go, or is not."""
    body = cache.resource(key)
    for _ in range(RACES_MAX):
        if body is None or body["metadata"].get("uid") != uid or is_going(body) is not going:
            return
        if holds(body) is there:
            return
        found = list(body["metadata"].get("finalizers") or ())
        try:
            await _write(kube, cache, body, [*found, FINALIZER] if there else _without(found))
        except Conflict:
            body = await kube.get(KINDS[key[0]], key[1], key[2])
            if body is not None and body["metadata"].get("uid") == uid:
                cache.put(body)
        else:
            return
    raise Conflict(f"the resource keeps changing: later. name=`{key[0]}/{key[2]}`")


def _without(finalizers: list[str]) -> list[str]:
    return [one for one in finalizers if one != FINALIZER]


async def _write(kube: Kube, cache: Cache, body: Body, finalizers: list[str]) -> None:
    key, version = key_of(body), body["metadata"]["resourceVersion"]
    patch = {"finalizers": finalizers, "resourceVersion": version}
    try:
        written = await kube.patch_metadata(KINDS[key[0]], key[1], key[2], patch)
    except NotFound:
        cache.remove(key, body["metadata"]["uid"])
        return
    if not finalizers and written["metadata"].get("deletionTimestamp"):
        cache.remove(key, body["metadata"]["uid"])
    else:
        cache.put(written)
