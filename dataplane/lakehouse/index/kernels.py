"""The door to the native search kernels: the only module that speaks ctypes.

It checks the arrays it hands over and knows nothing of segments, ids or filters.  Calls release the interpreter
lock, and keep no pointer when they return.
"""

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lakehouse.core.types import Distance, Vectors

Bits = npt.NDArray[np.uint64]
"""A bitmap over rows: bit r % 64 of word r // 64 is row r."""
Rows32 = npt.NDArray[np.uint32]

ABI = 2
_LIBRARY = Path(__file__).with_name("_kernels.so")
_METRICS = {Distance.COSINE: 0, Distance.EUCLIDEAN: 1, Distance.DOT: 2}


class _Source(ctypes.Structure):
    """Mirrors `LhSource` in kernels.cpp."""

    _fields_ = (
        ("vectors", ctypes.c_void_p),
        ("inverse_norms", ctypes.c_void_p),
        ("dead", ctypes.c_void_p),
        ("allowed", ctypes.c_void_p),
        ("links", ctypes.c_void_p),
        ("upper_offsets", ctypes.c_void_p),
        ("upper_links", ctypes.c_void_p),
        ("stragglers", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("code_terms", ctypes.c_void_p),
        ("visits_max", ctypes.c_uint64),
        ("matched", ctypes.c_uint64),
        ("rows", ctypes.c_uint32),
        ("straggler_count", ctypes.c_uint32),
        ("m", ctypes.c_uint32),
        ("entry", ctypes.c_uint32),
        ("level_max", ctypes.c_int32),
        ("ef", ctypes.c_uint32),
    )


def _load() -> ctypes.CDLL:
    if not _LIBRARY.exists():
        raise ImportError(
            "lakehouse's search kernels are not compiled: run `pip install -e .`, or `python hatch_build.py` in a "
            f"source tree. missing=`{_LIBRARY}`"
        )
    library = ctypes.CDLL(str(_LIBRARY))
    if library.lh_abi() != ABI:
        raise ImportError(
            f"lakehouse's search kernels are of another release: compile again. file=`{_LIBRARY}`"
        )
    pointer = ctypes.c_void_p
    u32, u64 = ctypes.c_uint32, ctypes.c_uint64
    library.lh_source_bytes.restype = u64
    library.lh_variant.restype = ctypes.c_char_p
    library.lh_use_variant.argtypes = [ctypes.c_char_p]
    library.lh_search.argtypes = [
        pointer,
        u32,
        u32,
        u32,
        pointer,
        u32,
        u32,
        pointer,
        pointer,
        pointer,
        pointer,
    ]
    library.lh_probe.argtypes = [pointer, u32, u32, pointer, u64, u32, pointer]
    library.lh_round.argtypes = [pointer, pointer, u64, u32, pointer, pointer]
    library.lh_round.restype = None
    library.lh_trim.restype = None
    if library.lh_source_bytes() != ctypes.sizeof(_Source):
        raise ImportError(
            f"lakehouse's search kernels are of another release: compile again. file=`{_LIBRARY}`"
        )
    return library


_native = _load()
_search = _native.lh_search


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """A graph as flat arrays; every row number in them is below the number of rows."""

    level0: Rows32
    """(rows, 1 + 2m): how many neighbours, then them, then zeros."""
    upper_offsets: Rows32
    """(rows + 1,): the first block of a row in `upper`; a row has one block per level above 0."""
    upper: Rows32
    """(blocks, 1 + m): as `level0`, level 1 of a row first."""
    entry: int
    level_max: int

    @property
    def m(self) -> int:
        """Neighbours a row keeps per upper level, half of those on level 0."""
        return int(self.upper.shape[1]) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Vectors in 8 bits per component, to walk a graph by; what a walk keeps is measured with the originals."""

    values: npt.NDArray[np.int8]
    """(rows, dimension rounded up to 64)."""
    terms: npt.NDArray[np.float32]
    """(rows, 2): what one unit of a code's dot product is worth, and the squared norm of the rounded vector."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Rows to search: by graph where `links` is given, else by scanning them all."""

    vectors: Vectors
    inverse_norms: npt.NDArray[np.float32]
    """(rows,) under cosine, else empty."""
    rows: int
    """Rows in use, from the first."""
    matched: int
    """Of these, live and allowed."""
    dead: Bits | None = None
    allowed: Bits | None = None
    links: Links | None = None
    stragglers: Rows32 | None = None
    codes: Codes | None = None
    ef: int = 0
    visits_max: int = 1 << 62
    """Distances after which the graph gives up for a scan."""


class Sources:
    """Sources packed for the kernel, keeping alive the arrays they point into."""

    __slots__ = ("_keep", "address", "count", "packed")

    def __init__(self, sources: Sequence[Source]) -> None:
        self._keep = tuple(sources)
        self.count = len(sources)
        self.packed = (_Source * max(1, len(sources)))(*map(_pack, sources))
        self.address = ctypes.addressof(self.packed)


def _pack(source: Source) -> _Source:
    links, stragglers = source.links, source.stragglers
    packed = _Source(
        vectors=_address(source.vectors, np.float32),
        inverse_norms=_address(source.inverse_norms, np.float32),
        dead=_address(source.dead, np.uint64),
        allowed=_address(source.allowed, np.uint64),
        visits_max=source.visits_max,
        matched=source.matched,
        rows=source.rows,
        ef=source.ef,
    )
    if links is not None:
        packed.links = _address(links.level0, np.uint32)
        packed.upper_offsets = _address(links.upper_offsets, np.uint32)
        packed.upper_links = _address(links.upper, np.uint32)
        packed.m, packed.entry, packed.level_max = links.m, links.entry, links.level_max
        if stragglers is not None and len(stragglers):
            packed.stragglers = _address(stragglers, np.uint32)
            packed.straggler_count = len(stragglers)
        if source.codes is not None:
            packed.codes = _address(source.codes.values, np.int8)
            packed.code_terms = _address(source.codes.terms, np.float32)
    return packed


def _address(array: npt.NDArray[Any] | None, dtype: type[np.generic]) -> int | None:
    if array is None or array.size == 0:
        return None
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    return int(array.ctypes.data)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the kernel found: per query the nearest first."""

    distances: list[list[float]]
    hits: list[list[int]]
    """Source number << 32 | row in that source."""
    visited: int
    """Distances computed."""
    gave_up: int
    """Graph walks that ended in a scan."""


class _Room(threading.local):
    """Where a thread's single queries are answered: making arrays would cost as much as a tenth of the search."""

    def __init__(self) -> None:
        self.distances = (ctypes.c_float * SINGLE_K_MAX)()
        self.hits = (ctypes.c_uint64 * SINGLE_K_MAX)()
        self.count = ctypes.c_uint32()
        self.totals = (ctypes.c_uint64 * 2)()
        self.addresses = tuple(
            ctypes.addressof(value) for value in (self.distances, self.hits, self.count, self.totals)
        )


SINGLE_K_MAX = 1_024
_room = _Room()


def search(sources: Sources, distance: Distance, queries: Vectors, k: int) -> Answer:
    """The `k` nearest rows of all `sources` for each query; fewer only when fewer are there."""
    count, dimension = queries.shape
    metric = _METRICS[distance]
    if count == 1 and k <= SINGLE_K_MAX:
        room = _room
        room.totals[0] = room.totals[1] = 0
        address = queries.ctypes.data
        _checked(_search(sources.address, sources.count, metric, dimension, address, 1, k, *room.addresses))
        found = room.count.value
        return Answer([room.distances[:found]], [room.hits[:found]], room.totals[0], room.totals[1])
    distances = np.empty((count, k), np.float32)
    hits = np.empty((count, k), np.uint64)
    counts = np.empty(count, np.uint32)
    totals = np.zeros(2, np.uint64)
    outputs = [array.ctypes.data for array in (distances, hits, counts, totals)]
    _checked(
        _search(sources.address, sources.count, metric, dimension, queries.ctypes.data, count, k, *outputs)
    )
    visited, gave_up = totals.tolist()
    ends = counts.tolist()
    return Answer(
        [row[:end] for row, end in zip(distances.tolist(), ends, strict=True)],
        [row[:end] for row, end in zip(hits.tolist(), ends, strict=True)],
        visited,
        gave_up,
    )


def _checked(status: int) -> None:
    if status != 0:
        raise MemoryError("no memory for a search")


def probe(source: Source, distance: Distance, rows: Rows32, threads: int) -> npt.NDArray[np.bool_]:
    """Which of `rows` the graph of `source` does not find when it is asked for their own vectors."""
    packed = Sources([source])
    missed = np.zeros(len(rows), np.uint8)
    status = _native.lh_probe(
        packed.address,
        _METRICS[distance],
        source.vectors.shape[1],
        rows.ctypes.data,
        len(rows),
        threads,
        missed.ctypes.data,
    )
    if status != 0:
        raise MemoryError("no memory to probe a segment")
    return missed.astype(np.bool_)


def code_width(dimension: int) -> int:
    """Bytes of one row of codes."""
    return (dimension + 63) // 64 * 64


def round_into(codes: Codes, vectors: Vectors, inverse_norms: npt.NDArray[np.float32]) -> None:
    """Fill `codes`, zeros until now, from the vectors they stand for."""
    rows, dimension = vectors.shape
    assert codes.values.shape == (rows, code_width(dimension))
    _native.lh_round(
        vectors.ctypes.data,
        inverse_norms.ctypes.data if inverse_norms.size else None,
        rows,
        dimension,
        codes.values.ctypes.data,
        codes.terms.ctypes.data,
    )


def trim() -> None:
    """Give memory that building has freed back to the operating system."""
    _native.lh_trim()


def variant() -> str:
    """The distance loops in use: `avx512vnni`, `avx512`, `avx2` or `generic`."""
    return str(_native.lh_variant().decode())


def use_variant(name: str) -> bool:
    """Choose the distance loops, for tests and measurements; False when this CPU lacks them."""
    return bool(_native.lh_use_variant(name.encode()) == 0)


def bit_count(bits: Bits) -> int:
    """How many bits are set."""
    return int(np.bitwise_count(bits).sum())


def words(rows: int) -> int:
    """The words of a bitmap over `rows`."""
    return (rows + 63) // 64
