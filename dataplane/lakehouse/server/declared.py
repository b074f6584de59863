"""What the routes ask of whoever keeps declared resources: what is whose, and what was applied.

A plain server has nobody of that kind; `lakehouse up` passes one in.  What this module does not do: converge
anything; `lakehouse.embedded` does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lakehouse.catalog import Catalog
from lakehouse.core.errors import Conflict, Invalid, Outcome, Unavailable
from lakehouse.indexes import Indexes
from lakehouse.runtime import Runtime
from lakehouse.settings import Settings
from lakehouse.store.base import ObjectStore


@dataclass(frozen=True, slots=True)
class Declared:
    """An index that a resource declares."""

    resource: str
    """`VectorIndex/<name>`."""
    read_only: str = ""
    """Why nobody may write to it over HTTP; empty when they may."""
    suspended: bool = False


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying a document came to, or would come to."""

    result: str
    """`created`, `configured` or `unchanged`."""
    resource: Mapping[str, Any]
    """As it is now, or as it would be."""
    before: Mapping[str, Any] | None = None


class InvalidDocument(Invalid):
    """A resource that breaks rules of its kind: all that is wrong with it."""

    def __init__(self, message: str, problems: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(message)
        self.problems = problems


class Controller(Protocol):
    """Declared resources and the loop that looks after them."""

    async def start(self) -> None:
        """Read what was applied and begin to converge."""
        ...

    async def close(self) -> None:
        """Stop, also in the middle of work; nothing is half-visible then."""
        ...

    def declared(self, index: str) -> Declared | None:
        """The resource that declares an index; never waits."""
        ...

    def declares_dataset(self, dataset: str) -> str | None:
        """The resource that declares a dataset, as `Dataset/<name>`; never waits."""
        ...

    async def items(self, kind: str | None) -> Sequence[Mapping[str, Any]]:
        """Resources with their status, of one kind or all.  Raises `NotFound` for an unknown kind."""
        ...

    async def item(self, kind: str, name: str) -> Mapping[str, Any]:
        """One resource with its status.  Raises `NotFound`."""
        ...

    async def events(self, kind: str, name: str) -> Sequence[Mapping[str, Any]]:
        """What happened to a resource lately, oldest first.  Raises `NotFound`."""
        ...

    async def apply(self, kind: str, name: str, document: Mapping[str, Any], *, dry_run: bool) -> Applied:
        """Take a wish.  Raises `InvalidDocument`, `Conflict`, `NotFound` for an unknown kind."""
        ...

    async def delete(self, kind: str, name: str, *, wait_s: float) -> bool:
        """Ask for a resource to go; whether it is gone.  Raises `NotFound`."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What a controller works with: the parts of the one process."""

    store: ObjectStore
    runtime: Runtime
    settings: Settings
    scratch: Path
    indexes: Indexes
    catalog: Catalog


ControllerFactory = Callable[[Parts], Controller]


def nobody(index: str) -> Declared | None:
    """Of a server that keeps no resources: nothing is declared."""
    return None


def no_resource(dataset: str) -> str | None:
    """Of a server that keeps no resources: no dataset is declared."""
    return None


def check_dataset_not_declared(resource: str | None, dataset: str) -> None:
    """What a declared dataset holds is its resource's.  Raises `Conflict`."""
    if resource is not None:
        raise Conflict(
            f"the dataset is declared by {resource}: change, apply or delete that resource. dataset=`{dataset}`"
        )


def check_not_declared(declared: Declared | None, index: str) -> None:
    """Creating and dropping is the resource's.  Raises `Conflict`."""
    if declared is not None:
        raise Conflict(
            f"the index is declared by {declared.resource}: apply or delete that resource. index=`{index}`"
        )


def check_writable(declared: Declared | None, index: str) -> None:
    """Raises `Conflict` when only its dataset may change an index."""
    if declared is not None and declared.read_only:
        raise Conflict(
            f"the index is read-only: {declared.read_only}, as {declared.resource} says. index=`{index}`"
        )


def check_served(declared: Declared | None, index: str) -> None:
    """Raises `Unavailable` when a declared index is suspended."""
    if declared is not None and declared.suspended:
        raise Unavailable(
            f"the index is suspended, as {declared.resource} says. index=`{index}`",
            outcome=Outcome.NOT_COMMITTED,
            retry_after_s=30.0,
        )


def not_ready(declared: Declared, index: str) -> Unavailable:
    """A declared index that does not live yet."""
    return Unavailable(
        f"the index is declared but not ready yet: see {declared.resource}. index=`{index}`",
        outcome=Outcome.NOT_COMMITTED,
        retry_after_s=2.0,
    )
