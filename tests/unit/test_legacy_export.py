"""An export is whole or not there, and the same twice."""

import io
from pathlib import Path

import numpy as np
import pytest

from lakehouse import legacy_export
from lakehouse.core import lhv1
from lakehouse.core.errors import Invalid
from lakehouse.core.types import Batch, Distance, IndexParams, Vectors
from lakehouse.index.shard_index import ShardIndex
from lakehouse.index.view import IndexView

PARAMS = IndexParams("index", 6, m=4)


def rows(first: int, items: int) -> tuple[tuple[str, ...], Vectors]:
    vectors = np.random.default_rng(first).standard_normal((items, 6)).astype(np.float32)
    return tuple(f"i{first + j}" for j in range(items)), vectors


def metadata_of(item_id: str) -> bytes:
    return b'{"from":"%s"}' % item_id.encode() if int(item_id[1:]) % 2 else b""


def shard(first: int, items: int, params: IndexParams = PARAMS) -> IndexView:
    index = ShardIndex(params)
    if items:
        ids, vectors = rows(first, items)
        index.upsert(Batch(ids, vectors, tuple(map(metadata_of, ids))), 1)
    return index.view()


def test_the_items_of_all_shards_go_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "index.lhv1"
    legacy_export.export_v2(path, PARAMS, [shard(0, 10), shard(100, 7), shard(200, 0)])
    old = lhv1.read_legacy(path.read_bytes())
    expected = {
        item_id: (vector.tobytes(), metadata_of(item_id))
        for ids, vectors in (rows(0, 10), rows(100, 7))
        for item_id, vector in zip(ids, vectors, strict=True)
    }
    found = zip(old.ids, old.vectors, old.metadata, strict=True)
    assert {item_id: (vector.tobytes(), value) for item_id, vector, value in found} == expected
    assert old.params == PARAMS
    assert [path.name for path in tmp_path.iterdir()] == ["index.lhv1"]


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    dot = IndexParams("index", 6, distance=Distance.DOT)
    with pytest.raises(Invalid, match="knows cosine and euclidean"):
        legacy_export.export_v2(tmp_path / "index.lhv1", dot, [shard(0, 10, dot)])
    assert list(tmp_path.iterdir()) == []


def test_one_thread_writes_the_same_file_twice() -> None:
    ids, vectors = rows(5, 500)
    files = []
    for _ in range(2):
        out = io.BytesIO()
        legacy_export.write_items(out, PARAMS, ids, vectors, [b""] * 500)
        files.append(out.getvalue())
    assert files[0] == files[1]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("distance", [Distance.COSINE, Distance.EUCLIDEAN])
def test_each_row_is_linked_to_its_nearest_rows(threads: int, distance: Distance) -> None:
    _, vectors = rows(9, 2_000)
    params = IndexParams("index", 6, m=4, distance=distance)
    layers = legacy_export.build_graph(params, vectors, threads=threads).layers
    assert len(layers) > 1
    base = layers[0]
    assert base.rows.tolist() == list(range(2_000))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    linked = 0
    for row in range(0, 2_000, 20):
        gaps = (
            -(unit @ unit[row])
            if distance is Distance.COSINE
            else np.linalg.norm(vectors - vectors[row], axis=1)
        )
        near = [other for other in np.argsort(gaps)[:17].tolist() if other != row][:16]
        neighbours = base.neighbours[base.starts[row] : base.starts[row + 1]].tolist()
        assert row not in neighbours
        linked += len(set(near) & set(neighbours))
    assert linked >= 0.98 * 16 * 100
