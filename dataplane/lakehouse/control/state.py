"""What was seen of the world, as values: the only thing that decisions are made from.

Whoever runs the control loop (one process, or the operator) fills these in afresh before every decision and keeps
nothing else.  A field that could not be observed is None, which is not the same as "is not there".  What this module
does not do: look, or decide.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from lakehouse.core.types import IndexParams

S = TypeVar("S")

GROUP = "lakehouse.agentview.dev"
ADOPT_ANNOTATION = f"{GROUP}/adopt"
"""`"true"` on a VectorIndex takes over an index that another owner began, or that nobody declared; on an IndexSnapshot,
the snapshot of its name that was taken before it was asked for."""
REFRESH_ANNOTATION = f"{GROUP}/refresh"
"""Any new value on a Dataset asks for one refresh now."""
PAUSE_ANNOTATION = f"{GROUP}/pause-reconciliation"
"""`"true"` on any resource: it is looked at and told of, and nothing is done for it; being deleted goes on."""
SCHEDULED_FOR_ANNOTATION = f"{GROUP}/scheduled-for"
"""On a scheduled IndexSnapshot: the nominal time it was made for, RFC 3339, UTC."""
INDEX_LABEL = f"{GROUP}/index"
"""On a scheduled IndexSnapshot: the index it is of."""


@dataclass(frozen=True, slots=True)
class Meta:
    """Who a resource is."""

    name: str
    namespace: str | None
    """None outside Kubernetes."""
    uid: str
    generation: int
    """Rises by one with every change of the spec."""
    created_at: datetime
    """UTC, with a time zone; so is every datetime here."""
    deletion_requested_at: datetime | None = None
    """When somebody asked for the resource to go; None while it is wanted."""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def deletion_requested(self) -> bool:
        return self.deletion_requested_at is not None

    @property
    def paused(self) -> bool:
        """Whether somebody asked that nothing be done for now."""
        return self.annotations.get(PAUSE_ANNOTATION) == "true"


@dataclass(frozen=True, slots=True)
class Resource(Generic[S]):
    """One declared thing: `spec` is what is wanted (parsed by `kinds`), `status` what was last written of it."""

    kind: str
    meta: Meta
    spec: S
    status: Mapping[str, Any] = field(default_factory=dict)
    """JSON; empty when nothing has been written yet."""


class Act(enum.StrEnum):
    """What can be done; names an action where its run or its failure is reported."""

    CREATE = "Create"
    BUILD = "Build"
    RESTORE = "Restore"
    REBUILD = "Rebuild"
    SET_EF_SEARCH = "SetEfSearch"
    TAKE_OVER = "TakeOver"
    SUSPEND = "Suspend"
    RESUME = "Resume"
    MERGE = "Merge"
    CREATE_SNAPSHOT_RESOURCE = "CreateSnapshotResource"
    RETIRE_SNAPSHOT = "RetireSnapshot"
    DROP_INDEX = "DropIndex"
    INGEST = "Ingest"
    RETIRE_VERSIONS = "RetireVersions"
    DROP_DATASET = "DropDataset"
    TAKE_SNAPSHOT = "TakeSnapshot"
    DELETE_SNAPSHOT_FILES = "DeleteSnapshotFiles"
    STOP_WORK = "StopWork"
    REMOVE_RESOURCE = "RemoveResource"


@dataclass(frozen=True, slots=True)
class Running:
    """A long action that has been started and has not ended."""

    act: Act
    subject: str
    """The action's `subject`: which of its kind it is."""
    started_at: datetime
    progress: str = ""
    """For people: `120000 of 500000 items`."""
    started: bool = True
    """Whether anything of it has run: it may wait for a node, an image, a quota."""
    as_now: bool = True
    """Whether it would be begun in the same way now: with these resources, in this place, of this image."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The last end of an action that failed and has not succeeded since, with the same subject."""

    act: Act
    subject: str
    """The action's `subject`; another subject's failure holds nothing back."""
    reason: str
    """The error's class: `Invalid`, `Conflict`, `Unavailable`, `Corrupt`, `NotFound`, …"""
    message: str
    at: datetime
    attempts: int = 1
    """How often in a row, ≥ 1; the wait before the next attempt doubles with it."""
    as_now: bool = True
    """As for `Running`; what failed in another way holds nothing back."""


SECRET_NOT_READABLE = "SecretNotReadable"
"""The reason of a store whose credentials the API server refuses to show."""


@dataclass(frozen=True, slots=True)
class StoreState:
    """Whether the bucket or directory answers."""

    reachable: bool | None
    """None: not known yet."""
    reason: str = ""
    """One of `ProbeSucceeded`, `AccessDenied`, `BucketNotFound`, `SecretNotFound`, `Timeout`, `Pending`, …"""
    detail: str = ""

    @property
    def gone(self) -> bool:
        """Whether what is needed to reach it no longer exists, so that cleaning up there can only be skipped."""
        return self.reachable is False and self.reason in (
            "BucketNotFound",
            "SecretNotFound",
            "StorageUnknown",
        )


REACHABLE = StoreState(True, "ProbeSucceeded")


# ---- VectorIndex --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Life:
    """The index that lives in the store under a resource's name, as its newest record says."""

    params: IndexParams
    shards: int
    owner: str | None
    """Who declared it: `<cluster>/<namespace>/<name>`; None when it was created over HTTP, or is an old file."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What its content was made from: the action's `origin`, as stored; empty when it began empty."""


@dataclass(frozen=True, slots=True)
class ObservedSource:
    """The newest version of the dataset that an index is built from."""

    version: int
    columns: Mapping[str, str]
    """Column name to type, as DuckDB writes it: `BIGINT`, `VARCHAR`, `FLOAT[384]`, `DOUBLE[]`.  Empty: not known."""
    vector_lengths: tuple[int, int] | None = None
    """Shortest and longest list in the vector column; None when nobody counted."""
    vector_nulls: int | None = None


@dataclass(frozen=True, slots=True)
class ObservedTarget:
    """The index that another one drains into."""

    exists: bool
    dimension: int = 0
    distance: str = ""
    serving: bool = False
    read_only: bool = False
    """It follows a dataset, so nothing else may write to it."""
    going: bool = False
    """It is being deleted, with what it holds."""
    chain: tuple[str, ...] = ()
    """What the target drains into, what that drains into, and so on, ending at the first repetition."""


class SnapshotState(enum.StrEnum):
    """Where an IndexSnapshot stands; `index_snapshot.state_of(status)` tells."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    """For good: its deadline passed."""


@dataclass(frozen=True, slots=True)
class ObservedSnapshot:
    """An IndexSnapshot resource of an index."""

    name: str
    state: SnapshotState
    created_at: datetime
    completed_at: datetime | None = None
    scheduled_for: datetime | None = None
    """The nominal time of a scheduled one (`SCHEDULED_FOR_ANNOTATION`); None for one that a person made."""
    uri: str = ""
    position: str = ""
    digest: str = ""
    items: int | None = None
    size: int | None = None
    """Bytes."""
    message: str = ""
    """Why it failed."""
    in_use: bool = False
    """An index is being restored from it, or is still to be, so it may not go."""
    name_taken: bool = False
    """Another snapshot has its name, from before: nothing was taken for it, and a person may adopt that one."""
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class ObservedBootstrap:
    """What `bootstrap.snapshot` points to; for `uri`, `exists` is None: who restores will see."""

    exists: bool | None
    complete: bool = False
    """The named IndexSnapshot has succeeded."""
    uri: str = ""
    detail: str = ""
    """Why it is not complete."""
    failed: bool = False
    """It never will be."""


@dataclass(frozen=True, slots=True)
class LastDrain:
    """The last merge that ended well."""

    at: datetime
    merged: int


@dataclass(frozen=True, slots=True)
class ObservedIndex:
    """Everything seen of one VectorIndex."""

    identity: str
    """How this resource signs what it owns: `<cluster>/<namespace>/<name>`."""
    store: StoreState
    """As whoever decides sees it."""
    life: Life | None = None
    """None: nothing lives under the name (or the store is not reachable, which `store` tells)."""
    unrecorded: str = ""
    """Where it was looked for, when the store has no record of the name at all, neither of a life nor of an end."""
    damaged: str = ""
    """Why the life cannot be opened, when it cannot."""
    ef_search: int | None = None
    """What searches use now; None when nobody serves."""
    items: int | None = None
    position: str | None = None
    serving: bool = False
    """Every shard is answered for, now."""
    serving_detail: str = ""
    """Why not, when not."""
    replicas: int = 0
    """Pods per shard (or the one process) there are; where the shards differ, of the one with the fewest."""
    ready_replicas: int = 0
    asked_replicas: int = 0
    """Pods per shard there are to be; 0: as many as there are."""
    selector: str = ""
    endpoint: str = ""
    suspended: bool = False
    """Nobody serves it, because that was asked for."""
    deployed: bool = False
    """What serves it is there, awake or asleep, and this resource's own: known without the store.  One process does not
    tell, as its resources are in the store, too."""
    source: ObservedSource | None = None
    """None: the dataset does not exist (or the spec names none)."""
    source_detail: str = ""
    """Why there can be none, where that is known: its name is none, or nobody says where it lies."""
    target: ObservedTarget | None = None
    """Of `drain.into`; None when the spec has no drain."""
    last_drain: LastDrain | None = None
    """None: none since this observer started; the status remembers."""
    pending_since: datetime | None = None
    """Since when the index holds items that have not been drained; None when it is empty."""
    bootstrap: ObservedBootstrap | None = None
    snapshots: tuple[ObservedSnapshot, ...] = ()
    name_taken: str = ""
    """What stands where one of its parts (a Service, a Deployment) would be, and is not ours; empty for nothing."""
    rolling: str = ""
    """Why its pods are not all as they are to be, in words; empty when they are."""
    room: bool = True
    """Whether a long action may begin now: false while as many as may run at once do."""
    look_again_s: float | None = None
    """Seconds after which what was seen may have changed without a message; None: there is always a message."""
    work: Running | None = None
    failures: tuple[Failure, ...] = ()
    """At most one per `Act`."""
    cut_off: str = ""
    """Who of those that serve the index does not reach the store, and why; empty when they all do.
    That is told; what is done goes by `store`."""


# ---- Dataset ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """A published manifest."""

    version: int
    manifest: str
    """Its URI or key."""
    schema_fingerprint: str
    rows: int | None
    bytes: int | None
    files: int
    published_at: datetime | None


class RefreshResult(enum.StrEnum):
    """How a refresh that did not fail ended."""

    PUBLISHED = "Published"
    UNCHANGED = "Unchanged"


@dataclass(frozen=True, slots=True)
class LastRefresh:
    """The last refresh that ended well."""

    key: str
    """The `subject` of its `Ingest`."""
    started_at: datetime
    completed_at: datetime
    result: RefreshResult
    version: int | None = None
    """The version that holds since."""
    rejected: int = 0
    """Rows that were set aside."""


@dataclass(frozen=True, slots=True)
class ObservedDataset:
    """Everything seen of one Dataset."""

    store: StoreState
    current: DatasetVersion | None = None
    """The newest version; None when none was ever published."""
    damaged: str = ""
    """Why the newest manifest cannot be read, when it cannot."""
    versions: tuple[int, ...] = ()
    """Every version that has a manifest, ascending."""
    pinned: frozenset[int] = frozenset()
    """Versions that an index was built from, or is being built from."""
    left_behind: bool = False
    """Whether a deletion was cut short."""
    last_refresh: LastRefresh | None = None
    """None: none since this observer started; the status remembers."""
    room: bool = True
    """Whether a refresh may begin now: false while as many long actions as may run at once do."""
    look_again_s: float | None = None
    """As for an index."""
    work: Running | None = None
    failures: tuple[Failure, ...] = ()


# ---- IndexSnapshot ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A named snapshot that is whole in the store."""

    uri: str
    digest: str
    position: str
    items: int
    size: int
    """Bytes over all shards."""
    completed_at: datetime | None = None
    """None: its record does not tell, and nobody saw it."""


@dataclass(frozen=True, slots=True)
class ObservedIndexSnapshot:
    """Everything seen of one IndexSnapshot."""

    store: StoreState
    record: SnapshotRecord | None = None
    left_behind: bool = False
    """There is no record that can be read, and something of it is there; looked at when the resource is to go."""
    index_declared: bool = False
    index_exists: bool = False
    """The store has it."""
    index_serving: bool = False
    in_use: bool = False
    """An index is being restored from it, or is still to be."""
    work: Running | None = None
    failures: tuple[Failure, ...] = ()
