"""What a declared thing is in a cluster and a bucket, put together: the parts that look, and the parts that act.

What this module does not do: give turns, or write statuses; the frame (`converge`) does.
"""

from lakehouse_operator.apply import Actor
from lakehouse_operator.cache import Key
from lakehouse_operator.children import Children
from lakehouse_operator.kube import Body
from lakehouse_operator.looks import Memory
from lakehouse_operator.mounts import Mounts
from lakehouse_operator.observe import Observer
from lakehouse_operator.parts import Parts
from lakehouse_operator.peers import Peers
from lakehouse_operator.pods import Pods
from lakehouse_operator.routes import Routes
from lakehouse_operator.storage import Buckets
from lakehouse_operator.sweeping import Sweeper


class Domain:
    """The operator's `lakehouse_operator.parts.Domain`."""

    def __init__(self, parts: Parts) -> None:
        self._memory = Memory()
        self._mounts = Mounts(parts)
        self.buckets = Buckets(parts, self._mounts)
        self._home = parts.settings.namespace
        releases = {self._home: parts.settings.helm_release}
        self._peers = Peers(parts.kube, parts.runtime, releases, self._mounts)
        self._pods = Pods(parts, self._peers, self._mounts)
        children = Children(parts.kube, parts.cache)
        self._routes = Routes(parts)
        self._observer = Observer(parts, self.buckets, self._pods, children, self._memory)
        self.sweeper = Sweeper(parts, self.buckets, self._memory)
        self._actor = Actor(
            parts, self.buckets, self._pods, self._peers, children, self._memory, self._observer
        )

    @property
    def observer(self) -> Observer:
        return self._observer

    @property
    def actor(self) -> Actor:
        return self._actor

    async def poll(self, key: Key) -> bool:
        """Whether an index's pods answer otherwise than when it was last observed.  Raises nothing."""
        _, namespace, name = key
        found = await self._pods.states(namespace, name)
        return tuple(found) != self._memory.of(namespace, name).pods

    async def routes(self, coming: Body | None = None) -> None:
        """Bring the routing table in line with what is declared and the statuses say, or (`coming`) are about to."""
        await self._routes.write(coming)

    async def start(self) -> None:
        self._mounts.start()
        self._peers.start(self._home)
        self.buckets.start()
        self.sweeper.start()

    async def close(self) -> None:
        await self.sweeper.close()
        await self._peers.close()
        await self.buckets.close()
        await self._mounts.close()
        await self._pods.close()
