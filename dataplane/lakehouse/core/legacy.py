"""The graph bytes of the old system: what `Graph.Export` of `github.com/coder/hnsw` v0.6.1 writes.

    int      zig-zag varint, at most 10 bytes           string   int length, UTF-8 bytes
    vector   int length, float32 little-endian          graph    header, int layers, layers from 0 upwards
    header   int 1, int M, float64 LE Ml, int EfSearch, string distance
    layer    int nodes, then for each node: string key, vector, int neighbours, string neighbour keys

Layer 0 has every node.  The bytes have no checksum, so the reader distrusts every length and accepts only
a graph that ends where the bytes end, whose upper layers repeat nodes of layer 0 exactly.  Neighbour keys
are walked over, not checked: deletions in the old library leave some that name no node.

What it does not do: the envelope around the graph (`lakehouse.core.lhv1`), or building a graph
(`lakehouse.legacy_export`).
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from lakehouse.core.errors import Corrupt, Invalid
from lakehouse.core.types import Vectors

ENCODING_VERSION = 1
LEVEL_FACTOR = 0.25
"""`Ml`, the old library's default: each layer has about a quarter of the nodes below it."""
DISTANCES = ("cosine", "euclidean")
"""What the old library can import."""
LAYERS_MAX = 64
"""Layers shrink by a constant factor; 64 of them would hold more nodes than there are bytes."""
VARINT_BYTES_MAX = 10

Rows = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as flat arrays: row `rows[i]` has the neighbours `neighbours[starts[i]:starts[i + 1]]`."""

    rows: Rows
    starts: npt.NDArray[np.int64]
    neighbours: Rows


@dataclass(frozen=True, slots=True)
class Graph:
    """Layers from 0 upwards; layer 0 has every row, each other layer some rows of the one below."""

    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """The parameters the old library writes before the layers."""

    m: int
    level_factor: float
    ef_search: int
    distance: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """A graph read whole: row j of `vectors` belongs to `keys[j]`."""

    header: Header
    keys: tuple[str, ...]
    vectors: Vectors
    layer_sizes: tuple[int, ...]


def layer_of_links(rows: Rows, links: Rows) -> Layer:
    """The layer of `rows` whose row i has `links[i, 1:1 + links[i, 0]]` as neighbours."""
    counts = links[:, 0].astype(np.int64)
    used = np.arange(links.shape[1] - 1) < counts[:, None]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return Layer(rows.astype(np.uint32), starts, np.ascontiguousarray(links[:, 1:][used], dtype=np.uint32))


def graph_of_links(links0: Rows, levels: npt.NDArray[np.integer], upper: Sequence[Rows] = ()) -> Graph:
    """A graph from flat arrays: `links0` is (n, 1 + 2·M), count first; `upper[l − 1]` has one line (1 + M)
    for each row whose level is at least l, in row order."""
    if not len(links0):
        return Graph(())
    layers = [layer_of_links(np.arange(len(links0), dtype=np.uint32), links0)]
    for level, links in enumerate(upper, start=1):
        rows = np.flatnonzero(levels >= level).astype(np.uint32)
        if len(rows) != len(links):
            raise Invalid(
                f"layer {level} needs one line of links per row. rows=`{len(rows)}` lines=`{len(links)}`"
            )
        layers.append(layer_of_links(rows, links))
    return Graph(tuple(layers))


def check_graph(graph: Graph, items: int) -> None:
    """Refuse a graph in which the old library would follow a link to nowhere.  Raises `Invalid`."""
    below = np.ones(items, dtype=bool)
    for level, layer in enumerate(graph.layers):
        if not len(layer.rows) or layer.rows.max() >= items or len(np.unique(layer.rows)) != len(layer.rows):
            raise Invalid(f"a layer has each of its rows once, and at least one. layer=`{level}`")
        here = np.zeros(items, dtype=bool)
        here[layer.rows] = True
        if (here & ~below).any() or (level == 0 and not here.all()):
            raise Invalid(
                f"layer 0 has every row, each other layer some rows of the one below. layer=`{level}`"
            )
        if layer.neighbours.size and (layer.neighbours.max() >= items or not here[layer.neighbours].all()):
            raise Invalid(f"a neighbour is in the same layer. layer=`{level}`")
        if len(layer.starts) != len(layer.rows) + 1 or layer.starts[-1] != len(layer.neighbours):
            raise Invalid(f"a layer has one start per row, and the end. layer=`{level}`")
        below = here
    if bool(items) != bool(graph.layers):
        raise Invalid(f"a graph has layers exactly when there are items. items=`{items}`")


# ---- writing


def varint(value: int) -> bytes:
    """`value` as Go's `binary.PutVarint` writes it: zig-zag, seven bits a byte, least significant first."""
    rest = value << 1 if value >= 0 else ~(value << 1)
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def encode(out: BinaryIO, header: Header, keys: Sequence[str], vectors: Vectors, graph: Graph) -> None:
    """Write what `Graph.Export` would.  Raises `Invalid` for a graph the old library could not search."""
    check_graph(graph, len(keys))
    out.write(varint(ENCODING_VERSION) + varint(header.m) + struct.pack("<d", header.level_factor))
    out.write(varint(header.ef_search) + _string(header.distance) + varint(len(graph.layers)))
    strings = [_string(key) for key in keys]
    vector_length = varint(vectors.shape[1])
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    for layer in graph.layers:
        out.write(varint(len(layer.rows)))
        for row, neighbours in _nodes(layer):
            out.write(strings[row] + vector_length + rows[row].tobytes() + varint(len(neighbours)))
            out.write(b"".join([strings[neighbour] for neighbour in neighbours]))


def _nodes(layer: Layer) -> Iterator[tuple[int, list[int]]]:
    starts: list[int] = layer.starts.tolist()
    for i, row in enumerate(layer.rows.tolist()):
        yield row, layer.neighbours[starts[i] : starts[i + 1]].tolist()


def _string(text: str) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise Invalid(f"an id that is not valid unicode cannot be exported. id=`{text!r}`") from error
    return varint(len(encoded)) + encoded


# ---- reading


def decode(data: memoryview, dimension: int, base: int = 0) -> Decoded:
    """Read a whole graph; `dimension` 0 takes that of the first node.

    Offsets in messages are `base` plus the offset in `data`.  Raises `Corrupt`, and `Invalid` for a distance
    the old library does not have.
    """
    reader = _Reader(data, base)
    try:
        return reader.graph(dimension)
    except (IndexError, struct.error) as error:
        # Every read that runs past the end is one of these two.
        raise Corrupt(f"the graph ends in the middle of a value. bytes=`{base + len(data)}`") from error


class _Reader:
    """A position in untrusted bytes; each length is checked against what remains before it is used."""

    def __init__(self, data: memoryview, base: int) -> None:
        self._data = data
        self._size = len(data)
        self._base = base
        self._at = 0

    def graph(self, dimension: int) -> Decoded:
        header = self._header()
        layers = self._count("layers", 1)
        if layers > LAYERS_MAX:
            raise self._corrupt(f"a graph has at most {LAYERS_MAX} layers. layers=`{layers}`")
        keys: dict[str, int] = {}
        offsets: list[int] = []
        sizes: list[int] = []
        for level in range(layers):
            nodes = self._count("nodes", 3 + 4 * dimension)
            sizes.append(nodes)
            if level == 0:
                dimension = dimension or self._peek_dimension(nodes)
                self._base_layer(nodes, dimension, keys, offsets)
            else:
                self._upper_layer(nodes, dimension, keys, offsets)
        if self._at != self._size:
            raise self._corrupt(f"bytes after the end of the graph. bytes=`{self._size - self._at}`")
        return Decoded(header, tuple(keys), self._gather(offsets, dimension), tuple(sizes))

    def _header(self) -> Header:
        if (version := self._int()) != ENCODING_VERSION:
            raise self._corrupt(f"not a graph of encoding version {ENCODING_VERSION}. version=`{version}`")
        m = self._int()
        (level_factor,) = struct.unpack_from("<d", self._data, self._at)
        self._at += 8
        ef_search = self._int()
        distance = self._string()
        if not math.isfinite(level_factor):
            raise self._corrupt(f"the level factor is not a number. ml=`{level_factor}`")
        if distance not in DISTANCES:
            raise Invalid(
                f"the graph's distance is not one of {', '.join(DISTANCES)}. distance=`{distance!r}`"
            )
        return Header(m, level_factor, ef_search, distance)

    def _base_layer(self, nodes: int, dimension: int, keys: dict[str, int], offsets: list[int]) -> None:
        for row in range(nodes):
            key = self._string()
            if keys.setdefault(key, row) != row:
                raise self._corrupt(f"two nodes have one key. key=`{key!r}`")
            offsets.append(self._vector(dimension))
            self._skip_neighbours()

    def _upper_layer(self, nodes: int, dimension: int, keys: dict[str, int], offsets: list[int]) -> None:
        seen: set[int] = set()
        size = 4 * dimension
        for _ in range(nodes):
            key = self._string()
            row = keys.get(key)
            if row is None or row in seen:
                raise self._corrupt(f"an upper layer names a node twice, or one layer 0 lacks. key=`{key!r}`")
            seen.add(row)
            here, below = self._vector(dimension), offsets[row]
            if bytes(self._data[here : here + size]) != bytes(self._data[below : below + size]):
                raise self._corrupt(f"one node has two vectors. key=`{key!r}`")
            self._skip_neighbours()

    def _peek_dimension(self, nodes: int) -> int:
        at = self._at
        if not nodes:
            return 0
        self._string()
        dimension = self._int()
        self._at = at
        if not 0 < dimension <= (self._size - at) // 4:
            raise self._corrupt(f"a vector has at least one component. dimension=`{dimension}`")
        return dimension

    def _vector(self, dimension: int) -> int:
        """Step over a vector and return where its components begin."""
        if (length := self._int()) != dimension:
            raise self._corrupt(f"a vector has another dimension than {dimension}. dimension=`{length}`")
        at = self._at
        self._at = at + 4 * dimension
        if self._at > self._size:
            raise self._corrupt("a vector ends after the end of the file")
        return at

    def _gather(self, offsets: list[int], dimension: int) -> Vectors:
        # Bounded: every row was stepped over in the bytes themselves.
        vectors: Vectors = np.empty((len(offsets), dimension), dtype=np.float32)
        for row, offset in enumerate(offsets):
            vectors[row] = np.frombuffer(self._data, "<f4", dimension, offset)
        return vectors

    def _skip_neighbours(self) -> None:
        count = self._count("neighbours", 1)
        data, at = self._data, self._at
        for _ in range(count):
            byte = data[at]
            if byte & 0x81:  # negative, or 64 bytes and more
                self._at = at
                length = self._count("key bytes", 1)
                at = self._at + length
            else:
                at += 1 + (byte >> 1)
        self._at = at
        if at > self._size:
            raise self._corrupt("a neighbour's key ends after the end of the file")

    def _string(self) -> str:
        length = self._count("string bytes", 1)
        at = self._at
        self._at = at + length
        try:
            return str(self._data[at : self._at], "utf-8")
        except UnicodeDecodeError as error:
            raise self._corrupt("a key is not UTF-8") from error

    def _count(self, what: str, bytes_each: int) -> int:
        """A length that the remaining bytes can hold."""
        count = self._int()
        if not 0 <= count <= (self._size - self._at) // bytes_each:
            raise self._corrupt(f"{what} do not fit the rest of the file. {what}=`{count}`")
        return count

    def _int(self) -> int:
        data, at = self._data, self._at
        byte = data[at]
        at += 1
        value, shift = byte & 0x7F, 7
        while byte & 0x80:
            if shift == 7 * VARINT_BYTES_MAX:
                raise self._corrupt("a number is longer than 64 bits")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
        if value >> 64:
            raise self._corrupt("a number is longer than 64 bits")
        self._at = at
        return value >> 1 if not value & 1 else ~(value >> 1)

    def _corrupt(self, message: str) -> Corrupt:
        return Corrupt(f"the graph is damaged: {message}. offset=`{self._base + self._at}`")
