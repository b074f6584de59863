"""A plan is what to do next, what to write as status, and when to look again.

Actions are values; each says which `Act` it is, a `subject` that tells two of the same act apart (so that an old
failure does not hold back a changed wish), and whether it is long, that is: to be started and watched, not awaited.
Every action may be repeated: whoever applies it finds it done and does nothing.  What this module does not do: apply.
"""

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from lakehouse.control.kinds import DeletionPolicy, Follow
from lakehouse.control.state import INDEX_LABEL, SCHEDULED_FOR_ANNOTATION, Act
from lakehouse.core.types import IndexParams

SCHEDULED_DEADLINE_S = 600


def digest_of(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of a JSON value, in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do."""

    act: ClassVar[Act]
    long: ClassVar[bool] = False
    """To be run beside the control loop; `Running` tells of it until it ends."""

    @property
    def subject(self) -> str:
        """Which of its act: what it is about, in a few words or digits."""
        return ""

    @property
    def told(self) -> str:
        """What is begun, for people."""
        return f"{self.act}: {self.subject}" if self.subject else self.act.value


# ---- VectorIndex --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateIndex(Action):
    """Begin an empty life."""

    act = Act.CREATE
    params: IndexParams
    shards: int
    owner: str


@dataclass(frozen=True, slots=True)
class BuildIndex(Action):
    """Begin a life with a dataset version's rows as content; verified before it counts."""

    act = Act.BUILD
    long = True
    params: IndexParams
    shards: int
    owner: str
    dataset: str
    version: int
    id_column: str
    vector_column: str
    metadata_columns: tuple[str, ...]
    replaces: bool
    """Swap it for the life there is, without a gap; False: there must be none."""
    build_key: str
    """Of everything but the version: another key means that the same version would give other content."""
    adopts: bool = False
    """What writers gave that life before the build goes with it, as somebody asked for; False: a life that holds any is
    not replaced.  What it acknowledges from the beginning of the build is taken over."""
    once: bool = False
    """Writers may change it afterwards; False: it follows its dataset, and nothing else fills it."""

    @property
    def subject(self) -> str:
        return f"{self.dataset}@v{self.version}/{self.build_key}"

    @property
    def told(self) -> str:
        return f"building it from {self.dataset}@v{self.version}"

    @property
    def origin(self) -> Mapping[str, Any]:
        """To be stored with the life, as it is: decisions read it back."""
        return {
            "dataset": self.dataset,
            "version": self.version,
            "id_column": self.id_column,
            "vector_column": self.vector_column,
            "metadata_columns": list(self.metadata_columns),
            "build": self.build_key,
            **({"follow": Follow.ONCE.value} if self.once else {}),
        }


@dataclass(frozen=True, slots=True)
class RestoreIndex(Action):
    """Begin a life with a snapshot's items as content; there must be none.  Raises `Invalid` where the file's dimension
    or distance is not `params`'s; m, efConstruction and efSearch become those of `params`."""

    act = Act.RESTORE
    long = True
    params: IndexParams
    shards: int
    owner: str
    snapshot: str | None
    """An IndexSnapshot's name, or …"""
    uri: str | None
    """… an LHV1 file's URI."""

    @property
    def subject(self) -> str:
        return self.snapshot or self.uri or ""

    @property
    def told(self) -> str:
        return f"restoring it from {self.subject}"

    @property
    def origin(self) -> Mapping[str, Any]:
        """To be stored with the life; whoever restores may add `digest` and the like."""
        return {"snapshot": self.snapshot} if self.snapshot else {"uri": self.uri}


@dataclass(frozen=True, slots=True)
class RebuildIndex(Action):
    """Swap the life for one with the same items, owner and origin, and other graph parameters."""

    act = Act.REBUILD
    long = True
    params: IndexParams

    @property
    def subject(self) -> str:
        return f"m={self.params.m},efConstruction={self.params.ef_construction}"

    @property
    def told(self) -> str:
        return f"rebuilding it with m {self.params.m} and efConstruction {self.params.ef_construction}"


@dataclass(frozen=True, slots=True)
class SetEfSearch(Action):
    """Searches use this from now on."""

    act = Act.SET_EF_SEARCH
    ef_search: int

    @property
    def subject(self) -> str:
        return str(self.ef_search)


@dataclass(frozen=True, slots=True)
class TakeOver(Action):
    """Write a record that names `owner`, for the life there is."""

    act = Act.TAKE_OVER
    owner: str

    @property
    def subject(self) -> str:
        return self.owner


@dataclass(frozen=True, slots=True)
class Suspend(Action):
    """Stop serving; nothing in the store changes but for a snapshot that makes resuming fast."""

    act = Act.SUSPEND


@dataclass(frozen=True, slots=True)
class Resume(Action):
    """Serve again."""

    act = Act.RESUME


@dataclass(frozen=True, slots=True)
class Merge(Action):
    """Copy every item into another index, then remove here what was copied and has not been written since."""

    act = Act.MERGE
    long = True
    into: str
    replace: bool
    """This index's version of an item wins; False: the target's does."""
    clear: bool = True

    @property
    def subject(self) -> str:
        return self.into

    @property
    def told(self) -> str:
        return f"merging its items into {self.into}"


@dataclass(frozen=True, slots=True)
class CreateSnapshotResource(Action):
    """Create an IndexSnapshot unless it is there."""

    act = Act.CREATE_SNAPSHOT_RESOURCE
    name: str
    index: str
    scheduled_for: datetime
    deletion_policy: DeletionPolicy
    """The index's: who keeps that keeps its snapshots, and needs nobody's help to delete them."""
    deadline_s: int = SCHEDULED_DEADLINE_S

    @property
    def subject(self) -> str:
        return self.name

    @property
    def told(self) -> str:
        return f"snapshot {self.name} is due"

    def document(self) -> dict[str, Any]:
        """The resource to create: metadata (name, labels, annotations) and spec."""
        return {
            "apiVersion": "lakehouse.agentview.dev/v1alpha1",
            "kind": "IndexSnapshot",
            "metadata": {
                "name": self.name,
                "labels": {INDEX_LABEL: self.index},
                "annotations": {SCHEDULED_FOR_ANNOTATION: self.scheduled_for.strftime("%Y-%m-%dT%H:%M:%SZ")},
            },
            "spec": {
                "indexRef": {"name": self.index},
                "deadlineSeconds": self.deadline_s,
                "deletionPolicy": self.deletion_policy.value,
            },
        }


@dataclass(frozen=True, slots=True)
class RetireSnapshot(Action):
    """Remove a scheduled snapshot's files, whatever its policy, and then ask for its IndexSnapshot to go.

    In this order, so that whoever is cut off in between leaves something that is retired again.
    """

    act = Act.RETIRE_SNAPSHOT
    index: str
    name: str

    @property
    def subject(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class DropIndex(Action):
    """End the life and remove its objects, also when its log is damaged."""

    act = Act.DROP_INDEX


# ---- Dataset ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ingest(Action):
    """Bring the dataset in line with its sources; everything it needs is in the resource's spec."""

    act = Act.INGEST
    long = True
    key: str
    """Of the spec and the refresh annotation: with another key the same files may give other rows."""

    @property
    def subject(self) -> str:
        return self.key

    @property
    def told(self) -> str:
        return "reading the sources"


@dataclass(frozen=True, slots=True)
class RetireVersions(Action):
    """Remove manifests but the newest `keep` and the pinned, then the objects that no manifest names any more."""

    act = Act.RETIRE_VERSIONS
    keep: int
    pinned: frozenset[int]


@dataclass(frozen=True, slots=True)
class DropDataset(Action):
    """Remove every version and every object of the dataset."""

    act = Act.DROP_DATASET


# ---- IndexSnapshot ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TakeSnapshot(Action):
    """Make a named snapshot of an index; one that is whole already is left alone."""

    act = Act.TAKE_SNAPSHOT
    long = True
    index: str
    name: str
    deadline_s: float
    """Seconds it may take from now."""

    @property
    def subject(self) -> str:
        return self.name

    @property
    def told(self) -> str:
        return f"taking a snapshot of {self.index}"


@dataclass(frozen=True, slots=True)
class DeleteSnapshotFiles(Action):
    """Remove a named snapshot's files and record; gone already is well."""

    act = Act.DELETE_SNAPSHOT_FILES
    index: str
    name: str

    @property
    def subject(self) -> str:
        return self.name


# ---- any kind -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StopWork(Action):
    """Cancel the long action that runs for this resource and wait for its end."""

    act = Act.STOP_WORK
    failed: str = ""
    """Why it counts as failed, to be recorded as its `Failure` with the reason `DeadlineExceeded`; "": it does not."""


@dataclass(frozen=True, slots=True)
class RemoveResource(Action):
    """Deletion is finished: forget the resource."""

    act = Act.REMOVE_RESOURCE


class EventType(enum.StrEnum):
    """As Kubernetes has it."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth telling once."""

    type: EventType
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What one look at a resource came to."""

    status: Mapping[str, Any]
    """The whole new status, JSON."""
    actions: tuple[Action, ...] = ()
    """In order; the first that fails ends the round."""
    events: tuple[Event, ...] = ()
    requeue_after_s: float | None = None
    """Look again after so many seconds even if nothing happens; None: only when something does."""
    status_changed: bool = True
    """Whether `status` differs from what the resource has; False: write nothing."""
