"""The state of one shard, a pure function of its log: items, idempotency window, position, epoch, chain digest.

`judge` says whether an entry continues this chain; `apply` advances by it.  A replica never reads a store, a clock or
chance: equal logs give equal replicas, whoever holds them.  What it does not do: I/O, waiting, or deciding who writes.
"""

import enum
from dataclasses import dataclass
from uuid import UUID

from lakehouse.core.entry import (
    ALL_CARRIED,
    FIRST_ENTRY_VERSION,
    NO_DIGEST,
    Cursor,
    EncodedRequest,
    Entry,
    Kind,
    Operation,
    Request,
    cursor_of,
)
from lakehouse.core.errors import Corrupt
from lakehouse.core.lhv1 import Covered
from lakehouse.core.types import IndexParams
from lakehouse.core.window import IdempotencyWindow, RequestResult
from lakehouse.index.shard_index import ShardIndex


class Verdict(enum.Enum):
    """How an entry relates to a replica's chain."""

    NEXT = enum.auto()
    """It continues the chain."""
    OFF_CHAIN = enum.auto()
    """Its slot is the next one, but it chains to something else."""
    GAP = enum.auto()
    """Its slot is beyond the next one."""
    OLD = enum.auto()
    """Its slot was passed already."""


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """What a replica remembers of one slot."""

    kind: Kind | None
    """None for the position a snapshot stands at."""
    digest: bytes
    """The chain's digest after it."""
    size: int
    """Bytes."""


class Replica:
    """One shard's state at one position of its log."""

    def __init__(
        self,
        params: IndexParams,
        incarnation: bytes,
        shard: int,
        index: ShardIndex,
        window: IdempotencyWindow | None = None,
    ) -> None:
        self.params = params
        self.incarnation = incarnation
        self.shard = shard
        self.index = index
        self.window = IdempotencyWindow() if window is None else window
        self.position = 0
        self.digest = NO_DIGEST
        self.epoch = 0
        self.operations = 0
        self.dropped = False
        self.carried: Cursor | None = None
        """How far a life that continues another has taken it over; nobody snapshots one that has not, wholly."""
        self.entry_version = FIRST_ENTRY_VERSION
        self.base = 0
        """The position this replica started from: its snapshot's."""
        self.slots: dict[int, SlotFacts] = {0: SlotFacts(None, NO_DIGEST, 0)}
        """What is known of each position since `base`, or since the newest snapshot this process heard of."""
        self.log_bytes = 0
        """Bytes of entries since the newest snapshot this process heard of."""
        self._covered = 0
        """The position of that snapshot."""

    def judge(self, entry: Entry) -> Verdict:
        """Whether `entry` continues this chain.  Raises `Corrupt` for an entry of another index."""
        header = entry.header
        if header.incarnation != self.incarnation:
            raise Corrupt(f"log entry belongs to another incarnation. seq=`{header.seq}`")
        if header.seq != self.position + 1:
            return Verdict.OLD if header.seq <= self.position else Verdict.GAP
        if header.previous != self.digest:
            return Verdict.OFF_CHAIN
        rising = header.epoch > self.epoch if header.kind is Kind.FENCE else header.epoch == self.epoch
        return Verdict.NEXT if rising and header.first_operation == self.operations else Verdict.OFF_CHAIN

    def apply(self, entry: Entry, size_bytes: int = 0) -> list[RequestResult]:
        """Advance by an entry that `judge` found NEXT; the result of each of its requests."""
        header = entry.header
        operations = self.operations
        results = []
        for request in entry.requests:
            results.append(self._apply_request(request, operations + 1))
            operations += len(request.request.ids)
        self.operations = operations
        self.epoch = header.epoch
        self.digest = entry.digest
        self.dropped = self.dropped or header.kind is Kind.DROP
        self._advance(header.seq, header.kind, size_bytes)
        return results

    def skip_void_fence(self, entry: Entry) -> None:
        """Pass an off-chain FENCE: it fences nothing on this chain, but its epoch is used up."""
        self.epoch = max(self.epoch, entry.header.epoch)
        self._advance(entry.header.seq, Kind.FENCE, 0)

    def _advance(self, seq: int, kind: Kind, size_bytes: int) -> None:
        self.position = seq
        self.slots[seq] = SlotFacts(kind, self.digest, size_bytes)
        self.log_bytes += size_bytes

    def _apply_request(self, encoded: EncodedRequest, first_version: int) -> RequestResult:
        request = encoded.request
        self.carried = cursor_of(request.key) or self.carried
        known = self.window.find(request.key, encoded.digest)
        if known is not None:
            return known
        result = self._operate(request, first_version)
        self.window.record(request.key, encoded.digest, result)
        return result

    def _operate(self, request: Request, first_version: int) -> RequestResult:
        index = self.index
        if not request.ids:  # the first part of a sharded request, none of whose ids live here
            return RequestResult(length=len(index))
        match request.operation:
            case Operation.UPSERT:
                index.upsert(request.batch(), first_version)
                return RequestResult(added=len(request.ids), length=len(index))
            case Operation.ADD_IF_ABSENT:
                applied = index.add_if_absent(request.batch(), first_version)
                return RequestResult(added=applied.added, skipped=applied.skipped, length=len(index))
            case Operation.DELETE:
                deleted = index.delete(request.ids)
            case Operation.DELETE_IF_VERSION:
                deleted = index.delete_if_version(request.ids, request.versions)
        return RequestResult(deleted=deleted, length=len(index))

    def covered(self) -> Covered:
        """What a snapshot taken now would cover."""
        return Covered(
            incarnation=UUID(bytes=self.incarnation),
            shard=self.shard,
            sequence=self.position,
            epoch=self.epoch,
            digest=self.digest,
            operations=self.operations,
            entry_version=self.entry_version,
        )

    def start_from(self, covered: Covered) -> None:
        """Stand where a snapshot stands."""
        self.position = self.base = self._covered = covered.sequence
        self.digest = covered.digest
        self.epoch = covered.epoch
        self.operations = covered.operations
        self.entry_version = covered.entry_version
        self.carried = ALL_CARRIED if covered.sequence else None
        self.slots = {covered.sequence: SlotFacts(None, covered.digest, 0)}

    def digest_at(self, seq: int) -> bytes | None:
        """The chain's digest at a position, None where it is not known any more."""
        facts = self.slots.get(seq)
        return None if facts is None else facts.digest

    @property
    def snapshot_position(self) -> int:
        """The position of the newest snapshot this process heard of; 0 for none."""
        return self._covered

    def snapshot_heard_of(self, covered: int) -> None:
        """A snapshot covers the log up to `covered`: what lies below the one before it is never asked for again."""
        self.slots = {seq: facts for seq, facts in self.slots.items() if seq >= self._covered}
        self._covered = covered
        self.log_bytes = sum(facts.size for seq, facts in self.slots.items() if seq > covered)
