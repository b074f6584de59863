"""An export is built for the searcher it goes to, not copied from the one it came from.

The old program's search starts anywhere, stops at the first step that brings it no nearer, and of k results
improves only the few on one path of its heap.  The pruned, far-reaching links that our own search wants lose
most neighbours there.  Each layer of an export therefore has both: the links of an HNSW graph to travel by,
and links to and from each row's nearest rows to arrive by.  FORMAT.md has what that brings.

CPU heavy; one thread gives the same bytes every time.
What it does not do: the bytes (`lakehouse.core.lhv1`, `lakehouse.core.legacy`), or reading an index.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from lakehouse.core import lhv1
from lakehouse.core.legacy import Graph, Layer
from lakehouse.core.types import Distance, IndexParams, Vectors
from lakehouse.index.native import hnswlib
from lakehouse.index.view import IndexView

Longs = npt.NDArray[np.int64]

EF_CONSTRUCTION_MIN = 100
"""An export is made once and searched for years."""
NEAREST_PER_M = 4
"""Nearest neighbours each row is linked to, both ways and on each layer, in units of m.

Measured with the old library on 4,000 embeddings of 384 dimensions and held-out queries, how often the
nearest row comes first: 1 → 0.69, 2 → 0.78, 3 → 0.84, 4 → 0.87, for files of 7.8, 8.5, 9.3 and 10.0 MB.
"""
SEED = 100
"""Of the levels; fixed, so that one thread writes the same file twice."""
CHUNK_ROWS = 4_096


def export_v2(path: Path, params: IndexParams, views: Sequence[IndexView], *, threads: int = 1) -> None:
    """Write every item of `views` to a version 2 file at `path`, which appears only when it is whole.

    Raises as `lhv1.write_v2` does.
    """
    ids: list[str] = []
    metadata: list[bytes] = []
    vectors: list[Vectors] = [np.empty((0, params.dimension), dtype=np.float32)]
    for view in views:
        for chunk in view.items():
            ids += chunk.ids
            metadata += chunk.metadata
            vectors.append(chunk.vectors)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as out:
            write_items(out, params, ids, np.concatenate(vectors), metadata, threads=threads)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_items(
    out: BinaryIO,
    params: IndexParams,
    ids: Sequence[str],
    vectors: Vectors,
    metadata: Sequence[bytes],
    *,
    threads: int = 1,
) -> None:
    """Build a graph over `vectors` and write a version 2 file.  Raises as `lhv1.write_v2` does."""
    graph = Graph(())
    if len(ids) and params.distance is not Distance.DOT:
        graph = build_graph(params, vectors, threads=threads)
    lhv1.write_v2(out, params, ids, vectors, metadata, graph)


def build_graph(params: IndexParams, vectors: Vectors, *, threads: int = 1) -> Graph:
    """A graph over the rows of `vectors` that the old program searches well; cosine or euclidean."""
    index = _built(params, vectors, threads)
    levels = _levels(index)
    layers = []
    for level in range(int(levels.max()) + 1):
        rows = np.flatnonzero(levels >= level)
        if level:
            index = _built(params, vectors[rows], threads)
        layers.append(_layer(params, index, rows, vectors[rows], threads))
    return Graph(tuple(layers))


def _built(params: IndexParams, vectors: Vectors, threads: int) -> Any:
    index = hnswlib.Index("cosine" if params.distance is Distance.COSINE else "l2", params.dimension)
    ef = max(params.ef_construction, EF_CONSTRUCTION_MIN)
    index.init_index(len(vectors), ef_construction=ef, M=params.m, random_seed=SEED)
    for start in range(0, len(vectors), CHUNK_ROWS):
        chunk = vectors[start : start + CHUNK_ROWS]
        index.add_items(chunk, np.arange(start, start + len(chunk)), num_threads=threads)
    index.set_ef(max(ef, 2 * NEAREST_PER_M * params.m))
    return index


def _labels(state: dict[str, Any]) -> Longs:
    """Row by the library's own number: with several threads it numbers rows as they come."""
    lines = state["data_level0"].view(np.uint32).reshape(state["cur_element_count"], -1)
    labels: Longs = lines[:, state["label_offset"] // 4].astype(np.int64)
    return labels


def _levels(index: Any) -> Longs:
    """The highest layer of each row."""
    state = index.__getstate__()[0]
    levels = np.empty(state["cur_element_count"], dtype=np.int64)
    levels[_labels(state)] = state["element_levels"]
    return levels


def _layer(params: IndexParams, index: Any, rows: Longs, vectors: Vectors, threads: int) -> Layer:
    """The links of `index` and the nearest rows, both ways: whoever is near a row leads to it."""
    size = len(rows)
    pairs = [_links(index)]
    nearest = min(NEAREST_PER_M * params.m, size - 1)
    for start in range(0, size, CHUNK_ROWS):
        near = _nearest(index, vectors[start : start + CHUNK_ROWS], nearest + 1, threads)
        source = np.repeat(np.arange(start, start + len(near)), near.shape[1])
        pairs += [source * size + near.ravel(), near.ravel() * size + source]
    every = np.unique(np.concatenate(pairs))
    source, target = every // size, every % size
    other = source != target
    counts = np.bincount(source[other], minlength=size)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return Layer(rows.astype(np.uint32), starts, rows[target[other]].astype(np.uint32))


def _links(index: Any) -> Longs:
    """Pairs of linked rows on layer 0, as source · size + target.

    The library keeps a line of uint32 per row: a count whose upper half holds flags, room for the links, the
    vector, the label.
    """
    state = index.__getstate__()[0]
    size = state["cur_element_count"]
    label = _labels(state)
    lines = state["data_level0"].view(np.uint32).reshape(size, -1)
    first = state["offset_level0"] // 4
    counts = lines[:, first] & 0xFFFF
    used = np.arange(state["max_M0"]) < counts[:, None]
    target = label[lines[:, first + 1 : first + 1 + state["max_M0"]][used]]
    pairs: Longs = np.repeat(label, counts) * size + target
    return pairs


def _nearest(index: Any, chunk: Vectors, count: int, threads: int) -> Longs:
    """`count` nearest rows of each row of `chunk`; fewer where equal vectors leave parts unreachable."""
    while count:
        try:
            labels, _ = index.knn_query(chunk, count, num_threads=threads)
        except RuntimeError:  # fewer than `count` were found for some row
            count //= 2
        else:
            return np.asarray(labels, dtype=np.int64)
    return np.empty((len(chunk), 0), dtype=np.int64)
