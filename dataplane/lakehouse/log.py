"""The log of one shard in its store: which slots exist, what lies in one, and how to settle what may have been written.

Slots are created once and never changed.  After a lost answer only the slot itself can tell what happened, so
`settle` asks it.  What this module does not do: decide who writes, or apply entries.
"""

import enum
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from lakehouse.core import entry, names
from lakehouse.core.entry import EncodedEntry, Entry, Kind
from lakehouse.core.errors import Conflict, Corrupt, NotFound, Outcome, StorageFull, Unavailable
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

ENDS_MAX = 32
UNCHAINED = b"\xff" * 32
"""The digest of no entry."""


class Slot(enum.Enum):
    """What became of a slot we tried to create."""

    OURS = enum.auto()
    OTHERS = enum.auto()
    """Another entry is there, and our PUT certainly did not land."""
    OTHERS_AFTER_DOUBT = enum.auto()
    """Another entry is there, but one of our PUTs went unanswered before."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between attempts: doubled from `first_s` up to `most_s`, with up to half of it as jitter."""

    first_s: float = 0.02
    most_s: float = 1.0

    def delay_s(self, attempt: int, runtime: Runtime) -> float:
        base = min(self.most_s, self.first_s * float(1 << min(attempt, 16)))
        return base * (1 + runtime.random().random() / 2)


class ShardLog:
    """One shard's log and the keys of its objects."""

    def __init__(
        self, store: ObjectStore, runtime: Runtime, name: str, incarnation: UUID, shard: int
    ) -> None:
        self.store = store
        self.runtime = runtime
        self.name = name
        self.incarnation = incarnation
        self.shard = shard
        self._prefix = names.log_prefix(name, incarnation, shard)
        self.failures = 0
        """Store calls failed in a row; the breaker reads it."""

    def key(self, seq: int) -> str:
        return f"{self._prefix}{seq:020}"

    async def after(self, seq: int) -> list[int]:
        """The slots after `seq` that hold something, in order."""
        found = await self.store.list(self._prefix, start_after=self.key(seq))
        return [names.sequence_of(info.key) for info in found]

    async def read(self, seq: int) -> tuple[Entry, int]:
        """The entry in a slot and its size in bytes.  Raises `NotFound`, `Corrupt`."""
        data = await self.store.get(self.key(seq))
        found = entry.decode(data)
        if found.header.seq != seq:
            raise Corrupt(f"log entry lies in another's slot. slot=`{seq}` seq=`{found.header.seq}`")
        return found, len(data)

    async def read_header(self, seq: int) -> entry.Header:
        """The header in a slot.  Raises `NotFound`, `Corrupt`."""
        return entry.decode_header(await self.store.get(self.key(seq), 0, entry.HEADER_BYTES))

    async def settle(self, seq: int, encoded: EncodedEntry, backoff: Backoff) -> Slot:
        """Create a slot and find out, however long it takes, whose entry it holds.

        The same bytes are put again until the slot answers.  Raises `Unavailable(NOT_COMMITTED)` only when no
        attempt can have landed, so that the caller may give up.
        """
        doubt = False
        attempt = 0
        while True:
            try:
                await self.store.create(self.key(seq), encoded.data)
            except Conflict:
                pass
            except StorageFull as error:
                if not doubt and await self._occupant(seq, backoff) is None:
                    raise StorageFull(error.message, outcome=Outcome.NOT_COMMITTED) from error
                self.failures += 1
            except Unavailable as error:
                certain = error.outcome is Outcome.NOT_COMMITTED
                if certain and not doubt:
                    raise
                self.failures += 1
                doubt = doubt or not certain
                logger.warning("log slot is in doubt: asking it. key=%s error=%s", self.key(seq), error)
            else:
                self.failures = 0
                return Slot.OURS
            occupant = await self._occupant(seq, backoff)
            if occupant is not None:
                self.failures = 0
                if occupant == encoded.data[: entry.HEADER_BYTES]:
                    return Slot.OURS
                return Slot.OTHERS_AFTER_DOUBT if doubt else Slot.OTHERS
            attempt += 1
            await self.runtime.sleep(backoff.delay_s(attempt, self.runtime))

    async def end(self, backoff: Backoff) -> None:
        """Make a DROP the newest entry without replaying: for a log that is damaged, or that nobody has open.

        It is off the chain, so it never continues one: whoever meets it looks for a newer snapshot first, then at the
        newest entry, and finds it.  Were its slot one that was collected, a newer entry is there: this begins again.
        """
        for attempt in range(ENDS_MAX):
            slots = await self.after(0)
            last = slots[-1] if slots else 0
            if slots and await self._is_drop(last):
                return
            await self.settle(last + 1, self._unchained_drop(last + 1), backoff)
            if attempt:
                await self.runtime.sleep(backoff.delay_s(attempt, self.runtime))
        raise Unavailable(f"the log cannot be ended: others keep writing to it. key=`{self._prefix}`")

    def _unchained_drop(self, seq: int) -> EncodedEntry:
        return entry.encode(
            kind=Kind.DROP,
            seq=seq,
            epoch=0,
            incarnation=self.incarnation.bytes,
            writer=self.runtime.uuid().bytes,
            batch=self.runtime.uuid().bytes,
            previous=UNCHAINED,
            first_operation=0,
            wall_ms=int(self.runtime.now().timestamp() * 1000),
        )

    async def _is_drop(self, seq: int) -> bool:
        try:
            return (await self.read_header(seq)).kind is Kind.DROP
        except NotFound as error:
            raise Unavailable(f"the store lists a slot that it does not give. slot=`{seq}`") from error
        except Corrupt:
            return False

    async def ends_in_drop(self) -> bool:
        """Whether the newest entry ends this life: then what is missing was removed with it."""
        slots = await self.after(0)
        return bool(slots) and await self._is_drop(slots[-1])

    async def _occupant(self, seq: int, backoff: Backoff) -> bytes | None:
        """The header bytes in a slot, None when it is empty; asks until the store answers."""
        attempt = 0
        while True:
            try:
                return await self.store.get(self.key(seq), 0, entry.HEADER_BYTES)
            except NotFound:
                return None
            except Unavailable:
                self.failures += 1
                attempt += 1
                await self.runtime.sleep(backoff.delay_s(attempt, self.runtime))

    async def delete(self, seqs: Sequence[int]) -> None:
        for seq in seqs:
            await self.store.delete(self.key(seq))
