"""Files of every version ever written stay readable, and today's writer still writes what they hold."""

import hashlib

import pytest

from format.samples import GOLDEN, OLD, SAMPLES
from lakehouse.core import lhv1

DIGESTS = {
    "v1-euclidean-300x16": "f795cdfdff0dc082398acd82b81c3264b78803f872bbffe27a2761c737ab9bed",
    "v2-cosine-50x8": "8d23f1d6f89815bb603f8c0499ea57bc68679bb056a679b660f9bb659bf6fd20",
    "v2-single-1x4": "05f28fced82cc7d30d3f01d8a24608542707e1afeca0b47ed0af7be328cecc5b",
    "v3-empty": "73bb10617d97659c40f6513ba7827c4deb01d349a15d6aeb39165166355706d1",
    "v3-euclidean": "9d7fef59c8838670f4578fa623ef83f01693473d756522920259b77c601e84b5",
    "v3-sections": "0ca893aea9682abcc07c5a597885f6aba5384517488032557a5a13a3b59daaa9",
}
"""sha256 of each golden file: none may change, and none may be missing here."""


def test_no_golden_file_has_changed_or_gone() -> None:
    found = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in GOLDEN.glob("*.lhv1")}
    assert found == DIGESTS


@pytest.mark.parametrize("name", [*OLD, *SAMPLES])
def test_each_golden_file_says_its_version(name: str) -> None:
    data = (GOLDEN / f"{name}.lhv1").read_bytes()
    assert f"v{lhv1.version_of(data)}" == name[:2]
    assert lhv1.inspect(data)["checksums"] == ("ok" if name.startswith("v3") else "none")


@pytest.mark.parametrize("name", SAMPLES)
def test_version_3_golden_files_hold_what_they_were_written_from(name: str) -> None:
    golden = lhv1.read_v3((GOLDEN / f"{name}.lhv1").read_bytes())
    sample = SAMPLES[name]
    assert (golden.params, golden.covered, golden.items) == (sample.params, sample.covered, sample.items)
    assert [(s.kind, s.segment, bytes(s.data)) for s in golden.sections] == [
        (s.kind, s.segment, s.data) for s in sample.sections
    ]
    # The writer may come to write other bytes; what they say stays the same.
    today = lhv1.read_v3(sample.written())
    assert (today.params, today.covered, today.items) == (golden.params, golden.covered, golden.items)
    assert [(s.kind, s.segment, bytes(s.data)) for s in today.sections] == [
        (s.kind, s.segment, bytes(s.data)) for s in golden.sections
    ]
