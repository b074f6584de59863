"""`vector_search` inside a worker: rows become questions to the parent, its answers become Arrow lists.

Equal rows of a batch are one question, and a question whose answer is known is not asked again: answers that came with
the files (`lakehouse.sql.planning`) are known from the start.  What this module does not do: search; the parent does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakehouse.sql import hits
from lakehouse.sql.ask import with_header
from lakehouse.sql.failed import FailedError
from lakehouse.sql.wire import Channel, Kind

SEARCHES_AT_ONCE = 1_024
"""Query vectors in one SEARCH; the vectors API's own bound."""
SEARCHES_MAX = 65_536
"""Vector searches of one query."""
REMEMBERED, REMEMBERED_BYTES = 64, 64 << 10
"""Answers to searches kept within a query, and the largest question they are kept for."""
HIT = pa.struct([("id", pa.string()), ("distance", pa.float64()), ("metadata", pa.string())])

_Rows = npt.NDArray[np.int64]


class Searches:
    """The vector searches of one query."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._found: dict[bytes, pa.ListArray] = {}
        self._count = 0
        self.failure: FailedError | None = None
        """What a search failed with; DuckDB would wrap it beyond recognition."""
        self.only_known = False
        """Whether files are read for known answers only, so that no other answer would be right."""

    def know(self, payload: bytes, answer: bytes) -> pa.ListArray:
        """Keep the answer to a question before it is asked.  Raises `FailedError` for one that is none."""
        found = self._found[payload] = _answered(answer)
        return found

    def __call__(
        self, index: pa.Array, vectors: pa.Array, items: pa.Array, k: pa.Array, filters: pa.Array
    ) -> pa.Array:
        """`_vs` over a chunk of rows: one list of hits per row."""
        try:
            return self._hits(*(whole(column) for column in (index, vectors, items, k, filters)))
        except FailedError as error:
            self.failure = error
            raise

    def _hits(
        self, index: pa.Array, vectors: pa.Array, items: pa.Array, k: pa.Array, filters: pa.Array
    ) -> pa.Array:
        by_id = items.is_valid().to_numpy(zero_copy_only=False)
        by_vector = vectors.is_valid().to_numpy(zero_copy_only=False) & ~by_id
        place = np.full(len(index), -1, np.int64)
        """For each row, the number of its answer."""
        answers: list[pa.ListArray] = []
        for (name, count, wanted), rows in _groups(index, k, filters):
            if name is None:
                raise FailedError("invalid", "vector_search needs the name of an index, not NULL")
            asked = {"index": name, "k": count, "filter": wanted}
            for start in range(0, len(rows), SEARCHES_AT_ONCE):
                part = rows[start : start + SEARCHES_AT_ONCE]
                for chosen, source, ask in (
                    (part[by_id[part]], items, self._neighbours),
                    (part[by_vector[part]], vectors, self._nearest),
                ):
                    if len(chosen):
                        among, found = ask(asked, source.take(pa.array(chosen)))
                        place[chosen] = sum(map(len, answers)) + np.array(among, np.int64)
                        answers.append(found)
        return _placed(answers, place)

    def _neighbours(self, asked: dict[str, Any], items: pa.Array) -> tuple[list[int], pa.ListArray]:
        """The answers to the different ids, and for each row which of them it has."""
        number: dict[str, int] = {}
        among = [number.setdefault(item_id, len(number)) for item_id in items.to_pylist()]
        return among, self._asked(question(asked, ids=list(number)), len(number))

    def _nearest(self, asked: dict[str, Any], vectors: pa.Array) -> tuple[list[int], pa.ListArray]:
        """The answers to the different vectors, and for each row which of them it has."""
        matrix, among = _different(matrix_of(vectors))
        return among, self._asked(question(asked, matrix=matrix), len(matrix))

    def _asked(self, payload: bytes, count: int) -> pa.ListArray:
        known = self._found.get(payload)  # DuckDB may evaluate a constant call while it plans, and again
        if known is not None:
            return known
        if self.only_known:
            raise FailedError("internal", "a search is not the one that was foreseen")
        self._count += count
        if self._count > SEARCHES_MAX:
            raise FailedError("invalid", f"a query does at most {SEARCHES_MAX} vector searches")
        self._channel.send(Kind.SEARCH, payload)
        kind, answer = self._channel.receive()
        if kind is not Kind.HITS:
            raise FailedError("internal", f"unexpected frame {kind}")
        found = _answered(answer)
        if len(found) != count:
            raise FailedError("internal", "a search was answered for another number of queries")
        if len(payload) < REMEMBERED_BYTES and len(self._found) < REMEMBERED:
            self._found[payload] = found
        return found


def question(
    asked: dict[str, Any], ids: Sequence[str] | None = None, matrix: npt.NDArray[np.float32] | None = None
) -> bytes:
    """A SEARCH: `asked` has index, k and filter; the queries are items' ids or the rows of a matrix."""
    if matrix is None:
        return with_header({**asked, "ids": ids}, b"")
    return with_header({**asked, "dimension": matrix.shape[1]}, matrix.tobytes())


def _groups(index: pa.Array, k: pa.Array, filters: pa.Array) -> list[tuple[tuple[Any, Any, Any], _Rows]]:
    """The rows of each kind of search; nearly always all are of one."""
    keys = list(zip(index.to_pylist(), k.to_pylist(), filters.to_pylist(), strict=True))
    groups: dict[tuple[Any, Any, Any], list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return [(key, np.array(rows, np.int64)) for key, rows in groups.items()]


def _different(matrix: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], list[int]]:
    """The different rows in order of their first place, and for each row which of them it is."""
    if len(matrix) == 1:
        return matrix, [0]
    number: dict[bytes, int] = {}
    among = [number.setdefault(row.tobytes(), len(number)) for row in matrix]
    if len(number) == len(matrix):
        return matrix, among
    return np.frombuffer(b"".join(number), "<f4").reshape(len(number), matrix.shape[1]), among


def _placed(answers: list[pa.ListArray], place: _Rows) -> pa.ListArray:
    """One answer per row; a row without a query finds nothing."""
    if len(answers) == 1 and np.array_equal(place, np.arange(len(answers[0]))):
        return answers[0]
    nothing = hit_lists(np.zeros(1, np.int32), pa.array([], HIT))
    every = pa.concat_arrays([*answers, nothing])
    return every.take(pa.array(np.where(place < 0, len(every) - 1, place)))


# --- Arrow


def whole(column: Any) -> pa.Array:
    """A column in one piece."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def matrix_of(vectors: pa.Array) -> npt.NDArray[np.float32]:
    """One row per vector.  Raises `FailedError` where their lengths differ or a number is NULL."""
    lengths = np.diff(vectors.offsets.to_numpy())
    if (lengths != lengths[0]).any():
        raise FailedError("invalid", "vector_search was given vectors of different dimensions")
    flat = vectors.flatten()
    if flat.null_count:
        raise FailedError("invalid", "vector_search was given a vector that holds NULL")
    numbers: npt.NDArray[np.float32] = flat.to_numpy(zero_copy_only=False).astype("<f4", copy=False)
    return numbers.reshape(len(vectors), int(lengths[0]))


def _answered(payload: bytes) -> pa.ListArray:
    """The hits of each query.  Raises `FailedError` with what the parent says instead."""
    found = hits.received(payload)
    if isinstance(found, hits.Refused):
        raise FailedError(found.kind, found.message)
    absent = found.metadata_lengths < 0
    distances = pa.array(found.distances, mask=~np.isfinite(found.distances))
    columns = [
        _strings(found.id_lengths, found.ids, None),
        distances,
        _strings(np.maximum(found.metadata_lengths, 0), found.metadata, ~absent if absent.any() else None),
    ]
    return hit_lists(found.counts, pa.StructArray.from_arrays(columns, fields=list(HIT)))


def hit_lists(counts: npt.NDArray[np.int32], flat: pa.Array) -> pa.ListArray:
    """As many lists as counts."""
    return pa.ListArray.from_arrays(pa.array(_offsets(counts)), flat)


def _strings(
    lengths: npt.NDArray[np.int32], data: memoryview, valid: npt.NDArray[np.bool_] | None
) -> pa.StringArray:
    bits = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    buffers = [bits, pa.py_buffer(_offsets(lengths).tobytes()), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.string(), len(lengths), buffers)


def _offsets(lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
