"""What the operator is put together from, and the two seams between its frame and its domain.

The frame (`converge`) decides when to look and writes down what was seen; the domain (`observe`, `apply`) knows what a
resource is in a cluster and a bucket.  What this module does not do: put it together; `main` does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from lakehouse.control.plan import Action
from lakehouse.control.state import Resource
from lakehouse.loop.work import Workshop
from lakehouse.runtime import Runtime
from lakehouse_operator.cache import Cache, Key
from lakehouse_operator.kube import Body, Kube
from lakehouse_operator.settings import Settings


@dataclass(frozen=True, slots=True)
class Parts:
    """What everybody shares."""

    settings: Settings
    runtime: Runtime
    kube: Kube
    cache: Cache
    workshop: Workshop[Key]
    identity: str
    """This cluster, as it signs what it owns in buckets."""
    call: Callable[[Key], None]
    """Give a resource a turn soon."""


class Observing(Protocol):
    """Looks at the world."""

    async def observe(self, key: Key, resource: Resource[Any]) -> Any:
        """Everything seen of a resource, as its kind's `reconcile` takes it.  Raises `LakehouseError`."""
        ...


class Acting(Protocol):
    """Brings the world a step further; everything may be repeated."""

    async def children(self, resource: Resource[Any], observed: Any) -> None:
        """Make the cluster's objects of a resource what they should be.  Raises `LakehouseError`."""
        ...

    async def apply(self, action: Action, resource: Resource[Any]) -> None:
        """Do, or for a long one begin, what a decision says.  Raises `LakehouseError`."""
        ...

    async def forget(self, key: Key) -> None:
        """The resource is gone: what memory has of it may go."""
        ...


class Domain(Protocol):
    """What a resource is in this cluster."""

    @property
    def observer(self) -> Observing: ...

    @property
    def actor(self) -> Acting: ...

    async def poll(self, key: Key) -> bool:
        """Whether an index's pods answer otherwise than when it was last observed.  Raises nothing."""
        ...

    async def routes(self, coming: Body | None = None) -> None:
        """Bring the routing table in line with what is declared and the statuses say; `coming` is an index as its
        status is about to say.  Raises `LakehouseError`."""
        ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...
