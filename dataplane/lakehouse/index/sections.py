"""Parts of an index as sections of a snapshot file, and back: the arrays themselves, in the order of memory.

Reading copies nothing and trusts nothing: checksums say that the bytes are what was written, the checks here that what
was written is a segment.  What this does not do: files (`lakehouse.core.lhv1`).
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from lakehouse.core.errors import Corrupt
from lakehouse.core.lhv1 import Section
from lakehouse.core.types import Distance, IndexParams
from lakehouse.index.arena import Arena
from lakehouse.index.build import rounded
from lakehouse.index.engine import LEVEL_MAX
from lakehouse.index.kernels import Bits, Links, Rows32, bit_count, words
from lakehouse.index.rows import Rows
from lakehouse.index.segment import NO_ROWS, Floats, Marks, Segment, Versions, dead_rows
from lakehouse.index.settings import IndexSettings

assert sys.byteorder == "little", "sections hold little-endian numbers"

KINDS = (
    "segment", "vectors", "norms", "rows", "versions", "tombstones", "links", "upper-offsets", "upper", "stragglers",
)  # fmt: skip


def write(segment: Segment, dead: Bits, versions: Versions, number: int) -> list[Section]:
    """The sections of one segment."""
    graph = segment.graph
    header: dict[str, object] = {"rows": segment.size, "dimension": segment.vectors.shape[1], "graph": None}
    arrays: dict[str, npt.NDArray[Any] | None] = {
        "vectors": segment.vectors,
        "norms": segment.inverse_norms,
        "versions": versions[: segment.size],
        "tombstones": dead[: words(segment.size)] if dead.any() else None,
    }
    if graph is not None:
        header["graph"] = {
            "m": graph.m,
            "entry": graph.entry,
            "level_max": graph.level_max,
            "codes": segment.codes is not None,
        }
        arrays |= {
            "links": graph.level0,
            "upper-offsets": graph.upper_offsets,
            "upper": graph.upper,
            "stragglers": segment.stragglers,
        }
    sections = [Section("segment", number, orjson.dumps(header)), Section("rows", number, segment.rows.data)]
    sections.extend(
        Section(kind, number, array.reshape(-1).view(np.uint8).data)
        for kind, array in arrays.items()
        if array is not None and array.size
    )
    return sections


def read(
    sections: Sequence[Section], params: IndexParams, settings: IndexSettings, arena: Arena
) -> tuple[Segment, Marks]:
    """One segment from its sections, zero copy; its codes are made again.  Raises `Corrupt`."""
    number = sections[0].segment
    parts: dict[str, memoryview] = {}
    for section in sections:
        if section.kind not in KINDS:  # a later release's, which it may be read without
            continue
        if section.kind in parts:
            raise Corrupt(f"segment {number} has a section twice. kind=`{section.kind}`")
        parts[section.kind] = memoryview(section.data)
    header = _header(parts, number)
    size = _whole(header, "rows", 1, (1 << 32) - 1)
    if header.get("dimension") != params.dimension:
        raise Corrupt(f"segment {number} has another dimension. dimension=`{header.get('dimension')}`")
    vectors = _array(parts, "vectors", np.float32, (size, params.dimension), number)
    norms: Floats = np.zeros(0, np.float32)
    if params.distance is Distance.COSINE:
        norms = _array(parts, "norms", np.float32, (size,), number)
    if "rows" not in parts:
        raise Corrupt(f"segment {number} lacks a section. kind=`rows`")
    rows = Rows(parts["rows"])
    if rows.size != size:
        raise Corrupt(f"segment {number} has ids for another number of rows. ids=`{rows.size}` rows=`{size}`")
    graph, stragglers = _graph(parts, header, size, number)
    versions = _array(parts, "versions", np.uint64, (size,), number)
    dead: Bits = np.zeros(words(size), np.uint64)
    if "tombstones" in parts:
        dead = _array(parts, "tombstones", np.uint64, (words(size),), number)
        if bit_count(dead) != int(dead_rows(dead, size).sum()):
            raise Corrupt(f"segment {number} has tombstones past its last row")
    segment = Segment(vectors, norms, rows, settings, graph, stragglers)
    if graph is not None and header["graph"].get("codes"):
        segment = Segment(vectors, norms, rows, settings, graph, stragglers, rounded(segment, arena))
    return segment, Marks(size, versions, dead, bit_count(dead))


def _header(parts: Mapping[str, memoryview], number: int) -> dict[str, Any]:
    try:
        header = orjson.loads(parts["segment"])
    except KeyError as error:
        raise Corrupt(f"segment {number} lacks a section. kind=`segment`") from error
    except orjson.JSONDecodeError as error:
        raise Corrupt(f"the header of segment {number} is no JSON. error=`{error}`") from error
    if not isinstance(header, dict):
        raise Corrupt(f"the header of segment {number} is no object")
    return header


def _graph(
    parts: Mapping[str, memoryview], header: Mapping[str, Any], size: int, number: int
) -> tuple[Links | None, Rows32]:
    fields = header.get("graph")
    if fields is None:
        return None, NO_ROWS
    if not isinstance(fields, dict):
        raise Corrupt(f"the header of segment {number} has no graph. graph=`{fields}`")
    m = _whole(fields, "m", 2, 1 << 10)
    entry = _whole(fields, "entry", 0, size - 1)
    level_max = _whole(fields, "level_max", 0, LEVEL_MAX)
    level0 = _array(parts, "links", np.uint32, (size, 1 + 2 * m), number)
    offsets = _array(parts, "upper-offsets", np.uint32, (size + 1,), number)
    levels: npt.NDArray[np.int64] = np.diff(offsets.astype(np.int64)).astype(np.int64)
    if (
        offsets[0] != 0
        or (levels < 0).any()
        or int(levels[entry]) != level_max
        or int(levels.max()) != level_max
    ):
        raise Corrupt(f"the graph of segment {number} has impossible levels")
    upper = _array(parts, "upper", np.uint32, (int(offsets[-1]), 1 + m), number)
    for blocks in (level0, upper):
        if blocks.size and (
            int(blocks[:, 0].max()) > blocks.shape[1] - 1 or int(blocks[:, 1:].max()) >= size
        ):
            raise Corrupt(f"the graph of segment {number} links to a row that is not there")
    _check_upper(upper, offsets, levels, number)
    stragglers = NO_ROWS
    if "stragglers" in parts:
        stragglers = _array(parts, "stragglers", np.uint32, (len(parts["stragglers"]) // 4,), number)
        if len(stragglers) and int(stragglers.max()) >= size:
            raise Corrupt(f"segment {number} names a straggler that is not there")
    return Links(level0, offsets, upper, entry, level_max), stragglers


def _check_upper(upper: Rows32, offsets: Rows32, levels: npt.NDArray[np.int64], number: int) -> None:
    """A neighbour on a level must itself reach that level, or a walk would read another row's links."""
    if not len(upper):
        return
    owners = np.repeat(np.arange(len(levels)), levels)
    level = np.arange(len(upper)) - offsets[owners] + 1
    used = np.arange(upper.shape[1] - 1) < upper[:, :1]
    if (np.where(used, levels[upper[:, 1:]], LEVEL_MAX) < level[:, None]).any():
        raise Corrupt(f"the graph of segment {number} links to a row that is not on that level")


def _whole(fields: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise Corrupt(f"a segment's header has an impossible value. {name}=`{value}`")
    return value


def _array(
    parts: Mapping[str, memoryview], kind: str, dtype: type[np.generic], shape: tuple[int, ...], number: int
) -> npt.NDArray[Any]:
    size = int(np.prod(shape, dtype=np.int64))
    if size == 0:
        return np.zeros(shape, dtype)
    if kind not in parts:
        raise Corrupt(f"segment {number} lacks a section. kind=`{kind}`")
    data = parts[kind]
    if data.nbytes != size * np.dtype(dtype).itemsize:
        raise Corrupt(
            f"a section of segment {number} has another length. kind=`{kind}` bytes=`{data.nbytes}`"
        )
    array = np.frombuffer(data, np.uint8)
    if array.ctypes.data % 8:
        array = array.copy()  # a caller without an aligned mapping still gets an answer
    return array.view(dtype).reshape(shape)
