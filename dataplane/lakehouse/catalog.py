"""The catalog: datasets by name, each a chain of create-only manifest versions in the bucket.

The Parquet is there before its manifest is, so whoever reads a manifest can read what it names.  Two
registrations at once race for the next version's key; the loser reads again and decides anew.  What the
catalog does not do: look at the objects it lists.
"""

import logging
from collections.abc import Sequence
from urllib.parse import unquote

from lakehouse.core import manifest
from lakehouse.core.errors import Busy, Conflict, Corrupt, Invalid, NotFound
from lakehouse.core.manifest import Manifest, Registered, Registration
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

RACES_MAX = 16
"""Lost races for one version before a registration gives up; each means that another one succeeded."""


class Catalog:
    """Manifests over a store."""

    def __init__(self, store: ObjectStore, runtime: Runtime) -> None:
        self._store = store
        self._runtime = runtime

    async def register(self, asked: Registration) -> Registered:
        """Publish what `manifest.register` decides.  Raises `Conflict` on another fingerprint."""
        for _ in range(RACES_MAX):
            decided = manifest.register(
                await self._newest(asked.name),
                asked,
                dataset_id=self._runtime.uuid(),
                created_at=self._runtime.now().isoformat(),
            )
            if not decided.publish:
                return decided
            try:
                if decided.manifest.version == 2:
                    await self._adopt(asked.name)
                await self._publish(decided.manifest)
            except Conflict:
                continue
            return decided
        raise Busy(f"too many registrations of one dataset at once: try again. name=`{asked.name}`")

    async def manifest(self, name: str) -> Manifest:
        """The newest version.  Raises `NotFound`."""
        newest = await self._newest(manifest.checked_dataset_name(name))
        if newest is None:
            raise NotFound(f"no such dataset. name=`{name}`")
        return newest

    async def list(self) -> Sequence[Manifest]:
        """The newest version of every dataset, by name."""
        level = await self._store.children(manifest.MANIFESTS)
        names = {unquote(prefix[len(manifest.MANIFESTS) : -1]) for prefix in level.prefixes}
        bare = (info.key[len(manifest.MANIFESTS) :] for info in level.objects)
        names |= {unquote(key.removesuffix(manifest.SUFFIX)) for key in bare if key.endswith(manifest.SUFFIX)}
        found = [await self._readable(name) for name in sorted(names)]
        return [one for one in found if one is not None]

    async def _readable(self, name: str) -> Manifest | None:
        """One unreadable manifest hides its own dataset, not all of them."""
        try:
            return await self._newest(name)
        except (Corrupt, Invalid) as error:
            logger.error("manifest cannot be read. dataset=%s error=%s", name, error)
            return None

    async def _newest(self, name: str) -> Manifest | None:
        versions = await self._store.list(manifest.versions_prefix(name))
        if versions:
            return manifest.parse(await self._store.get(versions[-1].key), versions[-1].key)
        return await self._bare(name)

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
            await self._publish(bare)

    async def _publish(self, new: Manifest) -> None:
        await self._store.create(manifest.version_key(new.name, new.version), new.to_bytes())
