"""Applied resources in the store: what was asked for is a chain of create-only revisions, what was seen one status.

A revision is never overwritten, so two who apply at once cannot lose each other's wish: one of them is told.  A
deletion is a revision too, first asked, then done, so a name that lives again never takes up an old number.
What this module does not do: judge a resource (`lakehouse.control`), or act on it (`lakehouse.embedded`).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from lakehouse.core.errors import Conflict, Corrupt, LakehouseError, NotFound, Unavailable
from lakehouse.core.names import RESOURCES
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectInfo, ObjectStore

logger = logging.getLogger(__name__)

SUFFIX = ".json"
STATUS = f"status{SUFFIX}"
REVISIONS_KEPT = 10
"""Older ones are removed when a newer is created; enough to see what changed, and by whom a race was lost."""
READS_MAX = 8
"""Attempts to read the newest revision while others apply and remove old ones."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One revision of a resource, as stored."""

    plural: str
    name: str
    revision: int
    """Rises by one with every change; the spec's own count is `generation`."""
    uid: str
    """Another one for each life of the name."""
    body: Mapping[str, Any]
    """`apiVersion`, `kind`, `metadata` and `spec`, as Kubernetes writes them; no `spec` once it is gone."""

    @property
    def kind(self) -> str:
        return str(self.body["kind"])

    @property
    def spec(self) -> Mapping[str, Any]:
        spec: Mapping[str, Any] = self.body.get("spec", {})
        return spec

    @property
    def generation(self) -> int:
        """Rises by one with every change of the spec."""
        return int(self.metadata["generation"])

    @property
    def metadata(self) -> Mapping[str, Any]:
        metadata: Mapping[str, Any] = self.body["metadata"]
        return metadata

    @property
    def deleting(self) -> bool:
        """Whether its deletion was asked for."""
        return "deletionTimestamp" in self.metadata

    @property
    def gone(self) -> bool:
        return "spec" not in self.body

    def to_bytes(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self.body), indent=2)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was last seen of a resource, and what happened to it lately: the one object that is overwritten."""

    status: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[Mapping[str, Any], ...] = ()
    """Oldest first: `type, reason, message, count, firstTimestamp, lastTimestamp`."""


NOTHING_SEEN = Seen()


class Resources:
    """The resources of a store."""

    def __init__(self, store: ObjectStore, runtime: Runtime) -> None:
        self._store = store
        self._runtime = runtime

    # ---------------------------------------------------------------- reading

    async def find(self, plural: str, name: str) -> Resource | None:
        """The newest revision; None if there is none, or the resource is gone."""
        newest = await self._newest(plural, name)
        return None if newest is None or newest.gone else newest

    async def get(self, plural: str, name: str) -> Resource:
        """As `find`.  Raises `NotFound`."""
        found = await self.find(plural, name)
        if found is None:
            raise NotFound(f"no such resource. name=`{plural}/{name}`")
        return found

    async def all_of(self, plural: str) -> list[Resource]:
        """All of one kind, by name; one that cannot be read is logged and hides no other."""
        found = []
        for name in await self._names(plural):
            try:
                resource = await self.find(plural, name)
            except Corrupt as error:
                logger.error("resource cannot be read. resource=%s/%s error=%s", plural, name, error)
                continue
            if resource is not None:
                found.append(resource)
        return found

    async def _names(self, plural: str) -> list[str]:
        prefix = f"{RESOURCES}{plural}/"
        level = await self._store.children(prefix)
        return sorted(child[len(prefix) : -1] for child in level.prefixes)

    async def seen(self, resource: Resource) -> Seen:
        """What was last recorded of this life of a resource; nothing yet is `NOTHING_SEEN`."""
        key = f"{_prefix(resource.plural, resource.name)}{STATUS}"
        try:
            value = msgspec.json.decode(await self._store.get(key))
            if value["uid"] != resource.uid:
                return NOTHING_SEEN
            return Seen(value["status"], tuple(value["events"]))
        except NotFound:
            return NOTHING_SEEN
        except (ValueError, KeyError, TypeError) as error:
            logger.error("status cannot be read: starting a new one. key=%s error=%s", key, error)
            return NOTHING_SEEN

    async def _newest(self, plural: str, name: str) -> Resource | None:
        for _ in range(READS_MAX):
            found = await self._revisions(plural, name)
            if not found:
                return None
            try:
                return _parse(await self._store.get(found[-1].key), plural, name, found[-1].key)
            except NotFound:  # others applied so often meanwhile that it was removed
                continue
        raise Unavailable(f"the store lists a resource that it does not give. name=`{plural}/{name}`")

    async def _revisions(self, plural: str, name: str) -> Sequence[ObjectInfo]:
        prefix = _prefix(plural, name)
        return [info for info in await self._store.list(prefix) if info.key != f"{prefix}{STATUS}"]

    # ---------------------------------------------------------------- writing

    async def apply(
        self, plural: str, name: str, wanted: Mapping[str, Any], base: Resource | None
    ) -> Resource:
        """Create the revision that follows `base` (what `find` gave) from a document that was checked.

        Raises `Conflict` when another was first, or `base` is being deleted.
        """
        if base is not None and base.deleting:
            raise Conflict(f"the resource is being deleted: wait until it is gone. name=`{plural}/{name}`")
        if base is None:
            number = await self._free_number(plural, name)
            created_at = timestamp(self._runtime.now())
            identity = {"uid": str(self._runtime.uuid()), "creationTimestamp": created_at, "generation": 1}
        else:
            number = base.revision + 1
            identity = {part: base.metadata[part] for part in ("uid", "creationTimestamp")}
            identity["generation"] = base.generation + (base.spec != wanted.get("spec", {}))
        return await self._create(plural, name, number, _body(wanted, name, identity))

    async def _free_number(self, plural: str, name: str) -> int:
        last = await self._newest(plural, name)
        if last is not None and not last.gone:
            raise Conflict(f"the resource was created meanwhile: look again. name=`{plural}/{name}`")
        return 1 if last is None else last.revision + 1

    async def ask_deletion(self, resource: Resource) -> Resource:
        """The revision that asks for a resource to be deleted; itself if it was asked already."""
        if resource.deleting:
            return resource
        asked = {"deletionTimestamp": timestamp(self._runtime.now())}
        return await self._follow(resource, {**resource.metadata, **asked}, resource.spec)

    async def forget(self, resource: Resource) -> None:
        """Everything it asked for is undone: the last revision says so, then the rest goes.

        Where others may write too the last revision stays, so that a writer that slept cannot bring an old one back.
        """
        await self._follow(resource, resource.metadata, None)
        await self._store.delete(f"{_prefix(resource.plural, resource.name)}{STATUS}")
        if self._store.exclusive:
            for info in await self._revisions(resource.plural, resource.name):
                await self._store.delete(info.key)

    async def put_seen(self, resource: Resource, seen: Seen) -> None:
        """Overwrite what was seen of a resource."""
        value = {"uid": resource.uid, "status": seen.status, "events": seen.events}
        data = msgspec.json.format(msgspec.json.encode(value), indent=2)
        await self._store.put(f"{_prefix(resource.plural, resource.name)}{STATUS}", data)

    async def _follow(
        self, resource: Resource, metadata: Mapping[str, Any], spec: Mapping[str, Any] | None
    ) -> Resource:
        body = {
            "apiVersion": resource.body["apiVersion"],
            "kind": resource.body["kind"],
            "metadata": dict(metadata),
        }
        if spec is not None:
            body["spec"] = spec
        return await self._create(resource.plural, resource.name, resource.revision + 1, body)

    async def _create(self, plural: str, name: str, number: int, body: dict[str, Any]) -> Resource:
        """Create a revision, then see that it is the newest: its number may have been used and removed before."""
        body["metadata"]["resourceVersion"] = str(number)
        made = Resource(plural, name, number, body["metadata"]["uid"], body)
        lost = Conflict(f"the resource was changed meanwhile: look again. name=`{plural}/{name}`")
        key = _key(plural, name, number)
        data = made.to_bytes()
        try:
            await self._store.create(key, data)
        except Conflict as error:
            raise lost from error
        except Unavailable:
            if not await self._is_there(key, data):
                raise
        revisions = await self._revisions(plural, name)
        if revisions and revisions[-1].key > key:
            raise lost
        await self._remove_old(revisions)
        return made

    async def _is_there(self, key: str, data: bytes) -> bool:
        """Whether a write that was not confirmed happened."""
        try:
            return await self._store.get(key) == data
        except LakehouseError:
            return False

    async def _remove_old(self, revisions: Sequence[ObjectInfo]) -> None:
        for info in revisions[:-REVISIONS_KEPT]:
            try:
                await self._store.delete(info.key)
            except LakehouseError as error:
                logger.warning("an old revision was not removed. key=%s error=%s", info.key, error)
                return


def timestamp(moment: datetime) -> str:
    """Whole seconds in UTC, as Kubernetes writes them."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _body(wanted: Mapping[str, Any], name: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    given = wanted.get("metadata", {})
    metadata: dict[str, Any] = {"name": name, **identity}
    metadata |= {part: given[part] for part in ("labels", "annotations") if given.get(part)}
    return {
        "apiVersion": wanted["apiVersion"],
        "kind": wanted["kind"],
        "metadata": metadata,
        "spec": wanted.get("spec", {}),
    }


def _prefix(plural: str, name: str) -> str:
    return f"{RESOURCES}{plural}/{name}/"


def _key(plural: str, name: str, revision: int) -> str:
    return f"{_prefix(plural, name)}{revision:010}{SUFFIX}"


def _parse(data: bytes, plural: str, name: str, key: str) -> Resource:
    try:
        body = msgspec.json.decode(data)
        metadata = body["metadata"]
        if metadata["name"] != name or not isinstance(body["kind"], str):
            raise ValueError("another's")
        return Resource(plural, name, int(metadata["resourceVersion"]), str(metadata["uid"]), body)
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"a resource cannot be read. key=`{key}`") from error
