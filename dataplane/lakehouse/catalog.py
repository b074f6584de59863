"""The catalog: datasets by name, each a chain of create-only manifest versions in the bucket.

The Parquet is there before its manifest is, so whoever reads a manifest can read what it names; and a manifest
is gone before its Parquet is, so whoever finds one missing looks for the newest again.  Two who publish at once
race for the next version's key; the loser reads again and decides anew.  A dropped dataset leaves a tombstone in
its chain, so nothing of the life before can follow it.  What the catalog does not do: look at the objects it
lists, or write them.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote

from lakehouse.core import manifest
from lakehouse.core.errors import Busy, Conflict, Corrupt, Invalid, NotFound, Outcome, Unavailable
from lakehouse.core.manifest import Manifest, Registered, Registration, Tombstone
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectInfo, ObjectStore

logger = logging.getLogger(__name__)

RACES_MAX = 16
"""Lost races for one version before a registration gives up; each means that another one succeeded."""
NEWEST_KEPT_BYTES = 8 << 20
"""Manifests kept in memory, by their size in the store; decoded they take about three times as much."""
ORPHAN_AGE_S = 24 * 3_600
"""Objects of an attempt that no manifest names are left alone for so long: the attempt may still be at work."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Where a dataset's chain of versions ends."""

    newest: Manifest | None
    """None when there is no such dataset, or not any more."""
    last: int
    """The highest version that is taken; 0 for none."""
    versions: Sequence[int] = ()
    """Those that can be read, ascending; what a drop that was cut short left of the life before is not among them."""
    left_behind: bool = False
    """Whether a drop was cut short: the next one finishes it."""


class Newest:
    """The newest link that was read of each chain: reading it again costs a millisecond."""

    def __init__(self) -> None:
        self._links: dict[tuple[str, str], tuple[ObjectInfo, Manifest | Tombstone]] = {}
        """By the store's URL and the dataset's name, with the link's key and ETag: a key gets another content only
        where a store was emptied and filled again."""
        self._bytes = 0

    async def read(self, store: ObjectStore, name: str, info: ObjectInfo) -> Manifest | Tombstone:
        """The link of dataset `name` that lies in the `store` now as `info` says.  Raises `Corrupt`."""
        place = (store.url, name)
        known = self._links.get(place)
        if known is not None and known[0] == info:
            return known[1]
        found = manifest.parse_link(await store.get(info.key), info.key)
        self._keep(place, info, found)
        return found

    def _keep(self, place: tuple[str, str], info: ObjectInfo, link: Manifest | Tombstone) -> None:
        """The last one always, however large; for it those go that were read first."""
        self._forget(place)
        self._links[place] = (info, link)
        self._bytes += info.size
        while self._bytes > NEWEST_KEPT_BYTES and len(self._links) > 1:
            self._forget(next(iter(self._links)))

    def _forget(self, place: tuple[str, str]) -> None:
        known = self._links.pop(place, None)
        self._bytes -= known[0].size if known is not None else 0


class Catalog:
    """Manifests over a store."""

    def __init__(self, store: ObjectStore, runtime: Runtime, newest: Newest | None = None) -> None:
        """`newest` may be shared by catalogs of several stores."""
        self._store = store
        self._runtime = runtime
        self._newest = Newest() if newest is None else newest

    async def register(self, asked: Registration) -> Registered:
        """Publish what `manifest.register` decides.  Raises `Conflict` on another fingerprint."""
        for _ in range(RACES_MAX):
            chain = await self.chain(asked.name)
            decided = manifest.register(
                chain.newest,
                asked,
                dataset_id=self._runtime.uuid(),
                created_at=self._runtime.now().isoformat(),
                first=chain.last + 1,
            )
            if not decided.publish:
                return decided
            try:
                await self.publish(decided.manifest)
            except Conflict:
                continue
            return decided
        raise Busy(f"too many registrations of one dataset at once: try again. name=`{asked.name}`")

    async def publish(self, new: Manifest) -> None:
        """Write the version after the newest.  Raises `Conflict` when another one took its place."""
        if new.version == 2:
            await self._adopt(new.name)
        await self._create(manifest.version_key(new.name, new.version), new.to_bytes())

    async def manifest(self, name: str, version: int | None = None) -> Manifest:
        """The newest version, or that one.  Raises `NotFound`."""
        manifest.checked_dataset_name(name)
        found = (await self.chain(name)).newest if version is None else await self._version(name, version)
        if found is None:
            which = "" if version is None else f" version=`{version}`"
            raise NotFound(f"no such dataset{'' if version is None else ' or version'}. name=`{name}`{which}")
        return found

    async def versions(self, name: str) -> Sequence[int]:
        """The versions that can be read, ascending.  Raises `NotFound`."""
        chain = await self.chain(manifest.checked_dataset_name(name))
        if chain.newest is None:
            raise NotFound(f"no such dataset. name=`{name}`")
        return list(chain.versions)

    async def list(self) -> Sequence[Manifest]:
        """The newest version of every dataset, by name."""
        level = await self._store.children(manifest.MANIFESTS)
        names = {unquote(prefix[len(manifest.MANIFESTS) : -1]) for prefix in level.prefixes}
        bare = (info.key[len(manifest.MANIFESTS) :] for info in level.objects)
        names |= {unquote(key.removesuffix(manifest.SUFFIX)) for key in bare if key.endswith(manifest.SUFFIX)}
        found = [await self._readable(name) for name in sorted(names)]
        return [one for one in found if one is not None]

    async def chain(self, name: str) -> Chain:
        """Where the versions of dataset `name` end now: one LIST, and a GET where that tells of a newer link."""
        links = await self._links(name)
        if not links:
            bare = await self._bare(name)
            return Chain(None, 0) if bare is None else Chain(bare, 1, (1,))
        last, info = links[-1]
        found = await self._newest.read(self._store, name, info)
        if not isinstance(found, Manifest):
            return Chain(None, last, left_behind=len(links) > 1)
        return Chain(found, last, tuple(version for version, _ in links if version >= found.first_version))

    async def retire(
        self, name: str, keep_versions: int, pinned: frozenset[int] = frozenset()
    ) -> Sequence[int]:
        """Delete all but the newest `keep_versions` and the pinned versions; returns which went.

        The manifests go first, then the objects that no remaining manifest names; objects that were registered
        from elsewhere are never touched, and what a manifest names that cannot be read goes with the orphans.
        Raises `NotFound`, and `Corrupt` when one that remains cannot be read.
        """
        newest = await self.manifest(name)
        living = dict(await self._living(name, newest))
        going = manifest.retired(list(living), keep_versions, pinned)
        if not going:
            return ()
        gone, _ = await self._legible([living.pop(version) for version in going])
        remaining = [await self._parsed(key) for key in living.values()]
        for version in going:
            await self._store.delete(manifest.version_key(name, version))
        await self._delete(manifest.unnamed(gone, _found(remaining)))
        return going

    async def drop(self, name: str) -> None:
        """Delete the dataset: first a tombstone ends it, then its objects and versions go.

        A drop that was cut short is finished by the next one.  What a version names that cannot be read goes by its
        age, as orphans do.  Raises `NotFound` when there is nothing, `Busy` when others publish all the time.
        """
        manifest.checked_dataset_name(name)
        last = await self._bury(name)
        keys = [key for version, key in await self._version_keys(name) if version < last]
        gone, unread = await self._legible(keys)
        await self._delete(manifest.unnamed(gone, ()))
        if unread:
            await self.collect_orphans(name, above=last)
        bare = [key for key in manifest.bare_keys(name) if await self._is_there(key)]
        await self._delete((*bare, *keys))  # while one of its keys is there, a drop is not finished

    async def _bury(self, name: str) -> int:
        """The version of the tombstone, written now or found."""
        for _ in range(RACES_MAX):
            last, is_alive = await self._end(name)
            if not is_alive and (not last or len(await self._version_keys(name)) == 1):
                raise NotFound(f"no such dataset. name=`{name}`")
            if not is_alive:
                return last
            stone = Tombstone(name, last + 1, self._runtime.now().isoformat())
            try:
                await self._create(manifest.version_key(name, stone.version), stone.to_bytes())
            except Conflict:
                continue
            return stone.version
        raise Busy(f"the dataset is being published all the time: try again. name=`{name}`")

    async def _end(self, name: str) -> tuple[int, bool]:
        """The highest version that is taken, and whether the dataset lives; what cannot be read is taken to."""
        try:
            chain = await self.chain(name)
        except Corrupt:
            keys = await self._version_keys(name)
            return keys[-1][0] if keys else 1, True
        return chain.last, chain.newest is not None

    async def collect_orphans(self, name: str, above: int = 0) -> int:
        """Delete objects of attempts over a day old that no version `above` that one names; returns how many."""
        now = self._runtime.now()
        found = [
            info.key
            for prefix in (manifest.data_prefix(name), manifest.rejects_prefix(name))
            for info in await self._store.list(prefix)
        ]
        old = frozenset(key for key in found if _age_s(key, now) > ORPHAN_AGE_S)
        for version, key in reversed(await self._version_keys(name)):  # the newest names most of them
            if not old or version <= above:
                break
            named = await self._parsed(key)
            old -= named.own_keys if named is not None else frozenset()
        await self._delete(sorted(old))
        return len(old)

    async def _legible(self, keys: Iterable[str]) -> tuple[Sequence[Manifest], int]:
        """Those manifests that can be read, of some that are to go, and how many cannot."""
        found, unread = list[Manifest | None](), 0
        for key in keys:
            try:
                found.append(await self._parsed(key))
            except Corrupt as error:
                logger.warning("goes unread: its objects follow when they are a day old. error=%s", error)
                unread += 1
        return _found(found), unread

    async def _delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            await self._store.delete(key)

    async def _is_there(self, key: str) -> bool:
        try:
            await self._store.head(key)
        except (NotFound, Invalid):
            return False
        return True

    async def _readable(self, name: str) -> Manifest | None:
        """One unreadable manifest hides its own dataset, not all of them."""
        try:
            return (await self.chain(name)).newest
        except (Corrupt, Invalid) as error:
            logger.error("manifest cannot be read. dataset=%s error=%s", name, error)
            return None

    async def _links(self, name: str) -> Sequence[tuple[int, ObjectInfo]]:
        infos = await self._store.list(manifest.versions_prefix(name))
        found = ((manifest.version_of(info.key), info) for info in infos)
        return [(version, info) for version, info in found if version is not None]

    async def _version_keys(self, name: str) -> Sequence[tuple[int, str]]:
        return [(version, info.key) for version, info in await self._links(name)]

    async def _living(self, name: str, newest: Manifest) -> Sequence[tuple[int, str]]:
        """The versions of this life; what a drop that was cut short left of the one before is not among them."""
        keys = await self._version_keys(name)
        return [(version, key) for version, key in keys if version >= newest.first_version]

    async def _version(self, name: str, version: int) -> Manifest | None:
        try:
            return await self._parsed(manifest.version_key(name, version))
        except NotFound:
            return await self._bare(name) if version == 1 and not await self._version_keys(name) else None

    async def _parsed(self, key: str) -> Manifest | None:
        found = manifest.parse_link(await self._store.get(key), key)
        return found if isinstance(found, Manifest) else None

    async def _bare(self, name: str) -> Manifest | None:
        for key in manifest.bare_keys(name):
            try:
                return manifest.parse_bare(await self._store.get(key), key)
            except (NotFound, Invalid):  # Invalid: no store could hold that key
                continue
        return None

    async def _adopt(self, name: str) -> None:
        """Give an old system's manifest its place as version 1, unless someone already has."""
        if await self._store.list(manifest.versions_prefix(name), limit=1):
            return
        bare = await self._bare(name)
        if bare is not None:
            await self._create(manifest.version_key(name, 1), bare.to_bytes())

    async def _create(self, key: str, data: bytes) -> None:
        """`create`, and when the answer was lost, what became of it."""
        try:
            await self._store.create(key, data)
        except Unavailable as error:
            if error.outcome is not Outcome.UNKNOWN or not await self._holds(key, data):
                raise

    async def _holds(self, key: str, data: bytes) -> bool:
        try:
            return await self._store.get(key) == data
        except NotFound:
            return False


def _found(manifests: Iterable[Manifest | None]) -> Sequence[Manifest]:
    return [each for each in manifests if each is not None]


def _age_s(key: str, now: datetime) -> float:
    attempt = manifest.attempt_of(key)
    return (manifest.attempt_age_s(attempt, now) if attempt else None) or 0.0
