"""Which shards of which index this process keeps, and where the others are asked for.

A process alone keeps every shard of every index and asks nobody: the placement is None there.  Of several that keep the
same shards (`peers`), one is preferred for writing.  A pod keeps one shard of one index and asks the others' pods.
What this module does not do: open, ask or write.
"""

from uuid import UUID

from lakehouse.core.incarnation import Incarnation
from lakehouse.engine_settings import EngineSettings
from lakehouse.placed_shard import LocalShard, PlacedShard
from lakehouse.remote.addresses import Addresses
from lakehouse.remote.calls import Calls
from lakehouse.remote.peer_key import PeerKey
from lakehouse.remote.shard import PreferredWriter, RemoteShard, preference
from lakehouse.runtime import Runtime
from lakehouse.settings import SHARD_FIELD
from lakehouse.shard import Shard
from lakehouse.store.base import ObjectStore


class Neighbours:
    """The other processes of a deployment: connections to them, and their addresses by URL."""

    def __init__(
        self, runtime: Runtime, peer_key: PeerKey | None = None, instance: UUID | None = None
    ) -> None:
        self.instance = instance or runtime.uuid()
        self.calls = Calls(runtime, self.instance, peer_key)
        self._runtime = runtime
        self._addresses: dict[str, Addresses] = {}

    def at(self, url: str) -> Addresses:
        """Who is behind a URL."""
        known = self._addresses.get(url)
        if known is None:
            known = self._addresses[url] = Addresses(url, self._runtime)
        return known

    async def close(self) -> None:
        """End connections and lookups."""
        for addresses in self._addresses.values():
            await addresses.close()
        await self.calls.close()


class Pods:
    """The placement of one process among several.

    `peers` is where all processes that keep what this one keeps are found.  With `index` and `shard` this one keeps
    that shard alone, and the others of the index are at `shard_url`, in which `{shard}` stands for their number.  With
    `shard_url` alone it keeps none: every shard of every index is kept by others, there.
    """

    def __init__(
        self,
        neighbours: Neighbours,
        *,
        peers: str | None = None,
        index: str | None = None,
        shard: int | None = None,
        shard_url: str | None = None,
    ) -> None:
        self._neighbours = neighbours
        self._peers = peers
        self._index = index
        self._shard = shard
        self._shard_url = shard_url

    def shard(
        self,
        store: ObjectStore,
        runtime: Runtime,
        settings: EngineSettings,
        name: str,
        record: Incarnation,
        number: int,
    ) -> PlacedShard:
        """One shard of one life, not opened yet."""
        near = self._neighbours
        if self._is_elsewhere(name, number):
            assert self._shard_url is not None
            where = near.at(self._shard_url.replace(SHARD_FIELD, str(number)))
            return RemoteShard(store, runtime, settings, name, record, number, where, near.calls)
        shard = Shard(store, runtime, settings, name, record, number)
        if self._peers is None:
            return LocalShard(shard)
        where = near.at(self._peers)
        remote = RemoteShard(store, runtime, settings, name, record, number, where, near.calls)
        key = preference(name, record, number)
        return LocalShard(shard, PreferredWriter(shard, remote, where, near.calls, key))

    def _is_elsewhere(self, name: str, number: int) -> bool:
        if self._shard is None:
            return self._shard_url is not None
        return name == self._index and number != self._shard


def placed(
    placement: Pods | None,
    store: ObjectStore,
    runtime: Runtime,
    settings: EngineSettings,
    name: str,
    record: Incarnation,
) -> tuple[PlacedShard, ...]:
    """All shards of a life."""
    if placement is None:
        return tuple(
            LocalShard(Shard(store, runtime, settings, name, record, number))
            for number in range(record.shards)
        )
    return tuple(
        placement.shard(store, runtime, settings, name, record, number) for number in range(record.shards)
    )
