"""The kinds as values: what a validated, defaulted document says, parsed once.

`VectorIndex`, `Dataset` and `IndexSnapshot` are described in full by the resource definitions in crds/; the classes
here carry what decisions need, under the same names.  What this module does not do: check or default; `crd` did that.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from lakehouse.control import duration
from lakehouse.core.types import Distance, IndexParams

API_VERSION = "lakehouse.agentview.dev/v1alpha1"
VECTOR_INDEX = "VectorIndex"
DATASET = "Dataset"
INDEX_SNAPSHOT = "IndexSnapshot"
KINDS = (VECTOR_INDEX, DATASET, INDEX_SNAPSHOT)


class DeletionPolicy(enum.StrEnum):
    """What becomes of the content when a resource goes."""

    RETAIN = "Retain"
    DELETE = "Delete"


class Follow(enum.StrEnum):
    """Whether an index goes with its dataset."""

    LATEST = "Latest"
    ONCE = "Once"


class OnConflict(enum.StrEnum):
    """Which version of an item stays when a drain finds its id in the target."""

    REPLACE = "Replace"
    SKIP = "Skip"


class IngestMode(enum.StrEnum):
    """What a dataset is: what its sources hold now, or all they ever held."""

    REPLACE = "Replace"
    APPEND = "Append"


@dataclass(frozen=True, slots=True)
class Hnsw:
    """Graph parameters."""

    m: int = 16
    ef_construction: int = 200
    ef_search: int = 64


@dataclass(frozen=True, slots=True)
class Source:
    """The dataset an index is built from."""

    dataset: str
    id_column: str
    vector_column: str
    metadata_columns: tuple[str, ...] = ()
    follow: Follow = Follow.ONCE


@dataclass(frozen=True, slots=True)
class Drain:
    """Where a fresh tier goes, and when."""

    into: str
    max_items: int = 500
    max_age: timedelta = timedelta(minutes=5)
    on_conflict: OnConflict = OnConflict.REPLACE


@dataclass(frozen=True, slots=True)
class Retention:
    """Which scheduled snapshots stay: any that either rule keeps; all when there is no rule."""

    keep_last: int | None = None
    keep_within: timedelta | None = None


@dataclass(frozen=True, slots=True)
class SnapshotSchedule:
    """When snapshots are taken."""

    schedule: str
    time_zone: str = "Etc/UTC"
    suspend: bool = False
    retention: Retention | None = None


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What a new index begins with; exactly one is set."""

    name: str | None = None
    """An IndexSnapshot."""
    uri: str | None = None
    """An LHV1 file."""


@dataclass(frozen=True, slots=True)
class VectorIndexSpec:
    """What a VectorIndex asks for."""

    dimension: int
    distance: Distance = Distance.COSINE
    hnsw: Hnsw = Hnsw()
    shards: int = 1
    replicas: int = 1
    source: Source | None = None
    drain: Drain | None = None
    snapshots: SnapshotSchedule | None = None
    bootstrap: Bootstrap | None = None
    suspend: bool = False
    deletion_policy: DeletionPolicy = DeletionPolicy.RETAIN
    storage: Mapping[str, Any] | None = None
    """As written; for whoever opens the store."""
    pod: Mapping[str, Any] | None = None
    """As written; for whoever makes pods."""

    def params(self, name: str) -> IndexParams:
        """As the engine takes them."""
        return IndexParams(
            name, self.dimension, self.hnsw.m, self.hnsw.ef_search, self.distance, self.hnsw.ef_construction
        )

    @property
    def read_only(self) -> bool:
        """Whether only its dataset may change it."""
        return self.source is not None and self.source.follow is Follow.LATEST


@dataclass(frozen=True, slots=True)
class DatasetSource:
    """Files to read."""

    uri: str
    format: str | None = None
    """`csv`, `tsv`, `json`, `ndjson` or `parquet`; None: by the files' names and first bytes."""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refresh:
    """When sources are looked at again."""

    schedule: str | None = None
    time_zone: str = "Etc/UTC"
    suspend: bool = False


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """What a Dataset asks for."""

    sources: tuple[DatasetSource, ...]
    mode: IngestMode = IngestMode.REPLACE
    transform: str | None = None
    """SQL over the table `source`."""
    schema_policy: str = "AddOnly"
    """`Strict`, `AddOnly` or `Any`."""
    schema_fingerprint: str | None = None
    """The only one allowed; None: any that the policy allows."""
    refresh: Refresh = Refresh()
    keep_versions: int = 5
    rejects_max: int | None = None
    """Rows that may be set aside before a refresh fails; None: any number."""
    deadline_s: int = 3_600
    """Seconds that one refresh may take."""
    deletion_policy: DeletionPolicy = DeletionPolicy.RETAIN
    storage: Mapping[str, Any] | None = None
    job: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class IndexSnapshotSpec:
    """What an IndexSnapshot asks for."""

    index: str
    deadline_s: int = 600
    deletion_policy: DeletionPolicy = DeletionPolicy.RETAIN


Spec = VectorIndexSpec | DatasetSpec | IndexSnapshotSpec


def vector_index(spec: Mapping[str, Any]) -> VectorIndexSpec:
    """A VectorIndex's `spec`, valid and defaulted, as a value."""
    hnsw = spec.get("hnsw", {})
    return VectorIndexSpec(
        dimension=spec["dimension"],
        distance=Distance(spec.get("distance", Distance.COSINE)),
        hnsw=Hnsw(hnsw.get("m", 16), hnsw.get("efConstruction", 200), hnsw.get("efSearch", 64)),
        shards=spec.get("shards", 1),
        replicas=spec.get("replicas", 1),
        source=_source(spec["source"]["dataset"]) if "source" in spec else None,
        drain=_drain(spec["drain"]) if "drain" in spec else None,
        snapshots=_snapshots(spec["snapshots"]) if "snapshots" in spec else None,
        bootstrap=Bootstrap(**spec["bootstrap"]["snapshot"]) if "bootstrap" in spec else None,
        suspend=spec.get("suspend", False),
        deletion_policy=DeletionPolicy(spec.get("deletionPolicy", DeletionPolicy.RETAIN)),
        storage=spec.get("storage"),
        pod=spec.get("pod"),
    )


def _source(dataset: Mapping[str, Any]) -> Source:
    return Source(
        dataset["name"],
        dataset["idColumn"],
        dataset["vectorColumn"],
        tuple(dataset.get("metadataColumns", ())),
        Follow(dataset.get("follow", Follow.ONCE)),
    )


def _drain(drain: Mapping[str, Any]) -> Drain:
    return Drain(
        drain["into"],
        drain.get("maxItems", 500),
        duration.parse(drain.get("maxAge", "5m")),
        OnConflict(drain.get("onConflict", OnConflict.REPLACE)),
    )


def _snapshots(snapshots: Mapping[str, Any]) -> SnapshotSchedule:
    kept = snapshots.get("retention")
    within = kept.get("keepWithin") if kept else None
    return SnapshotSchedule(
        snapshots["schedule"],
        snapshots.get("timeZone", "Etc/UTC"),
        snapshots.get("suspend", False),
        Retention(kept.get("keepLast"), duration.parse(within) if within else None) if kept else None,
    )


def dataset(spec: Mapping[str, Any]) -> DatasetSpec:
    """A Dataset's `spec`, valid and defaulted, as a value."""
    schema, refresh, job = spec.get("schema", {}), spec.get("refresh", {}), spec.get("job", {})
    return DatasetSpec(
        sources=tuple(
            DatasetSource(one["uri"], one.get("format"), one.get("options", {})) for one in spec["sources"]
        ),
        mode=IngestMode(spec.get("mode", IngestMode.REPLACE)),
        transform=spec["transform"]["sql"] if "transform" in spec else None,
        schema_policy=schema.get("policy", "AddOnly"),
        schema_fingerprint=schema.get("fingerprint") or None,
        refresh=Refresh(
            refresh.get("schedule"), refresh.get("timeZone", "Etc/UTC"), refresh.get("suspend", False)
        ),
        keep_versions=spec.get("retention", {}).get("keepVersions", 5),
        rejects_max=spec.get("rejects", {}).get("max"),
        deadline_s=job.get("activeDeadlineSeconds", 3_600),
        deletion_policy=DeletionPolicy(spec.get("deletionPolicy", DeletionPolicy.RETAIN)),
        storage=spec.get("storage"),
        job=spec.get("job"),
    )


def index_snapshot(spec: Mapping[str, Any]) -> IndexSnapshotSpec:
    """An IndexSnapshot's `spec`, valid and defaulted, as a value."""
    return IndexSnapshotSpec(
        spec["indexRef"]["name"],
        spec.get("deadlineSeconds", 600),
        DeletionPolicy(spec.get("deletionPolicy", DeletionPolicy.RETAIN)),
    )


_PARSERS: Mapping[str, Callable[[Mapping[str, Any]], Spec]] = {
    VECTOR_INDEX: vector_index,
    DATASET: dataset,
    INDEX_SNAPSHOT: index_snapshot,
}


def parse(kind: str, spec: Mapping[str, Any]) -> Spec:
    """The spec of any of the `KINDS`."""
    return _PARSERS[kind](spec)
