"""The idempotency window: the last 65,536 requests and what came of them, part of the replicated state.

A repeated key gets the first answer; the same key over another body is a conflict.  The window is filled by applying
entries and by nothing else, so every replica and every snapshot agrees on it.
"""

import hashlib
import struct
from collections import OrderedDict
from dataclasses import dataclass

from lakehouse.core.errors import Corrupt

WINDOW_KEYS_MAX = 65_536
_RECORD = struct.Struct("<H16sIIIQ")


@dataclass(frozen=True, slots=True)
class RequestResult:
    """What applying a request did; `length` is the shard's number of items right after."""

    added: int = 0
    skipped: int = 0
    deleted: int = 0
    length: int = 0
    replayed: bool = False
    conflict: bool = False
    """The key was used before with another body; nothing was done."""


class IdempotencyWindow:
    """Keys in the order they were first applied, each with its body's digest and its result."""

    def __init__(self, capacity: int = WINDOW_KEYS_MAX) -> None:
        self._capacity = capacity
        self._results: OrderedDict[bytes, tuple[bytes, tuple[int, int, int, int]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._results)

    def find(self, key: bytes, digest: bytes) -> RequestResult | None:
        """The first result under `key`, or a conflict if `digest` differs; None for a new key."""
        known = self._results.get(key)
        if known is None:
            return None
        if known[0] != digest:
            return RequestResult(conflict=True)
        return RequestResult(*known[1], replayed=True)

    def record(self, key: bytes, digest: bytes, result: RequestResult) -> None:
        """Remember a result and forget the oldest over the capacity."""
        self._results[key] = (digest, (result.added, result.skipped, result.deleted, result.length))
        if len(self._results) > self._capacity:
            self._results.popitem(last=False)

    def to_bytes(self) -> bytes:
        """The window as a snapshot section: records of key length, digest, three counts, length, key."""
        return b"".join(
            _RECORD.pack(len(key), digest, *counts) + key for key, (digest, counts) in self._results.items()
        )

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, capacity: int = WINDOW_KEYS_MAX) -> "IdempotencyWindow":
        """Read what `to_bytes` wrote.  Raises `Corrupt`."""
        window = cls(capacity)
        view = memoryview(data)
        offset = 0
        try:
            while offset < len(view):
                size, digest, *counts = _RECORD.unpack_from(view, offset)
                offset += _RECORD.size
                key = bytes(view[offset : offset + size])
                if len(key) != size:
                    raise Corrupt("idempotency window is cut short")
                window._results[key] = (digest, (counts[0], counts[1], counts[2], counts[3]))
                offset += size
        except struct.error as error:
            raise Corrupt("idempotency window is cut short") from error
        return window

    def fingerprint(self) -> str:
        """Equal for equal windows; for tests and `verify`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()
