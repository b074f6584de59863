"""Graphs are built by hnswlib and searched by our own kernels; the engine is what turns vectors into links.

hnswlib's index lives for one build: it is saved, its links are read into flat arrays, every neighbour checked, and
the object dropped.  So none of what makes it hard to serve from (one `ef` for all, filters under the interpreter lock,
updates that strand rows, a file without checksums) reaches a search.
"""

import contextlib
import mmap
import os
import struct
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lakehouse.core.errors import Corrupt
from lakehouse.core.types import Distance, Vectors
from lakehouse.index.arena import Arena
from lakehouse.index.kernels import Links, Rows32
from lakehouse.index.native import hnswlib

ADD_ROWS = 4_096
"""Rows handed over at once: the normalised copy of them stays small."""
SEED = 100
_SPACES = {Distance.COSINE: "ip", Distance.EUCLIDEAN: "l2", Distance.DOT: "ip"}
_HEADER = struct.Struct("<6QiIQQQdQ")
LEVEL_MAX = 64


@dataclass(frozen=True, slots=True)
class GraphParams:
    """What a graph is built with."""

    distance: Distance
    m: int
    ef_construction: int


class BuildCancelled(Exception):
    """A build was told to stop; nothing of it is left."""


def check(stop: threading.Event) -> None:
    """Raise `BuildCancelled` if somebody asked for it."""
    if stop.is_set():
        raise BuildCancelled


class Engine(Protocol):
    """Builds a graph over vectors; row numbers are the nodes."""

    def build(
        self, vectors: Vectors, params: GraphParams, arena: Arena, threads: int, stop: threading.Event
    ) -> Links:
        """The links; raises `BuildCancelled` soon after `stop` is set."""
        ...


class HnswlibEngine:
    """hnswlib 0.8."""

    def build(
        self, vectors: Vectors, params: GraphParams, arena: Arena, threads: int, stop: threading.Event
    ) -> Links:
        rows, dimension = vectors.shape
        index = hnswlib.Index(_SPACES[params.distance], dimension)
        index.init_index(rows, ef_construction=params.ef_construction, M=params.m, random_seed=SEED)
        for start in range(0, rows, ADD_ROWS):
            check(stop)
            part = vectors[start : start + ADD_ROWS]
            if params.distance is Distance.COSINE:
                squares = np.einsum("ij,ij->i", part, part, dtype=np.float64)
                part = (part / np.sqrt(np.maximum(squares, 1e-300))[:, None]).astype(np.float32)
            index.add_items(part, np.arange(start, start + len(part)), num_threads=threads)
        return _links(index, rows, arena)


def _links(index: Any, rows: int, arena: Arena) -> Links:
    handle, name = tempfile.mkstemp(dir=arena.directory, prefix="graph-")
    try:
        os.close(handle)
        index.save_index(name)
        with Path(name).open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
    return read_links(data, rows, arena)


def read_links(view: memoryview, rows: int, arena: Arena) -> Links:
    """The links in what hnswlib saved, with labels 0 … rows − 1 as row numbers.  Raises `Corrupt`."""
    (_, _, count, size, label_at, vector_at, level_max, entry, _, m0, m, _, _) = _HEADER.unpack_from(view)
    end = _HEADER.size + count * size
    if count != rows or m0 != 2 * m or vector_at != 4 + 4 * m0 or end > len(view) or entry >= rows:
        raise Corrupt(f"hnswlib saved a graph of another shape. rows=`{rows}` saved=`{count}`")
    nodes = np.ndarray(
        (count,),
        np.dtype({"names": ["links", "label"], "formats": [(np.uint32, 1 + m0), np.uint64],
                  "offsets": [0, label_at], "itemsize": size}),
        buffer=view[_HEADER.size : end],
    )  # fmt: skip
    row_of = nodes["label"].astype(np.uint32)
    if len(np.unique(row_of)) != rows or int(row_of.max()) >= rows:
        raise Corrupt("hnswlib saved a graph with other labels than it was given")
    level0 = arena.zeros((rows, 1 + m0), np.uint32)
    level0[row_of] = _renumbered(nodes["links"], row_of)
    offsets, upper = _upper(view[end:], row_of, int(m), arena)
    return Links(level0, offsets, upper, int(row_of[entry]), int(level_max))


def _renumbered(blocks: Rows32, row_of: Rows32) -> Rows32:
    """Blocks of links with row numbers for internal ones, zeros after the last."""
    counts = blocks[:, :1] & 0xFFFF  # the upper half holds the deletion mark
    width = blocks.shape[1] - 1
    if len(counts) and int(counts.max()) > width:
        raise Corrupt("hnswlib saved a row with more neighbours than fit")
    used = np.arange(width, dtype=np.uint32) < counts
    neighbours = np.where(used, blocks[:, 1:], 0)
    if neighbours.size and int(neighbours.max()) >= len(row_of):
        raise Corrupt("hnswlib saved a neighbour that is no row")
    return np.concatenate([counts, np.where(used, row_of[neighbours], 0)], axis=1, dtype=np.uint32)


def _upper(view: memoryview, row_of: Rows32, m: int, arena: Arena) -> tuple[Rows32, Rows32]:
    rows = len(row_of)
    block = 4 * (1 + m)
    levels = np.zeros(rows, np.uint32)
    starts: list[int] = []
    owners: list[int] = []
    at = 0
    for internal in range(rows):
        (length,) = struct.unpack_from("<I", view, at)
        at += 4
        if length:
            if length % block or length // block > LEVEL_MAX or at + length > len(view):
                raise Corrupt("hnswlib saved upper levels of another shape")
            levels[row_of[internal]] = length // block
            starts.append(at)
            owners.append(internal)
            at += length
    offsets = arena.zeros((rows + 1,), np.uint32)
    offsets[1:] = np.cumsum(levels)
    upper = arena.zeros((int(offsets[-1]), 1 + m), np.uint32)
    for start, internal in zip(starts, owners, strict=True):
        row = row_of[internal]
        first, last = int(offsets[row]), int(offsets[row + 1])
        raw = np.frombuffer(view[start : start + (last - first) * block], np.uint32).reshape(-1, 1 + m)
        upper[first:last] = _renumbered(raw, row_of)
    return offsets, upper
