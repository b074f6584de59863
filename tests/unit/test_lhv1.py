"""Version 3: what is written is read, and nothing else is."""

import hashlib
import io
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from format.samples import COVERED, SAMPLES, Sample
from lakehouse.core import lhv1
from lakehouse.core.errors import Corrupt, Invalid, TooLarge
from lakehouse.core.lhv1 import Section
from lakehouse.core.types import IndexParams

SMALL = SAMPLES["v3-sections"].written()
PARAMS = IndexParams("index", 8)


def resealed(data: bytes, old: bytes, new: bytes) -> bytes:
    """`data` with text of the same length exchanged in its envelope, and the checksum made to agree."""
    assert len(old) == len(new)
    end = 8 + int.from_bytes(data[4:8], "big")
    envelope = data[8:end]
    assert old in envelope
    envelope = envelope.replace(old, new, 1)
    at = envelope.rindex(b'"sha256":"') + 10
    blank = envelope[:at] + b"0" * 64 + envelope[at + 64 :]
    seal = hashlib.sha256(blank).hexdigest().encode()
    return data[:8] + blank[:at] + seal + blank[at + 64 :] + data[end:]


@pytest.mark.parametrize("name", SAMPLES)
def test_what_was_written_is_read_back_without_a_copy(name: str) -> None:
    sample = SAMPLES[name]
    data = bytearray(sample.written())
    snapshot = lhv1.read_v3(memoryview(data))
    assert snapshot.params == sample.params
    assert snapshot.covered == sample.covered
    assert snapshot.items == sample.items
    assert [(s.kind, s.segment, bytes(s.data)) for s in snapshot.sections] == [
        (s.kind, s.segment, bytes(s.data)) for s in sample.sections
    ]
    for section in snapshot.sections:
        assert isinstance(section.data, memoryview)
        assert section.data.obj is data
        assert section.data.readonly


def test_sections_begin_at_multiples_of_64_and_the_file_ends_with_the_last() -> None:
    facts = lhv1.inspect(SMALL)
    sections = facts["sections"]
    assert isinstance(sections, list)
    assert [section["offset"] % 64 for section in sections] == [0] * 6
    assert sections[-1]["offset"] + sections[-1]["bytes"] == len(SMALL)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,9}", fullmatch=True), st.binary(max_size=300)),
        unique_by=lambda pair: pair[0],
        max_size=8,
    ),
    st.text(max_size=20).filter(lambda text: text.isprintable()),
)
def test_any_sections_survive(pairs: list[tuple[str, bytes]], name: str) -> None:
    sections = tuple(Section(kind, j, data) for j, (kind, data) in enumerate(pairs))
    data = Sample(IndexParams(name, 3), COVERED, 5, sections).written()
    snapshot = lhv1.read_v3(data)
    assert snapshot.params.name == name
    assert [(s.kind, s.segment, bytes(s.data)) for s in snapshot.sections] == [
        (s.kind, s.segment, bytes(s.data)) for s in sections
    ]


def test_every_flipped_byte_is_refused() -> None:
    data = bytearray(SMALL)
    for at in range(len(data)):
        for pattern in (*(1 << bit for bit in range(8)), 0xFF):
            data[at] ^= pattern
            with pytest.raises(Corrupt):
                lhv1.read_v3(memoryview(data))
            data[at] ^= pattern
    assert lhv1.read_v3(data).items == 321


def test_no_flipped_byte_passes_as_another_version_or_an_inspected_file() -> None:
    data = bytearray(SMALL)
    for at in range(len(data)):
        data[at] ^= 1 << at % 8
        with pytest.raises((Corrupt, Invalid)):
            lhv1.read_legacy(data)
        if at >= 4:
            facts = lhv1.inspect(data)
            assert facts["checksums"] == "bad" or facts["version"] != 3
            assert facts["error"]
        data[at] ^= 1 << at % 8


def test_sampled_flips_in_a_large_file_are_refused() -> None:
    rng = np.random.default_rng(7)
    sections = tuple(Section("vectors", j, rng.bytes(100_001)) for j in range(7))
    data = bytearray(Sample(PARAMS, COVERED, 1, sections).written())
    assert len(lhv1.read_v3(data).sections) == 7
    for at in rng.integers(0, len(data), 200).tolist():
        data[at] ^= 1 << at % 8
        with pytest.raises(Corrupt):
            lhv1.read_v3(data)
        data[at] ^= 1 << at % 8


def test_every_truncation_and_anything_after_the_end_is_refused() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(Corrupt):
            lhv1.read_v3(SMALL[:length])
        with pytest.raises((Corrupt, Invalid)):
            lhv1.read_legacy(SMALL[:length])
    for tail in (b"\0", b" ", b"x" * 64):
        with pytest.raises(Corrupt, match="another size"):
            lhv1.read_v3(SMALL + tail)


def test_swapped_payloads_of_two_sections_are_refused() -> None:
    first, second = b"a" * 64, b"b" * 64
    data = Sample(PARAMS, COVERED, 1, (Section("a", 0, first), Section("b", 0, second))).written()
    assert data.endswith(first + second)
    with pytest.raises(Corrupt, match="checksum does not match"):
        lhv1.read_v3(data[:-128] + second + first)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"kind":"ids","segment":1', b'"kind":"ids","segment":0', "occurs twice"),
        (b'"offset":256', b'"offset":192', "not where it must be"),
        (b'"length":63', b'"length":99', "another size"),
        (b'"length":63', b'"length":62', "another size"),
        (b'"length":200', b'"length":199', "padding before a section is not zero|checksum does not match"),
        (b'"length":0', b'"length":1', "padding|checksum|another size|must be"),
        (b'"items":321', b'"items":-21', "not a whole number"),
        (b'"items":321', b'"items":1.5', "not a whole number"),
        (b'"items":321', b'"itemz":321', "not allowed"),
        (b'"distance":"dot"', b'"distance":"foo"', "not allowed"),
        (b'"dimension":384', b'"dimension":0  ', "dimension must be"),
        (b'"kind":"tombstones"', b'"kind":"TOMBSTONES"', "not a string as it must be"),
        (b'"m":24', b'"m":NaN'[:6], "not JSON"),
    ],
)
def test_an_envelope_that_lies_under_a_right_checksum_is_refused(
    old: bytes, new: bytes, message: str
) -> None:
    with pytest.raises(Corrupt, match=message):
        lhv1.read_v3(resealed(SMALL, old, new))


def test_padding_that_is_not_zero_is_refused() -> None:
    data = bytearray(Sample(PARAMS, COVERED, 1, (Section("a", 0, b"x"), Section("b", 0, b"y"))).written())
    data[-2] = 1
    with pytest.raises(Corrupt, match="padding before a section is not zero"):
        lhv1.read_v3(data)


def test_a_version_from_the_future_is_invalid_only_when_it_is_undamaged() -> None:
    future = resealed(SMALL, b'"version":3', b'"version":4')
    with pytest.raises(Invalid, match=r"known are 1, 2, 3.*version=`4`"):
        lhv1.read_v3(future)
    with pytest.raises(Invalid, match="version=`4`"):
        lhv1.version_of(future)
    with pytest.raises(Corrupt):
        lhv1.read_v3(SMALL.replace(b'"version":3', b'"version":4'))


def test_unknown_kinds_of_section_are_kept() -> None:
    kinds = [section.kind for section in lhv1.read_v3(SMALL).sections]
    assert kinds[-1] == "something.later"


def test_foreign_files_are_invalid_and_say_so() -> None:
    for data in (b"", b"PAR1" + b"\0" * 60, b"lhv1" + SMALL[4:], b"\x00" * 100):
        for read in (lhv1.version_of, lhv1.read_legacy, lhv1.inspect):
            with pytest.raises(Invalid, match="not an LHV1 file"):
                read(data)


def test_an_old_file_is_no_version_3_file() -> None:
    envelope = b'{"version":2,"params":{},"metadata":{},"ids":[]}'
    with pytest.raises(Corrupt, match="does not end with its checksum"):
        lhv1.read_v3(b"LHV1" + len(envelope).to_bytes(4, "big") + envelope)


def test_an_envelope_longer_than_the_file_or_the_limit_allocates_nothing() -> None:
    data = b"LHV1" + b"\xff\xff\xff\xff" + bytes(1000)
    tracemalloc.start()
    try:
        for read in (lhv1.read_v3, lhv1.version_of, lhv1.read_legacy):
            with pytest.raises(Corrupt, match="longer than it can be"):
                read(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "sections",
    [
        (Section("a", 0, b""), Section("a", 0, b"")),
        (Section("", 0, b""),),
        (Section("Big", 0, b""),),
        (Section("a b", 0, b""),),
    ],
)
def test_sections_that_could_not_be_read_are_not_written(sections: tuple[Section, ...]) -> None:
    out = io.BytesIO()
    with pytest.raises(Invalid):
        lhv1.write_v3(out, PARAMS, COVERED, 1, sections)
    assert out.getvalue() == b""


def test_an_envelope_over_its_limit_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lhv1, "ENVELOPE_BYTES_MAX", 1024)
    with pytest.raises(TooLarge):
        lhv1.write_v3(io.BytesIO(), PARAMS, COVERED, 1, [Section("a", j, b"") for j in range(20)])


def test_a_short_write_is_continued_and_hashed_once() -> None:
    class Trickle(io.BytesIO):
        def write(self, data: object) -> int:
            return super().write(memoryview(data)[:100])  # type: ignore[arg-type]

    out = Trickle()
    digest = lhv1.write_v3(out, PARAMS, COVERED, 1, [Section("a", 0, b"x" * 1000)])
    assert digest == hashlib.sha256(out.getvalue()).digest()
    assert bytes(lhv1.read_v3(out.getvalue()).sections[0].data) == b"x" * 1000


def test_arrays_are_written_as_their_bytes() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    data = Sample(PARAMS, COVERED, 3, (Section("vectors", 0, memoryview(array.data)),)).written()
    assert bytes(lhv1.read_v3(data).sections[0].data) == array.tobytes()


def test_what_is_covered_is_known_from_the_head_alone() -> None:
    end = lhv1.envelope_end(SMALL[:8])
    assert lhv1.covered_of(SMALL[:end]) == COVERED
    with pytest.raises(Corrupt):
        lhv1.covered_of(SMALL[: end - 1])


def test_inspect_tells_which_section_is_damaged() -> None:
    facts = lhv1.inspect(SMALL)
    assert (facts["version"], facts["checksums"], facts["error"]) == (3, "ok", None)
    assert facts["items"] == 321
    json.dumps(facts)
    damaged = bytearray(SMALL)
    damaged[-1] ^= 1
    facts = lhv1.inspect(damaged)
    assert facts["checksums"] == "bad"
    assert "something.later" in str(facts["error"])
    sections = facts["sections"]
    assert isinstance(sections, list)
    assert [section["ok"] for section in sections] == [True] * 5 + [False]
