"""LHV1: one file holds one index, or one shard of it, and says whether it is still whole.

    `LHV1` · uint32 big-endian envelope length · JSON envelope · payload

Versions 1 and 2 are the old system's: the payload is a `coder/hnsw` graph and nothing has a checksum, so
they are read with distrust and only in full.  Version 3 is ours: the envelope names the parameters, the log
position that the file covers, and every section with its sha256; the envelope ends with its own.  Everything
else in a version 3 file has one possible value, so one flipped bit anywhere is refused.

`dataplane/FORMAT.md` has the bytes.  What this module does not do: I/O beyond writing to an open file, and
knowing what is inside a section.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NoReturn
from uuid import UUID

import numpy as np

from lakehouse.core import legacy
from lakehouse.core.errors import Corrupt, Invalid, TooLarge
from lakehouse.core.types import DIMENSION_MAX, EF_MAX, M_MAX, M_MIN, Distance, IndexParams, Vectors

MAGIC = b"LHV1"
PREFIX_BYTES = 8
"""Magic and envelope length."""
VERSIONS = (1, 2, 3)
ALIGNMENT = 64
"""Sections begin at multiples of a cache line, so a mapped file needs no copy for SIMD loads."""
ENVELOPE_BYTES_MAX = 64 << 20
"""For version 3: about 300,000 sections.  The old versions keep all metadata in theirs, up to 4 GiB."""
JSON_DEPTH_MAX = 256
"""Of one item's metadata; half of what Python's parser can follow from a deep stack."""
CHUNK_BYTES = 1 << 20
"""Written and hashed in one go while it is in the cache."""
LEGACY_M, LEGACY_EF_SEARCH = 16, 20
"""The old system's defaults, for an envelope that has none."""

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes; a mapped file among them."""

_KIND = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SEAL = re.compile(rb',"sha256":"([0-9a-f]{64})"\} *')
_SEAL_BLANK = b"0" * 64
_HEX32, _HEX64 = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Section:
    """One stretch of payload: what it is, which segment of the index it belongs to, and its bytes."""

    kind: str
    segment: int
    data: memoryview | bytes


@dataclass(frozen=True, slots=True)
class Covered:
    """The log position that a version 3 file holds the state of."""

    incarnation: UUID
    shard: int
    sequence: int
    """The last entry applied; 0 for none."""
    epoch: int
    digest: bytes
    """Of that entry, 32 bytes: the anchor of the chain that continues from here."""
    operations: int
    """Operations applied since the incarnation began; item versions count on from here."""
    entry_version: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version 3 file, verified; sections are views of the bytes it was read from."""

    params: IndexParams
    covered: Covered
    items: int
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Legacy:
    """A version 1 or 2 file: row j of `vectors` and `metadata[j]` (b"" for none) belong to `ids[j]`."""

    version: int
    params: IndexParams
    ids: tuple[str, ...]
    vectors: Vectors
    metadata: tuple[bytes, ...]
    graph_sizes: tuple[int, ...] = ()
    """Nodes per layer of the graph in the file; more than `ids` where the ids leave some out."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One section as a version 3 envelope names it; `offset` counts from the payload."""

    kind: str
    segment: int
    offset: int
    length: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Envelope:
    params: IndexParams
    covered: Covered
    items: int
    entries: tuple[_Entry, ...]
    payload: int


# ---- any version


def version_of(data: Buffer) -> int:
    """The version a file says it has: one of `VERSIONS`.  Reads no more of it than that takes.

    Raises `Invalid` for a file that is not LHV1 or is of a version unknown here, and `Corrupt`.
    """
    version = _stated_version(_envelope_bytes(_bytes_of(data), sealed=False))
    if version not in VERSIONS:
        raise _unknown_version(version)
    return version


def inspect(data: Buffer) -> dict[str, object]:
    """Facts about a file of any version, for people; a damaged file is described as far as it can be read.

    `checksums` is `ok`, `bad` or `none` (versions 1 and 2 have none), `error` says what is wrong, or is None;
    what a damaged envelope hides is None too.
    Raises `Invalid` for a file that is not LHV1.
    """
    view = _bytes_of(data)
    _check_magic(view, Invalid)
    facts: dict[str, object] = {
        "format": "LHV1",
        "version": None,
        "bytes": len(view),
        "checksums": "none",
        "error": None,
        "params": None,
        "items": None,
        "covered": None,
        "sections": [],
    }
    try:
        facts["version"] = version_of(view)
        return facts | (_facts_v3(view) if facts["version"] == 3 else _facts_legacy(view))
    except (Corrupt, Invalid) as error:
        bad = "none" if facts["version"] in (1, 2) else "bad"
        return facts | {"checksums": bad, "error": error.message}


def _facts_v3(view: memoryview) -> dict[str, object]:
    envelope = _read_envelope(view)
    errors = [_section_error(view, envelope, entry) for entry in envelope.entries]
    error = _layout_error(view, envelope) or next(filter(None, errors), None)
    covered = envelope.covered
    return {
        "checksums": "bad" if error else "ok",
        "error": error,
        "params": envelope.params.to_json() | {"ef_construction": envelope.params.ef_construction},
        "items": envelope.items,
        "covered": {
            "incarnation": str(covered.incarnation),
            "shard": covered.shard,
            "sequence": covered.sequence,
            "epoch": covered.epoch,
            "digest": covered.digest.hex(),
            "operations": covered.operations,
            "entry_version": covered.entry_version,
        },
        "sections": [
            {
                "kind": entry.kind,
                "segment": entry.segment,
                "offset": envelope.payload + entry.offset,
                "bytes": entry.length,
                "sha256": entry.sha256,
                "ok": problem is None,
            }
            for entry, problem in zip(envelope.entries, errors, strict=True)
        ],
    }


def _facts_legacy(view: memoryview) -> dict[str, object]:
    old = read_legacy(view)
    payload = PREFIX_BYTES + _envelope_length(view)
    return {
        "error": None,
        "params": old.params.to_json(),
        "items": len(old.ids),
        "items_with_metadata": sum(1 for value in old.metadata if value),
        "graph_layers": list(old.graph_sizes),
        "covered": None,
        "sections": [
            {"kind": "envelope", "offset": PREFIX_BYTES, "bytes": payload - PREFIX_BYTES},
            {"kind": "graph", "offset": payload, "bytes": len(view) - payload},
        ],
    }


def _bytes_of(data: Buffer) -> memoryview:
    return memoryview(data).cast("B").toreadonly()


def _envelope_length(view: memoryview) -> int:
    return int.from_bytes(view[4:PREFIX_BYTES], "big")


def _check_magic(view: memoryview, otherwise: type[Corrupt] | type[Invalid]) -> None:
    if view[:4] != MAGIC[: len(view)] or not len(view):
        start = bytes(view[:4])
        raise otherwise(f"not an LHV1 file: it does not begin with `LHV1`. start=`{start!r}`")


def _envelope_bytes(view: memoryview, *, sealed: bool) -> bytes:
    """The envelope, its length checked before anything is allocated for it."""
    # Where a version 3 file is expected, another first byte is damage; elsewhere, another kind of file.
    _check_magic(view, Corrupt if sealed else Invalid)
    if len(view) < PREFIX_BYTES:
        raise Corrupt(f"the file ends before its envelope. bytes=`{len(view)}`")
    length = _envelope_length(view)
    if length > len(view) - PREFIX_BYTES or (sealed and length > ENVELOPE_BYTES_MAX):
        most = min(len(view) - PREFIX_BYTES, ENVELOPE_BYTES_MAX if sealed else len(view))
        raise Corrupt(f"the envelope is longer than it can be, at most {most} bytes here. length=`{length}`")
    return bytes(view[PREFIX_BYTES : PREFIX_BYTES + length])


def _stated_version(envelope: bytes) -> int:
    reader = _Json(_text(envelope))
    for key in reader.members():
        raw = reader.value()
        if key.casefold() == "version":
            if not re.fullmatch(r"[0-9]{1,9}", raw):
                raise Corrupt(f"the envelope's version is not a whole number. version=`{raw[:40]}`")
            return int(raw)
    raise Corrupt("the envelope has no version")


def _unknown_version(version: int) -> Invalid:
    known = ", ".join(map(str, VERSIONS))
    return Invalid(
        f"an LHV1 file of a version unknown here; known are {known}: read it with a newer release. "
        f"version=`{version}`"
    )


def _text(envelope: bytes) -> str:
    try:
        return envelope.decode()
    except UnicodeDecodeError as error:
        raise Corrupt(f"the envelope is not UTF-8. offset=`{PREFIX_BYTES + error.start}`") from error


# ---- version 3: writing


def write_v3(
    out: BinaryIO, params: IndexParams, covered: Covered, items: int, sections: Sequence[Section]
) -> bytes:
    """Write a version 3 file in one pass over `out` and return the sha256 of all its bytes.

    Raises `Invalid` for sections that a reader would refuse, `TooLarge` for too many of them.
    """
    views = [_bytes_of(section.data) for section in sections]
    envelope = _encode_envelope(params, covered, items, _entries(sections, views))
    digest = hashlib.sha256()
    _put(out, digest.update, memoryview(MAGIC + struct.pack(">I", len(envelope)) + envelope))
    written = 0
    for view in views:
        padding = -written % ALIGNMENT
        _put(out, digest.update, memoryview(bytes(padding)))
        _put(out, digest.update, view)
        written += padding + len(view)
    return digest.digest()


def _entries(sections: Sequence[Section], views: Sequence[memoryview]) -> list[_Entry]:
    entries: list[_Entry] = []
    seen: set[tuple[str, int]] = set()
    end = 0
    for section, view in zip(sections, views, strict=True):
        if not _KIND.fullmatch(section.kind) or (section.kind, section.segment) in seen:
            raise Invalid(
                "a section has a kind of a-z, 0-9, `.`, `_`, `-` and occurs once per segment. "
                f"kind=`{section.kind}` segment=`{section.segment}`"
            )
        seen.add((section.kind, section.segment))
        offset = end + -end % ALIGNMENT
        entries.append(
            _Entry(section.kind, section.segment, offset, len(view), hashlib.sha256(view).hexdigest())
        )
        end = offset + len(view)
    return entries


def _encode_envelope(params: IndexParams, covered: Covered, items: int, entries: Sequence[_Entry]) -> bytes:
    body = {
        "version": 3,
        "params": params.to_json() | {"ef_construction": params.ef_construction},
        "covered": {
            "incarnation": covered.incarnation.hex,
            "shard": covered.shard,
            "sequence": covered.sequence,
            "epoch": covered.epoch,
            "digest": covered.digest.hex(),
            "operations": covered.operations,
            "entry_version": covered.entry_version,
        },
        "items": items,
        "sections": [
            {
                "kind": entry.kind,
                "segment": entry.segment,
                "offset": entry.offset,
                "length": entry.length,
                "sha256": entry.sha256,
            }
            for entry in entries
        ],
        "sha256": _SEAL_BLANK.decode(),
    }
    text = json.dumps(body, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-(PREFIX_BYTES + len(text)) % ALIGNMENT)
    if len(text) > ENVELOPE_BYTES_MAX:
        raise TooLarge(
            f"the envelope is over {ENVELOPE_BYTES_MAX} bytes; use fewer sections. bytes=`{len(text)}`"
        )
    return _sealed_with(text, hashlib.sha256(text).hexdigest().encode())


def _sealed_with(envelope: bytes, seal: bytes) -> bytes:
    at = len(envelope.rstrip(b" ")) - 2 - len(seal)  # the last value, before `"}`
    return envelope[:at] + seal + envelope[at + len(seal) :]


def _put(out: BinaryIO, digest: Callable[[memoryview], object], view: memoryview) -> None:
    at = 0
    while at < len(view):
        # An unbuffered file may take less than it was given.
        chunk = view[at : at + CHUNK_BYTES]
        chunk = chunk[: out.write(chunk)]
        digest(chunk)
        at += len(chunk)


# ---- version 3: reading


def read_v3(data: Buffer) -> Snapshot:
    """Verify every byte of a version 3 file and return it without copying the payload.

    Raises `Corrupt` for anything but the bytes that `write_v3` wrote, and `Invalid` for an undamaged file
    of a version unknown here.
    """
    view = _bytes_of(data)
    envelope = _read_envelope(view)
    if problem := _layout_error(view, envelope):
        raise Corrupt(problem)
    for entry in envelope.entries:
        if problem := _section_error(view, envelope, entry):
            raise Corrupt(problem)
    sections = tuple(
        Section(entry.kind, entry.segment, _payload_of(view, envelope, entry)) for entry in envelope.entries
    )
    return Snapshot(envelope.params, envelope.covered, envelope.items, sections)


def envelope_end(head: Buffer) -> int:
    """Bytes from the file's start to the end of its envelope; `head` is at least its first 8 bytes.

    Raises `Corrupt` for a length no envelope has.
    """
    view = _bytes_of(head)
    length = _envelope_length(view)
    if view[:4] != MAGIC or not 0 < length <= ENVELOPE_BYTES_MAX:
        raise Corrupt(f"not the beginning of a version 3 file. start=`{bytes(view[:PREFIX_BYTES])!r}`")
    return PREFIX_BYTES + length


def covered_of(head: Buffer) -> Covered:
    """What a version 3 file covers, from its verified envelope alone.

    `head` reaches to `envelope_end` at least.  Raises `Corrupt`, and `Invalid` for a version unknown here.
    """
    return _read_envelope(_bytes_of(head)).covered


def _read_envelope(view: memoryview) -> _Envelope:
    raw = _envelope_bytes(view, sealed=True)
    _check_seal(raw)
    text = _text(raw)
    version = _stated_version(raw)
    if version not in VERSIONS:
        raise _unknown_version(version)
    if version != 3:
        raise Corrupt(f"not a version 3 file. version=`{version}`")
    try:
        body = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Corrupt("the envelope is not JSON") from error
    try:
        envelope = _parse_envelope(body, PREFIX_BYTES + len(raw))
    except (Invalid, KeyError, TypeError, ValueError) as error:
        # The checksum holds, so a program wrote this; it is still nothing to serve from.
        raise Corrupt(f"the envelope holds a value that is not allowed: {error}") from error
    if envelope.payload % ALIGNMENT:
        raise Corrupt(f"the payload does not begin at a multiple of {ALIGNMENT}. offset=`{envelope.payload}`")
    return envelope


def _check_seal(envelope: bytes) -> None:
    """Every byte of the envelope is under the checksum it ends with, padding included."""
    found = _SEAL.fullmatch(envelope, max(0, len(envelope.rstrip(b" ")) - 64 - 13))
    if not found:
        raise Corrupt("the envelope does not end with its checksum, as every version from 3 on does")
    stored = found[1]
    actual = hashlib.sha256(_sealed_with(envelope, _SEAL_BLANK)).hexdigest()
    if actual.encode() != stored:
        raise Corrupt(f"the envelope's checksum does not match. stored=`{stored.decode()}` actual=`{actual}`")


def _parse_envelope(body: dict[str, object], payload: int) -> _Envelope:
    params, covered, sections = _dict(body["params"]), _dict(body["covered"]), body["sections"]
    if not isinstance(sections, list):
        raise TypeError("sections is not a list")
    return _Envelope(
        IndexParams(
            name=_str(params["name"]),
            dimension=_whole(params["dimension"]),
            m=_whole(params["m"]),
            ef_search=_whole(params["ef_search"]),
            distance=Distance(_str(params["distance"])),
            ef_construction=_whole(params["ef_construction"]),
        ),
        Covered(
            incarnation=UUID(hex=_str(covered["incarnation"], _HEX32)),
            shard=_whole(covered["shard"]),
            sequence=_whole(covered["sequence"]),
            epoch=_whole(covered["epoch"]),
            digest=bytes.fromhex(_str(covered["digest"], _HEX64)),
            operations=_whole(covered["operations"]),
            entry_version=_whole(covered["entry_version"]),
        ),
        _whole(body["items"]),
        tuple(_parse_entry(_dict(section)) for section in sections),
        payload,
    )


def _parse_entry(section: dict[str, object]) -> _Entry:
    return _Entry(
        kind=_str(section["kind"], _KIND),
        segment=_whole(section["segment"], low=-1),
        offset=_whole(section["offset"]),
        length=_whole(section["length"]),
        sha256=_str(section["sha256"], _HEX64),
    )


def _layout_error(view: memoryview, envelope: _Envelope) -> str | None:
    """Each section begins where the one before ends, rounded up over zeros; the file ends with the last."""
    end = 0
    seen: set[tuple[str, int]] = set()
    for entry in envelope.entries:
        where = f"kind=`{entry.kind}` segment=`{entry.segment}`"
        if (entry.kind, entry.segment) in seen:
            return f"a section occurs twice. {where}"
        seen.add((entry.kind, entry.segment))
        if entry.offset != end + -end % ALIGNMENT:
            return f"a section is not where it must be. {where} offset=`{envelope.payload + entry.offset}`"
        padding = bytes(view[envelope.payload + end : envelope.payload + entry.offset])
        if padding.strip(b"\0"):
            return f"the padding before a section is not zero. {where} offset=`{envelope.payload + end}`"
        end = entry.offset + entry.length
    if len(view) != envelope.payload + end:
        return (
            f"the file has another size than its envelope says, {envelope.payload + end}. bytes=`{len(view)}`"
        )
    return None


def _section_error(view: memoryview, envelope: _Envelope, entry: _Entry) -> str | None:
    data = _payload_of(view, envelope, entry)
    where = f"kind=`{entry.kind}` segment=`{entry.segment}` offset=`{envelope.payload + entry.offset}`"
    if len(data) != entry.length:
        return f"a section ends after the end of the file. {where} length=`{entry.length}`"
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        return f"a section's checksum does not match. {where} length=`{entry.length}`"
    return None


def _payload_of(view: memoryview, envelope: _Envelope, entry: _Entry) -> memoryview:
    start = envelope.payload + entry.offset
    return view[start : start + entry.length]


def _dict(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"not an object: `{value!r:.40}`")
    return value


def _str(value: object, pattern: re.Pattern[str] | None = None) -> str:
    if not isinstance(value, str) or (pattern and not pattern.fullmatch(value)):
        raise TypeError(f"not a string as it must be: `{value!r:.80}`")
    return value


def _whole(value: object, low: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 1 << 63:
        raise TypeError(f"not a whole number from {low}: `{value!r:.40}`")
    return value


# ---- versions 1 and 2: writing


def write_v2(
    out: BinaryIO,
    params: IndexParams,
    ids: Sequence[str],
    vectors: Vectors,
    metadata: Sequence[bytes],
    graph: legacy.Graph,
) -> None:
    """Write a version 2 file that the old Go program reads and searches.

    Raises `Invalid` for what that program cannot hold: dot distance, metadata that is not JSON, a graph
    that names a node it lacks.
    """
    if params.distance.value not in legacy.DISTANCES:
        raise Invalid(
            f"the old format knows cosine and euclidean; export version 3. distance=`{params.distance}`"
        )
    if (
        vectors.shape != (len(ids), params.dimension)
        or len(metadata) != len(ids)
        or len(set(ids)) != len(ids)
    ):
        raise Invalid(
            f"an export needs distinct ids, and a vector and metadata for each. ids=`{len(ids)}` "
            f"vectors=`{vectors.shape}` metadata=`{len(metadata)}`"
        )
    legacy.check_graph(graph, len(ids))
    envelope = _legacy_envelope(params, ids, metadata)
    if len(envelope) >= 1 << 32:
        raise TooLarge(
            f"the old format holds 4 GiB of ids and metadata; export version 3. bytes=`{len(envelope)}`"
        )
    out.write(MAGIC + struct.pack(">I", len(envelope)))
    out.write(envelope)
    header = legacy.Header(params.m, legacy.LEVEL_FACTOR, params.ef_search, params.distance.value)
    legacy.encode(out, header, ids, vectors, graph)


def _legacy_envelope(params: IndexParams, ids: Sequence[str], metadata: Sequence[bytes]) -> bytes:
    try:
        members = [
            f"{_dumped(item_id)}:{_checked_json(value)}"
            for item_id, value in zip(ids, metadata, strict=True)
            if value
        ]
        # The order of the old program's fields.
        text = (
            f'{{"version":2,"params":{_dumped(params.to_json())},"metadata":{{{",".join(members)}}},'
            f'"ids":{_dumped(list(ids))}}}'
        )
        return text.encode()
    except UnicodeError as error:
        raise Invalid("an id, or metadata, that is not valid unicode cannot be exported") from error


def _checked_json(value: bytes) -> str:
    reader = _Json(value.decode())
    try:
        reader.value()
        reader.end()
    except Corrupt as error:
        raise Invalid(f"metadata that is not JSON cannot be exported. metadata=`{value[:80]!r}`") from error
    return value.decode()


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# ---- versions 1 and 2: reading


def read_legacy(data: Buffer) -> Legacy:
    """Read a version 1 or 2 file whole.

    Version 2's `ids` are the items, in that order; version 1 has none, so they are the graph's keys, sorted.
    Metadata of an id that the graph lacks is of no item and left out.  Vectors are what the file holds, bit
    for bit, NaN included: whoever imports them checks them.

    Raises `Invalid` for another kind of file, and `Corrupt`.
    """
    view = _bytes_of(data)
    raw = _envelope_bytes(view, sealed=False)
    envelope = _read_legacy_envelope(raw)
    payload = PREFIX_BYTES + len(raw)
    graph = legacy.decode(view[payload:], envelope.dimension, payload)
    params = _legacy_params(envelope, graph)
    rows = {key: row for row, key in enumerate(graph.keys)}
    ids = tuple(sorted(graph.keys)) if envelope.ids is None else envelope.ids
    missing = next((item_id for item_id in ids if item_id not in rows), None)
    if missing is not None:
        raise Corrupt(f"the envelope names an item that the graph lacks. id=`{missing}`")
    vectors = graph.vectors[np.fromiter((rows[item_id] for item_id in ids), np.intp, len(ids))]
    metadata = tuple(envelope.metadata.get(item_id, b"") for item_id in ids)
    vectors = vectors.reshape(len(ids), params.dimension)
    return Legacy(envelope.version, params, ids, vectors, metadata, graph.layer_sizes)


@dataclass(frozen=True, slots=True)
class _LegacyEnvelope:
    version: int
    name: str
    dimension: int
    m: int
    ef_search: int
    distance: str
    metadata: dict[str, bytes]
    ids: tuple[str, ...] | None


def _legacy_params(envelope: _LegacyEnvelope, graph: legacy.Decoded) -> IndexParams:
    if envelope.distance not in ("", graph.header.distance):
        raise Corrupt(
            f"envelope and graph have different distances. envelope=`{envelope.distance}` "
            f"graph=`{graph.header.distance}`"
        )
    m, ef_search = envelope.m or LEGACY_M, envelope.ef_search or LEGACY_EF_SEARCH
    if m < 0 or ef_search < 0:
        raise Corrupt(f"m and ef_search are not negative. m=`{m}` ef_search=`{ef_search}`")
    try:
        # Values beyond our limits tune the search and no more: the nearest allowed ones serve the items.
        return IndexParams(
            name=envelope.name,
            dimension=envelope.dimension or graph.vectors.shape[1],
            m=min(max(m, M_MIN), M_MAX),
            ef_search=min(ef_search, EF_MAX),
            distance=Distance(graph.header.distance),
        )
    except Invalid as error:
        raise Corrupt(f"the envelope holds a value that is not allowed: {error}") from error


def _read_legacy_envelope(raw: bytes) -> _LegacyEnvelope:
    """Fields by name without regard to case, the last of each: as the old program's decoder takes them."""
    version: object = None
    params: dict[str, object] = {}
    metadata: dict[str, bytes] = {}
    ids: tuple[str, ...] | None = None
    reader = _Json(_text(raw))
    for key in reader.members():
        match key.casefold():
            case "version":
                version = _loaded(reader.value())
            case "params":
                params |= {name.casefold(): value for name, value in _object(_loaded(reader.value())).items()}
            case "metadata":
                metadata |= _read_metadata(reader)
            case "ids":
                ids = _read_ids(_loaded(reader.value()))
            case "sections":
                raise Corrupt("the envelope has sections: a damaged version 3 file")
            case _:
                reader.value()
    reader.end()
    if isinstance(version, bool) or not isinstance(version, int) or version not in (1, 2):
        raise Corrupt(f"not a version 1 or 2 file. version=`{version!r:.40}`")
    return _LegacyEnvelope(
        version=1 if version == 1 else 2,
        name=_text_field(params, "name"),
        dimension=_dimension(_number_field(params, "dimension")),
        m=_number_field(params, "m"),
        ef_search=_number_field(params, "ef_search"),
        distance=_text_field(params, "distance"),
        metadata=metadata,
        ids=ids if version == 2 else None,
    )


def _read_metadata(reader: "_Json") -> dict[str, bytes]:
    """Each item's JSON exactly as it is in the file; `null` and `{}` mean none."""
    metadata: dict[str, bytes] = {}
    if reader.null():
        return metadata
    for key in reader.members():
        raw = reader.value()
        metadata[key] = b"" if raw in ("null", "{}") else raw.encode()
    return metadata


def _read_ids(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item_id, str) for item_id in value):
        raise Corrupt("the envelope's ids are not a list of strings")
    ids = tuple(map(_paired, value))
    if len(set(ids)) != len(ids):
        raise Corrupt("the envelope names one id twice")
    return ids


def _text_field(params: dict[str, object], name: str) -> str:
    value = params.get(name)
    if value is not None and not isinstance(value, str):
        raise Corrupt(f"the envelope's {name} is not a string. {name}=`{value!r:.40}`")
    return value or ""


def _number_field(params: dict[str, object], name: str) -> int:
    value = params.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or abs(value) >> 63):
        raise Corrupt(f"the envelope's {name} is not a whole number. {name}=`{value!r:.40}`")
    return value or 0


def _dimension(value: int) -> int:
    if not 0 <= value <= DIMENSION_MAX:
        raise Corrupt(f"the dimension is from 1 to {DIMENSION_MAX}. dimension=`{value}`")
    return value


def _loaded(raw: str) -> object:
    try:
        return json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"the envelope is not JSON. text=`{raw[:40]}`") from error


def _object(value: object) -> dict[str, object]:
    """A JSON object; `null` leaves a field as it was, as in Go."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Corrupt(f"the envelope's params are not an object. params=`{value!r:.40}`")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"`{name}` is not JSON")


def _paired(text: str) -> str:
    """`text` with each half of a surrogate pair that stands alone replaced by U+FFFD, as Go reads it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class _Json:
    """A position in JSON text: objects member by member, values as their text, never as numbers.

    Python's own scanner finds where a value ends, so metadata is kept as written, `1.0` and `1e999` too.
    """

    _SPACE = re.compile(r"[ \t\n\r]*")
    _BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
    _DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=_no_constant)

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def members(self) -> Iterator[str]:
        """Each key of the object here; the caller takes the value before it asks for the next key."""
        self._expect("{")
        if self._accept("}"):
            return
        while True:
            self._skip_space()
            key = self._scan()
            if not isinstance(key, str) or self._text[self._at - 1] != '"':
                raise self._corrupt("a key is not a string")
            self._expect(":")
            yield _paired(key)
            if self._accept("}"):
                return
            self._expect(",")

    def value(self) -> str:
        """Step over the value here and return its text."""
        self._skip_space()
        start = self._at
        self._scan()
        raw = self._text[start : self._at]
        # The number of brackets bounds the depth; only a value with many is looked at twice.
        if raw.count("[") + raw.count("{") > JSON_DEPTH_MAX and self._depth(raw) > JSON_DEPTH_MAX:
            raise self._corrupt(f"a value is nested deeper than {JSON_DEPTH_MAX}")
        return raw

    def null(self) -> bool:
        """Step over `null` if it is here."""
        self._skip_space()
        found = self._text.startswith("null", self._at)
        self._at += 4 * found
        return found

    def end(self) -> None:
        """Refuse anything but white space from here on."""
        self._skip_space()
        if self._at != len(self._text):
            raise self._corrupt("text after the end of the JSON value")

    def _scan(self) -> object:
        try:
            value, self._at = self._DECODER.raw_decode(self._text, self._at)
        except (ValueError, RecursionError) as error:
            raise self._corrupt("the envelope is not JSON") from error
        return value

    def _depth(self, raw: str) -> int:
        deepest = depth = 0
        for match in self._BRACKETS.finditer(raw):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
            deepest = max(deepest, depth)
        return deepest

    def _skip_space(self) -> None:
        match = self._SPACE.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _accept(self, character: str) -> bool:
        self._skip_space()
        found = self._text.startswith(character, self._at)
        self._at += found
        return found

    def _expect(self, character: str) -> None:
        if not self._accept(character):
            raise self._corrupt(f"the envelope is not JSON: `{character}` is missing")

    def _corrupt(self, message: str) -> Corrupt:
        offset = PREFIX_BYTES + len(self._text[: self._at].encode())
        return Corrupt(f"{message}. offset=`{offset}`")
