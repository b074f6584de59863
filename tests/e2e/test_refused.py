"""What the API server refuses by the CRDs alone: each rule tried, with the sentence that a person then reads.

And what the gateway refuses: changing over HTTP what a resource declares.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from e2e.access import Body, Refused
from e2e.release import Release, dataset, index_snapshot, vector_index
from e2e.waiting import until

SOURCE = {"dataset": {"name": "d", "idColumn": "id", "vectorColumn": "v"}}
LATEST = {"dataset": SOURCE["dataset"] | {"follow": "Latest"}}
FILE = "s3://raw/a.csv"


def snapshot_of(**named: str) -> dict[str, Any]:
    return {"snapshot": named}


NEW: list[tuple[str, Body, str]] = [
    ("name-digit", vector_index("0products"), "begins with a letter"),
    ("name-dot", vector_index("a.b"), "begins with a letter"),
    ("name-long", vector_index("a" * 64), "at most 63"),
    ("dimension-zero", vector_index("refused", 0), "spec.dimension"),
    ("dimension-large", vector_index("refused", 65536), "spec.dimension"),
    ("distance", vector_index("refused", distance="l2"), "spec.distance"),
    ("field", vector_index("refused", dimensions=3), "unknown field"),
    ("drain-self", vector_index("refused", drain={"into": "refused"}), "cannot drain into itself"),
    ("source-bootstrap", vector_index("refused", source=SOURCE, bootstrap=snapshot_of(name="s")), "exclude"),
    ("latest-drain", vector_index("refused", source=LATEST, drain={"into": "b"}), "cannot be drained"),
    (
        "snapshot-both",
        vector_index("refused", bootstrap=snapshot_of(name="s", uri="s3://b/x.lhv1")),
        "one of",
    ),
    ("snapshot-none", vector_index("refused", bootstrap=snapshot_of()), "exactly one of name and uri"),
    ("snapshot-http", vector_index("refused", bootstrap=snapshot_of(uri="http://b/x.lhv1")), "s3://"),
    ("snapshot-suffix", vector_index("refused", bootstrap=snapshot_of(uri="s3://b/x.bin")), "ends in .lhv1"),
    ("dataset-name", dataset("a.b", FILE), "no dot"),
    ("dataset-none", dataset("refused"), "spec.sources"),
    ("dataset-http", dataset("refused", "http://raw/a.csv"), "a source is read from s3://"),
    ("dataset-catalog", dataset("refused", "s3://b/_catalog/x.parquet"), "outside _catalog/"),
    ("snapshot-name", index_snapshot("a" * 251, "b"), "at most 250"),
]

CHANGES: list[tuple[str, Body, Body, str]] = [
    ("dimension", vector_index("kept"), {"dimension": 9}, "dimension cannot be changed"),
    ("distance", vector_index("kept"), {"distance": "dot"}, "distance cannot be changed"),
    ("shards", vector_index("kept"), {"shards": 2}, "shards cannot be changed"),
    ("bootstrap", vector_index("kept"), {"bootstrap": snapshot_of(name="s")}, "when the index is created"),
    ("bucket", vector_index("kept"), {"storage": {"s3": {"bucket": "other"}}}, "bucket cannot be changed"),
    ("prefix", vector_index("kept"), {"storage": {"s3": {"prefix": "other"}}}, "prefix cannot be changed"),
    ("dataset-bucket", dataset("kept", FILE), {"storage": {"s3": {"bucket": "other"}}}, "cannot be changed"),
    ("dataset-prefix", dataset("kept", FILE), {"storage": {"s3": {"prefix": "other"}}}, "cannot be changed"),
    ("snapshot", index_snapshot("kept", "a"), {"indexRef": {"name": "b"}}, "cannot be changed but for"),
]


@pytest.mark.parametrize(("body", "why"), [case[1:] for case in NEW], ids=[case[0] for case in NEW])
def test_a_wrong_resource_is_refused_with_a_sentence(lakehouse: Release, body: Body, why: str) -> None:
    with pytest.raises(Refused, match=why.replace("(", r"\(")):
        lakehouse.apply(body)


@pytest.fixture(scope="module")
def kept(lakehouse: Release) -> Iterator[Release]:
    """One of each kind, to be changed; paused, so that nothing runs for it."""
    bodies = {f"{body['kind']}": body for _, body, _, _ in CHANGES}
    paused = {"lakehouse.agentview.dev/pause-reconciliation": "true"}
    lakehouse.apply(
        *(body | {"metadata": body["metadata"] | {"annotations": paused}} for body in bodies.values())
    )
    yield lakehouse
    for body in bodies.values():
        lakehouse.cluster.delete(body["kind"], lakehouse.namespace, "kept")


@pytest.mark.parametrize(
    ("body", "change", "why"), [case[1:] for case in CHANGES], ids=[case[0] for case in CHANGES]
)
def test_what_never_changes_is_refused(kept: Release, body: Body, change: Body, why: str) -> None:
    with pytest.raises(Refused, match=why):
        kept.cluster.patch(body["kind"], kept.namespace, "kept", {"spec": change})


def test_names_at_their_limit_are_taken(lakehouse: Release) -> None:
    lakehouse.apply(vector_index("a" * 63, suspend=True), index_snapshot("b" * 250, "a" * 63))
    lakehouse.cluster.delete("VectorIndex", lakehouse.namespace, "a" * 63)
    lakehouse.cluster.delete("IndexSnapshot", lakehouse.namespace, "b" * 250)


ROWS = b"id\n1\n"


@pytest.fixture(scope="module")
def told(kept: Release) -> Release:
    """The gateway has heard of what is declared; asking for a deletion changes nothing before that."""
    for path in ("/v1/catalog/dataset/kept", "/v1/vectors/index/kept"):
        with kept.http() as http:
            until(
                f"DELETE {path} to be refused",
                partial(http.delete, path),
                lambda said: said.status_code == 409,
            )
    return kept


def test_a_declared_dataset_is_changed_by_its_resource_only(told: Release) -> None:
    with told.http("write") as http:
        answers = [
            http.post("/v1/ingest?name=kept", content=ROWS),
            http.post("/v1/ingest", files={"file": ("a.csv", ROWS)}, data={"name": "kept"}),
            http.post("/v1/catalog/register", json={"name": "kept", "schema_fingerprint": "f"}),
            http.delete("/v1/catalog/dataset/kept"),
        ]
        why = (
            f"the dataset is declared by Dataset/{told.namespace}/kept: change, apply or delete that resource. "
            "dataset=`kept`"
        )
        assert [(answer.status_code, answer.json()["detail"]) for answer in answers] == [(409, why)] * 4
        assert http.get("/v1/catalog/manifest/kept").status_code == 404


def test_a_declared_index_is_created_and_deleted_by_its_resource_only(told: Release) -> None:
    with told.http("write") as http:
        answers = [
            http.post("/v1/vectors/index", json={"name": "kept", "dimension": 8}),
            http.delete("/v1/vectors/index/kept"),
        ]
        why = f"the index is declared by VectorIndex/{told.namespace}/kept: apply or delete that resource. index=`kept`"
        assert [(answer.status_code, answer.json()["detail"]) for answer in answers] == [(409, why)] * 2


def test_what_nobody_declares_is_changed_over_http(told: Release) -> None:
    with told.http("write") as http:
        assert http.post("/v1/ingest?name=loose", content=ROWS).status_code == 200
        second = http.post("/v1/ingest", files={"file": ("a.csv", b"id\n2\n")}, data={"name": "loose"})
        assert second.json()["manifest"]["version"] == 2, second.text
        assert http.delete("/v1/catalog/dataset/loose").status_code == 204
        assert http.post("/v1/vectors/index", json={"name": "loose", "dimension": 8}).status_code == 201
        assert http.delete("/v1/vectors/index/loose").status_code == 204
