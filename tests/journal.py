"""What one client sent and was told, and which contents that allows.

A journal holds the writes of one client, in order, over ids that only this client writes.  A write is
committed (it was acknowledged), refused (it never happens), or unknown (it happened wholly or not at all).
`settle` compares what a restarted server holds with every combination of the unknown writes: one of them must
match exactly, byte for byte of every vector.  What this does not know: HTTP and processes.
"""

import enum
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

UNKNOWN_MAX = 8
"""Unknown writes between two settlements; 2⁸ combinations are still checked in no time."""


class Verdict(enum.Enum):
    """What the client knows of a write."""

    COMMITTED = "committed"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Value:
    """One item: the bytes of its float32 vector, and its metadata as canonical JSON text (empty for none)."""

    vector: bytes
    metadata: str


@dataclass(frozen=True)
class Upsert:
    """Writes items; a metadata of None leaves what is stored alone."""

    items: tuple[tuple[str, bytes, str | None], ...]

    def apply(self, contents: dict[str, Value | None]) -> None:
        for item_id, vector, metadata in self.items:
            stored = contents.get(item_id)
            kept = stored.metadata if stored is not None else ""
            contents[item_id] = Value(vector, kept if metadata is None else metadata)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(item_id for item_id, _, _ in self.items)


@dataclass(frozen=True)
class Delete:
    """Removes ids; absent ones are no error."""

    ids: tuple[str, ...]

    def apply(self, contents: dict[str, Value | None]) -> None:
        for item_id in self.ids:
            contents[item_id] = None


Write = Upsert | Delete


@dataclass
class Journal:
    """The writes of one client since its contents were last seen."""

    settled: dict[str, Value] = field(default_factory=dict)
    writes: list[tuple[Write, Verdict]] = field(default_factory=list)

    def record(self, write: Write, verdict: Verdict) -> None:
        if verdict is not Verdict.REFUSED:
            self.writes.append((write, verdict))

    @property
    def unknown(self) -> int:
        return sum(verdict is Verdict.UNKNOWN for _, verdict in self.writes)

    def confirm_last(self) -> None:
        """The newest write, of unknown outcome until now, was acknowledged after all."""
        write, verdict = self.writes[-1]
        assert verdict is Verdict.UNKNOWN
        self.writes[-1] = (write, Verdict.COMMITTED)

    def present(self) -> dict[str, Value]:
        """The contents if every unknown write had happened; for choosing what to write next."""
        return self._contents((True,) * self.unknown)

    def settle(self, observed: Mapping[str, Value]) -> tuple[int, int]:
        """Take `observed` as the contents; returns how many unknown writes had happened, and had not.

        Raises `AssertionError` if no combination of the unknown writes explains it.
        """
        assert self.unknown <= UNKNOWN_MAX
        nearest: list[str] | None = None
        for happened in itertools.product((True, False), repeat=self.unknown):
            differences = list(_differences(self._contents(happened), observed))
            if not differences:
                self.settled = dict(observed)
                self.writes.clear()
                return sum(happened), len(happened) - sum(happened)
            if nearest is None or len(differences) < len(nearest):
                nearest = differences
        assert nearest is not None
        raise AssertionError(
            f"no combination of {self.unknown} unknown writes explains what is stored; nearest: "
            f"{len(nearest)} differences, first {nearest[:5]}"
        )

    def _contents(self, happened: tuple[bool, ...]) -> dict[str, Value]:
        contents: dict[str, Value | None] = dict(self.settled)
        chosen = iter(happened)
        for write, verdict in self.writes:
            if verdict is Verdict.COMMITTED or next(chosen):
                write.apply(contents)
        return {item_id: value for item_id, value in contents.items() if value is not None}


def _differences(expected: Mapping[str, Value], observed: Mapping[str, Value]) -> Iterator[str]:
    for item_id in sorted(expected.keys() | observed.keys()):
        want, got = expected.get(item_id), observed.get(item_id)
        if want == got:
            continue
        if got is None:
            yield f"{item_id} is missing"
        elif want is None:
            yield f"{item_id} should not be there"
        else:
            yield f"{item_id} has other {'metadata' if want.vector == got.vector else 'vector'}"
