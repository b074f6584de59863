"""What the watches told last: resources and their children as raw objects, and who matters to whom.

Memory only; the API server stays the truth, and a relist puts right what a watch has missed.  A resource is parsed
when somebody first asks for it.  What this module does not do: read from the API server, or write to it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from lakehouse.control import facts, kinds
from lakehouse.control.kinds import DATASET, VECTOR_INDEX
from lakehouse.control.state import GROUP, INDEX_LABEL, Meta, Resource
from lakehouse.core.errors import Invalid
from lakehouse_operator.kube import Body, stripped

Key = tuple[str, str, str]
"""Kind, namespace and name."""

DATASET_LABEL = f"{GROUP}/dataset"
_FOUND_BY = (INDEX_LABEL, DATASET_LABEL)
"""Labels that children are looked up by, without going through all of them."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "lakehouse-operator"}
"""The label that all children carry; others are not watched."""


def key_of(body: Mapping[str, Any]) -> Key:
    """What an object is called."""
    metadata = body["metadata"]
    return str(body["kind"]), metadata.get("namespace", ""), metadata["name"]


def parsed(body: Mapping[str, Any]) -> Resource[Any]:
    """A resource's object as a value.  Raises `Invalid` when it is not what this version understands."""
    metadata = body["metadata"]
    deleted_at = metadata.get("deletionTimestamp")
    try:
        meta = Meta(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            generation=metadata.get("generation", 1),
            created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
            deletion_requested_at=None if deleted_at is None else datetime.fromisoformat(deleted_at),
            annotations=metadata.get("annotations") or {},
        )
        spec = kinds.parse(body["kind"], body.get("spec") or {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise Invalid(f"the spec is not what this operator understands: {what}") from error
    return Resource(str(body["kind"]), meta, spec, body.get("status") or {})


class Cache:
    """Every object that is watched, by key."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, Body]] = {}
        """By kind, then by key."""
        self._labelled: dict[tuple[str, str, str, str], dict[Key, None]] = {}
        """By kind, namespace, label of `_FOUND_BY` and its value."""
        self._listeners: list[Callable[[Key, Body | None], None]] = []
        self._parsed: dict[Key, tuple[str, Resource[Any] | Invalid]] = {}
        """With the resourceVersion it was parsed from, or why it could not be."""
        self._changes: dict[Key, int] = {}
        """How often something about a resource's children was news."""

    # ----------------------------------------------------------------- asking

    def resource(self, key: Key) -> Body | None:
        """The object of that name as last seen."""
        return self._objects.get(key[0], {}).get(key)

    def resources(self, kind: str, namespace: str | None = None) -> list[Body]:
        """Every object of a kind, of a namespace or (None) of all."""
        found = self._objects.get(kind, {})
        return [body for key, body in found.items() if namespace is None or key[1] == namespace]

    def children(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Body]:
        """Every object of a kind in a namespace that has all the `labels`."""
        by = next((label for label in _FOUND_BY if label in labels), None)
        if by is None:
            found: Iterable[Body] = self.resources(kind, namespace)
        else:
            there = self._objects.get(kind, {})
            found = [there[key] for key in self._labelled.get((kind, namespace, by, labels[by]), ())]
        return [body for body in found if labels.items() <= _labels(body).items()]

    def keys(self, kinds: Iterable[str]) -> Iterator[Key]:
        """Of everything of these kinds."""
        for kind in kinds:
            yield from list(self._objects.get(kind, {}))

    def parsed(self, key: Key) -> Resource[Any] | None:
        """A resource as a value; None when it is not there or cannot be understood."""
        found = self._read(key)
        return None if isinstance(found, Invalid) else found

    def trouble(self, key: Key) -> str:
        """Why a resource cannot be understood; empty when it can."""
        found = self._read(key)
        return found.message if isinstance(found, Invalid) else ""

    def _read(self, key: Key) -> Resource[Any] | Invalid | None:
        body = self.resource(key)
        if body is None:
            return None
        version = body["metadata"]["resourceVersion"]
        known = self._parsed.get(key)
        if known is None or known[0] != version:
            try:
                known = (version, parsed(body))
            except Invalid as error:
                known = (version, error)
            self._parsed[key] = known
        return known[1]

    def changes(self, key: Key) -> int:
        """A number that is another one when a child of a resource has come, changed or gone meanwhile."""
        return self._changes.get(key, 0)

    def listen(self, told: Callable[[Key, Body | None], None]) -> None:
        """Have `told` called with everything there is, and from now on with what comes, changes and (None) goes."""
        for key in list(self.keys(list(self._objects))):
            told(key, self.resource(key))
        self._listeners.append(told)

    # ---------------------------------------------------------------- feeding

    def is_news(self, body: Mapping[str, Any]) -> bool:
        """Whether no version of an object as new as this one is known."""
        there = self.resource(key_of(body))
        return there is None or _age(there) < _age(body)

    def put(self, body: Mapping[str, Any]) -> bool:
        """Remember an object, unless a newer version is known; whether that was news."""
        key, there = key_of(body), self.resource(key_of(body))
        if not self.is_news(body):
            return False
        if there is not None:
            self._unlabel(key, there)
        kept = self._objects.setdefault(key[0], {})[key] = stripped(body)
        for place in _places(key, kept):
            self._labelled.setdefault(place, {})[key] = None
        self._count(body)
        for told in self._listeners:
            told(key, kept)
        return True

    def remove(self, key: Key, uid: str = "") -> bool:
        """Forget an object, if it is the one of that `uid`; whether it was known."""
        there = self.resource(key)
        if there is None or (uid and there["metadata"].get("uid") != uid):
            return False
        del self._objects[key[0]][key]
        self._unlabel(key, there)
        self._parsed.pop(key, None)
        self._changes.pop(key, None)
        self._count(there)
        for told in self._listeners:
            told(key, None)
        return True

    def _unlabel(self, key: Key, body: Body) -> None:
        for place in _places(key, body):
            found = self._labelled[place]
            del found[key]
            if not found:
                del self._labelled[place]

    def _count(self, body: Mapping[str, Any]) -> None:
        if body["kind"] not in kinds.KINDS:
            for owner in owners(body):
                self._changes[owner] = self._changes.get(owner, 0) + 1

    # -------------------------------------------------------------- relations

    def concerned(self, key: Key) -> set[Key]:
        """The resources, save itself, that what happened to `key` may matter to.

        A child's are its owner.  Ask before a resource is removed, or its own wishes are not known any more.
        """
        kind, namespace, _ = key
        if kind not in kinds.KINDS:
            body = self.resource(key)
            return set() if body is None else owners(body)
        mine = self.parsed(key)
        return {
            other
            for other in self.keys(kinds.KINDS)
            if other != key and other[1] == namespace and self._related(key, mine, other)
        }

    def _related(self, key: Key, mine: Resource[Any] | None, other: Key) -> bool:
        theirs = self.parsed(other)
        return (theirs is not None and facts.refers(theirs, key[0], key[2])) or (
            mine is not None and facts.refers(mine, other[0], other[2])
        )


def owners(body: Mapping[str, Any]) -> set[Key]:
    """The resources that a child was made for: its controller, and those that its labels name."""
    namespace = body["metadata"].get("namespace", "")
    found = {
        (owner["kind"], namespace, owner["name"])
        for owner in body["metadata"].get("ownerReferences") or ()
        if owner["kind"] in kinds.KINDS and owner["apiVersion"].startswith(f"{GROUP}/")
    }
    labels = _labels(body)
    for label, kind in ((INDEX_LABEL, VECTOR_INDEX), (DATASET_LABEL, DATASET)):
        if label in labels:
            found.add((kind, namespace, labels[label]))
    return found


def _places(key: Key, body: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    labels = _labels(body)
    return [(key[0], key[1], label, labels[label]) for label in _FOUND_BY if label in labels]


def _labels(body: Mapping[str, Any]) -> Mapping[str, str]:
    return body["metadata"].get("labels") or {}


def _age(body: Mapping[str, Any]) -> int:
    # Comparable as numbers: promised since Kubernetes 1.35, and so in every etcd-backed server before it.
    version = body["metadata"].get("resourceVersion", "0")
    return int(version) if version.isdigit() else 0
