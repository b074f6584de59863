"""Keeps a resource's objects in the cluster what they are to be, and writes nothing when they are.

What was applied is remembered by its hash and by the version that the API server gave it: the same wish for the same
version is at rest.  After a restart an object that says all that is wished is at rest, too.  What was edited, deleted
or left over is put right; what somebody else made under one of our names is never touched, only told of.  What this
module does not do: decide what there is to be (`resources`).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lakehouse.control.state import Resource
from lakehouse.core.errors import Outcome, Unavailable
from lakehouse_operator import names
from lakehouse_operator.cache import Cache, Key, key_of
from lakehouse_operator.jobs import belongs
from lakehouse_operator.kube import CONFIG_MAP, DEPLOYMENT, KINDS, PDB, SERVICE, Body, Kube

WATCHED = (DEPLOYMENT, SERVICE, PDB, CONFIG_MAP)
"""Children that the cache knows, so that leftovers among them can be found."""


@dataclass(frozen=True, slots=True)
class _Applied:
    """What was last sent for one object, and the version it became."""

    digest: str
    version: tuple[str, ...]


class Children:
    """The objects of all resources."""

    def __init__(self, kube: Kube, cache: Cache) -> None:
        self._kube = kube
        self._cache = cache
        self._applied: dict[Key, _Applied] = {}

    async def taken(self, resource: Resource[Any], wanted: Iterable[Body]) -> str:
        """Which of the `wanted` objects is there and is another's, for people; empty for none."""
        for body in wanted:
            key = key_of(body)
            there = self._cache.resource(key)
            if there is None:
                there = await self._kube.get(KINDS[key[0]], key[1], key[2])
            if there is not None and not is_ours(there, body, resource):
                return (
                    f"{key[0]} {key[2]} is there already and was not made for this resource: delete it, or use another "
                    f"name. {key[0].lower()}=`{key[1]}/{key[2]}`"
                )
        return ""

    async def ensure(self, resource: Resource[Any], wanted: Iterable[Body]) -> None:
        """Make the objects what `wanted` says, in its order.

        Raises what the API server does, and `Unavailable` while an object of a resource of the same name that is gone
        has not gone yet.
        """
        for body in wanted:
            key = key_of(body)
            there = self._cache.resource(key)
            if there is not None and self._is_settled(key, body, there):
                continue
            _check_gone(there, resource)
            made = await self._kube.apply(body)
            foreign = added_to_selector(made, body)
            if foreign:
                patch = {"spec": {"selector": dict.fromkeys(foreign)}}
                made = await self._kube.merge(KINDS[key[0]], key[1], key[2], patch)
            self._applied[key] = _Applied(_digest(body), version_of(made))
            self._cache.put(made)

    async def prune(self, resource: Resource[Any], wanted: Iterable[Body]) -> None:
        """Delete the objects of a resource that are not `wanted` (any more)."""
        kept = {key_of(body) for body in wanted}
        meta = resource.meta
        for kind in WATCHED:
            for body in self._cache.children(kind, str(meta.namespace), {names.INDEX_LABEL: meta.name}):
                key = key_of(body)
                if key in kept or body["metadata"].get("deletionTimestamp") or not belongs(body, meta.uid):
                    continue
                await self._kube.delete(kind, key[1], key[2], body["metadata"]["uid"])
                self._applied.pop(key, None)

    def forget(self, namespace: str, name: str) -> None:
        """A resource is gone; its objects go by themselves."""
        begins = (name, f"{name}-")
        for key in [key for key in self._applied if key[1] == namespace and key[2].startswith(begins)]:
            del self._applied[key]

    def _is_settled(self, key: Key, body: Body, there: Body) -> bool:
        if there["metadata"].get("deletionTimestamp"):
            return False
        sent = self._applied.get(key)
        if sent is not None and sent.digest == _digest(body) and sent.version == version_of(there):
            return True
        if not says(there, body) or added_to_selector(there, body):
            return False
        self._applied[key] = _Applied(_digest(body), version_of(there))
        return True


def is_ours(there: Mapping[str, Any], wanted: Mapping[str, Any], resource: Resource[Any]) -> bool:
    """Whether an object was made for this resource, or for one of the same name that is gone, or was left by one."""
    for owner in there["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            return bool(owner["kind"] == resource.kind and owner["name"] == resource.meta.name)
    labels = there["metadata"].get("labels") or {}
    return bool(wanted["metadata"]["labels"].items() <= labels.items())


def _check_gone(there: Mapping[str, Any] | None, resource: Resource[Any]) -> None:
    if there is None:
        return
    owners = there["metadata"].get("ownerReferences") or ()
    others = any(one.get("controller") and one.get("uid") != resource.meta.uid for one in owners)
    if others or there["metadata"].get("deletionTimestamp"):
        raise Unavailable(
            "an object of a resource that is gone is still being removed: waiting for its end. "
            f"{there['kind'].lower()}=`{there['metadata']['name']}`",
            outcome=Outcome.NOT_COMMITTED,
        )


def version_of(body: Mapping[str, Any]) -> tuple[str, ...]:
    """What changes when somebody changes what is wished of an object, and not when its status does."""
    metadata = body["metadata"]
    wish = metadata.get("generation") or metadata.get("resourceVersion", "")
    ours = [metadata.get(part) for part in ("labels", "ownerReferences")]
    return (str(metadata.get("uid", "")), str(wish), json.dumps(ours, sort_keys=True))


def says(there: Any, wanted: Any) -> bool:
    """Whether an object says all that is wanted of it; what it says beyond that is others' or a default."""
    if isinstance(wanted, Mapping):
        if not isinstance(there, Mapping):
            return not wanted and there is None
        return all(says(there.get(name), value) for name, value in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(there, list):
            return not wanted and there is None
        return len(there) == len(wanted) and all(map(says, there, wanted))
    return bool(there == wanted)


def added_to_selector(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Labels that somebody else wrote into a Service's selector.  They choose no pods, or others, and applying leaves
    them there, as it does with all that is not its own."""
    if there["kind"] != SERVICE:
        return []
    found, asked = ((one["spec"].get("selector") or {}) for one in (there, wanted))
    return [label for label in found if label not in asked]


def _digest(body: Body) -> str:
    return names.digest_of(body)
