"""The old system's library reads and searches what we export, and we read what it writes."""

import json
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from format.samples import GOLDEN, OLD
from lakehouse import legacy_export
from lakehouse.core import lhv1
from lakehouse.core.lhv1 import Legacy
from lakehouse.core.types import Distance, IndexParams, Vectors

pytestmark = pytest.mark.go

FIRST_SHARE = 0.98
"""Of stored vectors that come first when searched for.

The old library enters a graph at a random node, so a rare miss is in its nature; measured: none in 300.
"""

Results = list[list[dict[str, object]]]


def written_by_go(
    program: Path, path: Path, version: int, items: int, dimension: int, distance: str
) -> Vectors:
    shape = [str(version), str(items), str(dimension), distance]
    subprocess.run([program, "write", path, *shape], check=True, capture_output=True, timeout=120)
    return np.fromfile(f"{path}.f32", "<f4").reshape(items, dimension)


def read_by_go(program: Path, path: Path, queries: Vectors, k: int = 10) -> dict[str, object]:
    done = subprocess.run(
        [program, "read", path, str(k)],
        input=json.dumps(queries.tolist()).encode(),
        check=False,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()[-2_000:]
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def searched(program: Path, path: Path, queries: Vectors, k: int) -> list[list[str]]:
    results = read_by_go(program, path, queries, k)["results"]
    assert isinstance(results, list)
    return [[hit["id"] for hit in hits] for hits in results]


def nearest(vectors: Vectors, queries: Vectors, distance: str, k: int) -> npt.NDArray[np.intp]:
    if distance == "cosine":
        gaps = -(queries @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T)
    else:
        gaps = np.linalg.norm(vectors[None] - queries[:, None], axis=2)
    return np.argsort(gaps, axis=1)[:, :k]


def recall(found: list[list[str]], ids: tuple[str, ...], exact: npt.NDArray[np.intp]) -> float:
    k = exact.shape[1]
    hits = [len({ids[row] for row in rows} & set(some[:k])) for rows, some in zip(exact, found, strict=True)]
    return float(np.mean(hits)) / float(k)


def exported(path: Path, old: Legacy, **changes: int) -> None:
    params = IndexParams(
        old.params.name,
        old.params.dimension,
        m=old.params.m,
        ef_search=old.params.ef_search,
        distance=old.params.distance,
    )
    with path.open("wb") as out:
        legacy_export.write_items(out, params, old.ids, old.vectors, old.metadata, **changes)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("items", "dimension"), [(0, 5), (1, 1), (3, 7), (700, 24)])
def test_what_go_writes_is_read_bit_for_bit(
    old_program: Path, tmp_path: Path, version: int, distance: str, items: int, dimension: int
) -> None:
    path = tmp_path / "index.lhv1"
    vectors = written_by_go(old_program, path, version, items, dimension, distance)
    old = lhv1.read_legacy(path.read_bytes())
    assert (old.version, old.params.distance, old.params.dimension) == (version, distance, dimension)
    assert old.ids == tuple(f"w-{j:05d}" for j in range(items))
    assert old.vectors.tobytes() == vectors.tobytes()
    assert old.metadata == tuple(
        b"" if j % 3 == 0 else f'{{"row":{j},"label":"α/{j % 7}"}}'.encode() for j in range(items)
    )


@pytest.mark.parametrize("name", OLD)
def test_our_program_reads_the_golden_files_of_the_old_system(old_program: Path, name: str) -> None:
    vectors = lhv1.read_legacy((GOLDEN / f"{name}.lhv1").read_bytes()).vectors
    answer = read_by_go(old_program, GOLDEN / f"{name}.lhv1", vectors[:1], 1)
    assert answer["length"] == len(vectors)


@pytest.mark.parametrize("name", OLD)
def test_a_golden_file_exported_again_is_the_same_index_to_go(
    old_program: Path, tmp_path: Path, name: str
) -> None:
    old = lhv1.read_legacy((GOLDEN / f"{name}.lhv1").read_bytes())
    path = tmp_path / "again.lhv1"
    exported(path, old)
    answer = read_by_go(old_program, path, old.vectors, 3)
    assert answer["version"] == 2
    assert answer["params"] == old.params.to_json()
    assert (answer["length"], answer["ids"], answer["missing"]) == (len(old.ids), len(old.ids), 0)
    assert answer["metadata"] == sum(1 for value in old.metadata if value)
    assert (answer["graph_m"], answer["graph_ml"], answer["graph_ef_search"]) == (16, 0.25, 20)
    results: Results = answer["results"]  # type: ignore[assignment]
    stored = dict(zip(old.ids, old.metadata, strict=True))
    first = 0
    for item_id, hits in zip(old.ids, results, strict=True):
        first += hits[0]["id"] == item_id
        for hit in hits:
            value = stored[str(hit["id"])]
            assert hit.get("metadata") == (json.loads(value) if value else None)
    assert first >= FIRST_SHARE * len(old.ids)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_go_finds_more_in_our_export_than_in_its_own_graph(
    old_program: Path, tmp_path: Path, distance: str
) -> None:
    """The same rows, queries, M and ef.

    Of ten results asked for, `Search` can improve only four; the rest are the first it meets, in any graph.
    So recall@10 is near 0.4 when ten are asked for, and above 0.9 when 500 are and the ten nearest kept.
    """
    own, ours = tmp_path / "own.lhv1", tmp_path / "ours.lhv1"
    vectors = written_by_go(old_program, own, 2, 2_000, 32, distance)
    old = lhv1.read_legacy(own.read_bytes())
    exported(ours, old)
    queries = np.random.default_rng(3).standard_normal((100, 32)).astype(np.float32)
    exact = nearest(vectors, queries, distance, 10)

    def compared(k: int) -> tuple[float, float]:
        found = (searched(old_program, path, queries, k) for path in (own, ours))
        before, after = (recall(some, old.ids, exact) for some in found)
        return before, after

    before, after = compared(10)
    assert after >= 1.8 * before
    before, after = compared(500)
    assert after >= max(0.9, before)

    themselves = searched(old_program, ours, vectors[:300], 10)
    assert sum(hits[0] == old.ids[row] for row, hits in enumerate(themselves)) >= FIRST_SHARE * 300


def test_an_empty_index_is_exported_and_answers_nothing(old_program: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.lhv1"
    empty = np.empty((0, 4), dtype=np.float32)
    with path.open("wb") as out:
        legacy_export.write_items(out, IndexParams("empty", 4), (), empty, ())
    answer = read_by_go(old_program, path, np.ones((2, 4), dtype=np.float32))
    assert (answer["length"], answer["results"]) == (0, [[], []])


@pytest.mark.parametrize("items", [1, 2, 3, 40, 3_000])
def test_equal_vectors_and_odd_ids_are_exported_whole(old_program: Path, tmp_path: Path, items: int) -> None:
    path = tmp_path / "equal.lhv1"
    ids = tuple(f'"{j}" \\ ☃ \x00<&>' * (1 + j % 9) for j in range(items))
    vectors = np.full((items, 3), 0.5, dtype=np.float32)
    metadata = tuple(b'{"text":"\\u0000 <&> \xe2\x98\x83"}' if j % 2 else b"" for j in range(items))
    params = IndexParams("equal", 3, m=4, distance=Distance.EUCLIDEAN)
    with path.open("wb") as out:
        legacy_export.write_items(out, params, ids, vectors, metadata)
    answer = read_by_go(old_program, path, vectors[:1])
    assert (answer["length"], answer["missing"]) == (items, 0)
    results: Results = answer["results"]  # type: ignore[assignment]
    assert all(hit["id"] in ids and hit["distance"] == 0 for hit in results[0])
    again = lhv1.read_legacy(path.read_bytes())
    assert (again.ids, again.metadata, again.vectors.tobytes()) == (ids, metadata, vectors.tobytes())
