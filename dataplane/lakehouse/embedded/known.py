"""The resources of this process, parsed, and how they refer to each other.

The store stays the truth: an entry is what was last read there.  What this module does not do: read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lakehouse.control import facts, kinds, packaged
from lakehouse.control.crd import Definition
from lakehouse.control.state import Meta, Resource
from lakehouse.core.errors import NotFound
from lakehouse.resources import Resource as Stored
from lakehouse.resources import Seen

Key = tuple[str, str]
"""Kind and name."""


def definition(kind: str) -> Definition:
    """The kind that a person means: its name, plural, singular or short name, in any case.  Raises `NotFound`."""
    wanted = kind.lower()
    for one in packaged.definitions().values():
        if wanted == one.kind.lower() or wanted in one.names:
            return one
    listed = ", ".join(
        f"{one.plural} ({', '.join(one.short_names)})" for one in packaged.definitions().values()
    )
    raise NotFound(f"no such kind: there are {listed}. kind=`{kind}`")


@dataclass(frozen=True, slots=True)
class Known:
    """One resource: as stored, as parsed, and what was last written of it."""

    stored: Stored
    seen: Seen
    resource: Resource[Any]


def known(stored: Stored, seen: Seen) -> Known:
    """Parse what was valid when it was applied."""
    metadata = stored.metadata
    deleted_at = metadata.get("deletionTimestamp")
    meta = Meta(
        name=stored.name,
        namespace=None,
        uid=stored.uid,
        generation=stored.generation,
        created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
        deletion_requested_at=None if deleted_at is None else datetime.fromisoformat(deleted_at),
        annotations=metadata.get("annotations", {}),
    )
    return Known(
        stored, seen, Resource(stored.kind, meta, kinds.parse(stored.kind, stored.spec), seen.status)
    )


class Registry:
    """Every resource that is known, by kind and name."""

    def __init__(self) -> None:
        self._known: dict[Key, Known] = {}

    def put(self, entry: Known) -> None:
        self._known[(entry.stored.kind, entry.stored.name)] = entry

    def remove(self, key: Key) -> None:
        self._known.pop(key, None)

    def get(self, key: Key) -> Known | None:
        return self._known.get(key)

    def all_keys(self) -> list[Key]:
        return sorted(self._known)

    def of(self, kind: str) -> Iterator[tuple[str, Known]]:
        """All of one kind, by name."""
        for key in self.all_keys():
            if key[0] == kind:
                yield key[1], self._known[key]

    def concerned(self, key: Key) -> set[Key]:
        """The resources that what happened to `key` may matter to."""
        kind, name = key
        found = set()
        for other, entry in self._known.items():
            if other != key and (
                facts.refers(entry.resource, kind, name)
                or ((mine := self._known.get(key)) is not None and facts.refers(mine.resource, *other))
            ):
                found.add(other)
        return found
