"""The inputs of the version 3 golden files, fixed for ever: new inputs get new files beside the old.

`python -m format.samples`, with `tests` and `dataplane` on the path, writes the files that are missing; it
never touches one that exists.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from lakehouse.core.lhv1 import Covered, Section, write_v3
from lakehouse.core.types import Distance, IndexParams

GOLDEN = Path(__file__).parent / "golden"
OLD = ("v1-euclidean-300x16", "v2-cosine-50x8", "v2-single-1x4")

COVERED = Covered(
    incarnation=UUID("0f8fad5b-d9cb-469f-a165-70867728950e"),
    shard=3,
    sequence=1_234,
    epoch=7,
    digest=hashlib.sha256(b"entry 1234").digest(),
    operations=56_789,
    entry_version=1,
)
BEGINNING = Covered(UUID("0f8fad5b-d9cb-469f-a165-70867728950e"), 0, 0, 0, bytes(32), 0, 1)


def stretch(name: str, size: int) -> bytes:
    """`size` bytes without a pattern, the same on every machine."""
    blocks = (hashlib.sha256(f"{name}/{block}".encode()).digest() for block in range(size // 32 + 1))
    return b"".join(blocks)[:size]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one golden file was written from."""

    params: IndexParams
    covered: Covered
    items: int
    sections: tuple[Section, ...]

    def written(self) -> bytes:
        out = io.BytesIO()
        digest = write_v3(out, self.params, self.covered, self.items, self.sections)
        assert digest == hashlib.sha256(out.getvalue()).digest()
        return out.getvalue()


SAMPLES = {
    "v3-empty": Sample(IndexParams("nothing", 4), BEGINNING, 0, ()),
    "v3-sections": Sample(
        IndexParams("søren's index", 384, m=24, ef_search=99, distance=Distance.DOT, ef_construction=123),
        COVERED,
        321,
        (
            Section("ids", 0, stretch("ids", 200)),
            Section("vectors", 0, stretch("vectors", 256)),
            Section("tombstones", 0, b""),
            Section("ids", 1, stretch("ids of 1", 1)),
            Section("vectors", 1, stretch("vectors of 1", 65)),
            Section("something.later", -1, stretch("unknown", 63)),
        ),
    ),
    "v3-euclidean": Sample(
        IndexParams("small", 2, distance=Distance.EUCLIDEAN),
        COVERED,
        2,
        (Section("vectors", 0, bytes.fromhex("0000803f00000040000040400000803f")),),
    ),
}


def main() -> None:
    for name, sample in SAMPLES.items():
        path = GOLDEN / f"{name}.lhv1"
        if not path.exists():
            path.write_bytes(sample.written())


if __name__ == "__main__":
    main()
