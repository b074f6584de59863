"""What is seen in the same way wherever resources are kept: records, manifests and statuses as values of `state`.

One process and the operator find them in different places; what they mean to a decision is said here once.  What this
module does not do: look, or decide.
"""

from collections.abc import Callable, Mapping
from typing import Any

from lakehouse.control import conditions, index_snapshot
from lakehouse.control.kinds import (
    DATASET,
    INDEX_SNAPSHOT,
    VECTOR_INDEX,
    Drain,
    IndexSnapshotSpec,
    VectorIndexSpec,
)
from lakehouse.control.state import (
    SCHEDULED_FOR_ANNOTATION,
    DatasetVersion,
    Life,
    ObservedSnapshot,
    ObservedSource,
    Resource,
)
from lakehouse.core import manifest as manifests
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.manifest import Manifest


def refers(resource: Resource[Any], kind: str, name: str) -> bool:
    """Whether a resource's spec names another one (of its own namespace)."""
    spec = resource.spec
    if resource.kind == INDEX_SNAPSHOT:
        return kind == VECTOR_INDEX and spec.index == name
    if resource.kind != VECTOR_INDEX:
        return False
    if kind == DATASET:
        return spec.source is not None and spec.source.dataset == name
    if kind == VECTOR_INDEX:
        return spec.drain is not None and spec.drain.into == name
    return spec.bootstrap is not None and spec.bootstrap.name == name


def drain_chain(name: str, drain_of: Callable[[str], Drain | None]) -> tuple[str, ...]:
    """Where draining goes on to from the index `name`, up to the first name that comes again.

    `drain_of` gives what an index asks for; None where it asks for none, or is not there.
    """
    chain: list[str] = []
    while (drain := drain_of(name)) is not None:
        name = drain.into
        if name in chain:
            return (*chain, name)
        chain.append(name)
    return tuple(chain)


def life(record: Incarnation | None) -> Life | None:
    """The life that a record begins; None where there is none."""
    if record is None or not record.alive or record.params is None:
        return None
    return Life(record.params, record.shards, record.owner, record.origin or {})


def differences(spec: VectorIndexSpec, life: Life) -> str:
    """What never changes, and is otherwise in the store than is asked for; empty when nothing is."""
    pairs = {
        "dimension": (spec.dimension, life.params.dimension),
        "distance": (spec.distance.value, life.params.distance.value),
        "shards": (spec.shards, life.shards),
    }
    return ", ".join(
        f"{name} is {there} and {asked} is asked for"
        for name, (asked, there) in pairs.items()
        if asked != there
    )


def source(newest: Manifest, vector_column: str) -> ObservedSource:
    """What a dataset's version says of its columns, and of the vectors in one of them."""
    columns = {} if newest.schema is None else {field.name: field.type for field in newest.schema.fields}
    stats: Mapping[str, object] = (newest.stats or {}).get(vector_column, {})
    shortest, longest, nulls = (stats.get(name) for name in ("length_min", "length_max", "null_count"))
    lengths = (shortest, longest) if isinstance(shortest, int) and isinstance(longest, int) else None
    return ObservedSource(newest.version, columns, lengths, nulls if isinstance(nulls, int) else None)


def version(newest: Manifest) -> DatasetVersion:
    """A dataset's version, as its manifest tells of it."""
    return DatasetVersion(
        newest.version,
        manifests.version_key(newest.name, newest.version),
        newest.schema_fingerprint,
        newest.row_count,
        newest.bytes,
        len(newest.objects),
        conditions.moment(newest.created_at),
    )


def snapshot(resource: Resource[IndexSnapshotSpec], *, in_use: bool) -> ObservedSnapshot:
    """An IndexSnapshot as its own status tells of it; `in_use`: an index is being restored from it."""
    meta, status = resource.meta, resource.status
    return ObservedSnapshot(
        meta.name,
        index_snapshot.state_of(status),
        meta.created_at,
        completed_at=conditions.moment(status.get("completedAt")),
        scheduled_for=conditions.moment(meta.annotations.get(SCHEDULED_FOR_ANNOTATION)),
        uri=status.get("uri", ""),
        position=status.get("position", ""),
        digest=status.get("digest", ""),
        items=status.get("items"),
        size=status.get("size"),
        in_use=in_use,
        name_taken=index_snapshot.is_name_taken(status),
        deleting=meta.deletion_requested,
    )
