"""The one message that carries hostile text: a small JSON header of ours, then the client's parameters untouched.

What this module does not do: look at the text; the parent never does, and the worker only once it is confined.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lakehouse.sql.formats import Format

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Ask:
    """One query as it reaches a worker."""

    sql: str
    parameters: bytes
    """JSON text, or empty."""
    format: Format
    row_limit: int
    byte_limit: int
    timeout_s: float
    explain: bool

    def to_bytes(self) -> bytes:
        header = {
            "sql": self.sql,
            "format": self.format.value,
            "row_limit": self.row_limit,
            "byte_limit": self.byte_limit,
            "timeout_s": self.timeout_s,
            "explain": self.explain,
        }
        return with_header(header, self.parameters)

    @classmethod
    def parse(cls, payload: bytes) -> "Ask":
        """Read what `to_bytes` wrote."""
        header, parameters = split_header(payload)
        known = json.loads(header)
        return cls(**(known | {"format": Format(known["format"])}), parameters=parameters)


def with_header(header: Mapping[str, Any], body: bytes) -> bytes:
    """Length, JSON, then bytes."""
    told = json.dumps(header).encode()
    return _LENGTH.pack(len(told)) + told + body


def split_header(payload: bytes) -> tuple[bytes, bytes]:
    """The JSON text and the bytes of `with_header`.  Raises `ValueError`."""
    if len(payload) < _LENGTH.size:
        raise ValueError("a frame is shorter than its header")
    start = _LENGTH.size + _LENGTH.unpack_from(payload)[0]
    return payload[_LENGTH.size : start], payload[start:]
