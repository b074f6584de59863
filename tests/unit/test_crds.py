"""The resource definitions: each rule tried both ways, and what the API server would say of the schemas themselves."""

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lakehouse.control import crd, documents, kinds, packaged, reference
from lakehouse.control.conditions import DATASET_CONDITIONS, INDEX_CONDITIONS, SNAPSHOT_CONDITIONS
from lakehouse.control.crd import Definition
from lakehouse.control.documents import shown
from lakehouse.core.errors import Invalid, NotFound
from lakehouse.core.schema import SchemaPolicy
from lakehouse.core.types import DIMENSION_MAX, EF_MAX, M_MAX, M_MIN, Distance
from lakehouse.ingest.formats import OPTIONS, Format
from lakehouse.ingest.spec import SOURCES_MAX, TRANSFORM_BYTES_MAX

ROOT = Path(__file__).resolve().parents[2]
DEFINITIONS = packaged.definitions()
SPECS: dict[str, dict[str, Any]] = {
    "VectorIndex": {"dimension": 3},
    "Dataset": {"sources": [{"uri": "s3://raw/a.csv"}]},
    "IndexSnapshot": {"indexRef": {"name": "products"}},
}
SOURCE = {"dataset": {"name": "catalog", "idColumn": "id", "vectorColumn": "embedding"}}


def body(kind: str, name: str = "products", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": kinds.API_VERSION,
        "kind": kind,
        "metadata": {"name": name},
        "spec": {**copy.deepcopy(SPECS[kind]), **spec},
    }


def problems(new: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> list[str]:
    definition = DEFINITIONS[new["kind"]]
    before = crd.check(definition, old).body if old is not None else None
    return [f"{shown(one.path)}: {one.message}" for one in crd.check(definition, new, before).problems]


def defaulted(new: Mapping[str, Any]) -> dict[str, Any]:
    checked = crd.check(DEFINITIONS[new["kind"]], new)
    assert checked.problems == ()
    return dict(checked.body["spec"])


# ---- the examples of the design -------------------------------------------------------------------------------------

WHOLE = """\
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: VectorIndex
metadata: {name: products, labels: {team: search}, annotations: {note: any text at all}}
spec:
  dimension: 384
  distance: cosine
  hnsw: {m: 16, efConstruction: 200, efSearch: 64}
  shards: 1
  replicas: 2
  source: {dataset: {name: products, idColumn: id, vectorColumn: embedding, metadataColumns: [price], follow: Latest}}
  snapshots: {schedule: "0 */6 * * *", timeZone: Etc/UTC, suspend: false, retention: {keepLast: 7, keepWithin: 720h}}
  storage:
    s3: {endpoint: "http://minio:9000", bucket: raw, prefix: shop, region: eu, caBundle: PEM}
    credentialsSecretRef: {name: s3}
    cache: {size: 20Gi}
  suspend: false
  deletionPolicy: Retain
  pod:
    resources: {requests: {cpu: 2, memory: 4Gi}, limits: {memory: 8Gi}}
    nodeSelector: {disk: fast}
    tolerations: [{key: spot, operator: Exists, effect: NoSchedule, tolerationSeconds: 30}]
    affinity: {nodeAffinity: {anything: {goes: here}}}
    topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway}]
---
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: VectorIndex
metadata: {name: fresh}
spec:
  dimension: 384
  drain: {into: workers, maxItems: 500, maxAge: 5m, onConflict: Replace}
  bootstrap: {snapshot: {uri: "s3://backup/x.lhv1"}}
---
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: Dataset
metadata: {name: products}
spec:
  sources: [{uri: "s3://raw/products/*.csv", format: csv, options: {header: "true", delimiter: ";"}}]
  mode: Append
  transform: {sql: "SELECT * FROM source WHERE price > 0"}
  schema: {policy: AddOnly, fingerprint: ""}
  refresh: {schedule: "15 * * * *", timeZone: Europe/Stockholm, suspend: false}
  retention: {keepVersions: 5}
  rejects: {max: 100}
  storage: {s3: {bucket: raw}}
  deletionPolicy: Delete
  job: {activeDeadlineSeconds: 600, resources: {requests: {cpu: 500m}}}
---
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: IndexSnapshot
metadata: {name: before-the-sale.1}
spec: {indexRef: {name: products}, deadlineSeconds: 600, deletionPolicy: Delete}
"""


def test_every_field_of_every_kind_is_taken_and_parsed() -> None:
    taken = [crd.accepted(one, DEFINITIONS) for one in documents.parse(WHOLE)]
    index, fresh, dataset, snapshot = (kinds.parse(one["kind"], one["spec"]) for one in taken)
    assert isinstance(index, kinds.VectorIndexSpec)
    assert index.read_only
    assert index.params("products").m == 16
    assert isinstance(fresh, kinds.VectorIndexSpec)
    assert fresh.drain == kinds.Drain("workers", 500)
    assert fresh.bootstrap == kinds.Bootstrap(uri="s3://backup/x.lhv1")
    assert isinstance(dataset, kinds.DatasetSpec)
    assert (dataset.mode, dataset.rejects_max, dataset.deadline_s) == (kinds.IngestMode.APPEND, 100, 600)
    assert isinstance(snapshot, kinds.IndexSnapshotSpec)
    assert snapshot.deletion_policy is kinds.DeletionPolicy.DELETE


def test_defaults_are_filled_in_as_the_api_server_does() -> None:
    assert defaulted(body("VectorIndex", source=SOURCE, drain=None, hnsw=None)) == {
        "dimension": 3,
        "distance": "cosine",
        "hnsw": {"m": 16, "efConstruction": 200, "efSearch": 64},
        "shards": 1,
        "replicas": 1,
        "source": {"dataset": {**SOURCE["dataset"], "metadataColumns": [], "follow": "Once"}},
        "suspend": False,
        "deletionPolicy": "Retain",
    }
    assert defaulted(body("Dataset")) == {
        "sources": [{"uri": "s3://raw/a.csv", "options": {}}],
        "mode": "Replace",
        "schema": {"policy": "AddOnly", "fingerprint": ""},
        "refresh": {"timeZone": "Etc/UTC", "suspend": False},
        "retention": {"keepVersions": 5},
        "job": {"activeDeadlineSeconds": 3600},
        "deletionPolicy": "Retain",
    }
    assert defaulted(body("IndexSnapshot")) == {
        "indexRef": {"name": "products"},
        "deadlineSeconds": 600,
        "deletionPolicy": "Retain",
    }


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_defaults_of_the_schema_are_those_of_the_values(kind: str) -> None:
    filled = {
        name: value for name, value in defaulted(body(kind)).items() if name != "job"
    }  # kept as written
    assert kinds.parse(kind, SPECS[kind]) == kinds.parse(kind, filled)


def test_optional_parts_have_the_same_defaults_in_both() -> None:
    drain, snapshots = {"into": "x"}, {"schedule": "0 0 * * *"}
    short = body("VectorIndex", drain=drain, snapshots=snapshots)
    assert kinds.parse("VectorIndex", short["spec"]) == kinds.parse("VectorIndex", defaulted(short))


def test_a_whole_number_is_an_integer_however_it_is_written() -> None:
    dimension = defaulted(body("VectorIndex", dimension=3.0))["dimension"]
    assert (dimension, type(dimension)) == (3, int)


def test_a_null_is_as_good_as_nothing() -> None:
    options = {"header": None, "delimiter": ";"}
    nulls = body("Dataset", sources=[{"uri": "a", "format": None, "options": options}], transform=None)
    assert defaulted(nulls)["sources"] == [{"uri": "a", "options": {"delimiter": ";"}}]


def test_defaulting_changes_nothing_of_what_was_given_and_drops_status() -> None:
    given = body("VectorIndex") | {"status": {"items": 3}}
    before = copy.deepcopy(given)
    checked = crd.check(DEFINITIONS["VectorIndex"], given)
    assert given == before
    assert "status" not in checked.body


# ---- rules, both ways -----------------------------------------------------------------------------------------------

S3_A, S3_B = {"s3": {"bucket": "aaa", "prefix": "p"}}, {"s3": {"bucket": "bbb", "prefix": "p"}}
S3_Q = {"s3": {"bucket": "aaa", "prefix": "q"}}
BOOT = {"snapshot": {"name": "nightly"}}
LATEST = {"dataset": {**SOURCE["dataset"], "follow": "Latest"}}
DRAIN = {"into": "workers"}

RULES: list[tuple[dict[str, Any], dict[str, Any] | None, str]] = [
    # the new object, the old one, and what the refusal says; "" where it is taken
    (body("VectorIndex", name="a" * 63), None, ""),
    (body("VectorIndex", name="a" * 64), None, "has at most 63 lower-case letters"),
    (body("VectorIndex", name="a.b"), None, "has at most 63 lower-case letters"),
    (body("VectorIndex", name="2a"), None, "begins with a letter"),
    (body("VectorIndex", name="a-2-b"), None, ""),
    (body("VectorIndex", drain={"into": "workers"}), None, ""),
    (body("VectorIndex", drain={"into": "products"}), None, "cannot drain into itself"),
    (body("VectorIndex", source=SOURCE), None, ""),
    (body("VectorIndex", bootstrap=BOOT), None, ""),
    (body("VectorIndex", source=SOURCE, bootstrap=BOOT), None, "source and bootstrap exclude each other"),
    (body("VectorIndex", source=SOURCE, drain=DRAIN), None, ""),
    (body("VectorIndex", source=LATEST, drain=DRAIN), None, "cannot be drained"),
    (body("VectorIndex", dimension=3), body("VectorIndex", dimension=3), ""),
    (body("VectorIndex", dimension=4), body("VectorIndex", dimension=3), "dimension cannot be changed"),
    (body("VectorIndex", distance="cosine"), body("VectorIndex"), ""),
    (body("VectorIndex", distance="dot"), body("VectorIndex"), "distance cannot be changed"),
    (body("VectorIndex"), body("VectorIndex", distance="dot"), "distance cannot be changed"),
    (body("VectorIndex", shards=1), body("VectorIndex"), ""),
    (body("VectorIndex", shards=2), body("VectorIndex"), "shards cannot be changed"),
    (body("VectorIndex", bootstrap=BOOT), body("VectorIndex", bootstrap=BOOT), ""),
    (body("VectorIndex"), body("VectorIndex", bootstrap=BOOT), ""),
    (
        body("VectorIndex", bootstrap=BOOT),
        body("VectorIndex"),
        "bootstrap is given when the index is created",
    ),
    (
        body("VectorIndex", bootstrap={"snapshot": {"name": "other"}}),
        body("VectorIndex", bootstrap=BOOT),
        "bootstrap is given when the index is created",
    ),
    (body("VectorIndex", bootstrap={"snapshot": {"uri": "x.lhv1"}}), None, ""),
    (
        body("VectorIndex", bootstrap={"snapshot": {"uri": "x.lhv1", "name": "y"}}),
        None,
        "exactly one of name and uri",
    ),
    (body("VectorIndex", bootstrap={"snapshot": {}}), None, "exactly one of name and uri"),
    (body("VectorIndex", bootstrap={"snapshot": {"uri": "s3://backup/x.json"}}), None, ""),
    (body("VectorIndex", bootstrap={"snapshot": {"uri": "https://backup/x.lhv1"}}), None, "s3:// or file://"),
    (body("VectorIndex", bootstrap={"snapshot": {"uri": "s3://backup/x"}}), None, "URI ends in .lhv1"),
    (body("IndexSnapshot", name="a" * 250), None, ""),
    (body("IndexSnapshot", name="a" * 251), None, "at most 250 characters"),
    (body("IndexSnapshot"), body("IndexSnapshot"), ""),
    (body("IndexSnapshot", deadlineSeconds=60), body("IndexSnapshot"), "cannot be changed"),
    (body("IndexSnapshot", indexRef={"name": "b"}), body("IndexSnapshot"), "cannot be changed"),
    (body("IndexSnapshot", deletionPolicy="Delete"), body("IndexSnapshot"), ""),
    (body("Dataset", name="a.b"), None, "no dot"),
    (body("Dataset", sources=[{"uri": "file:///x.csv"}]), None, ""),
    (body("Dataset", sources=[{"uri": "data/x.csv"}]), None, ""),
    (body("Dataset", sources=[{"uri": "http://x/y.csv"}]), None, "s3:// or file://"),
    (
        body("Dataset", sources=[{"uri": "s3://b/_catalog/data/products/1.parquet"}]),
        None,
        "outside _catalog/",
    ),
    (body("Dataset", sources=[{"uri": "s3://b/catalog/x.csv"}]), None, ""),
    (body("Dataset", sources=[{"uri": "a", "options": dict.fromkeys(OPTIONS, "1")}]), None, ""),
    (body("Dataset", sources=[{"uri": "a", "options": {"delim": ";"}}]), None, "the options are delimiter,"),
]
for _kind in ("VectorIndex", "Dataset"):
    RULES += [
        (body(_kind, storage=S3_A), body(_kind, storage=S3_A), ""),
        (body(_kind, storage=S3_A | {"cache": {"size": "1Gi"}}), body(_kind, storage=S3_A), ""),
        (body(_kind, storage=S3_B), body(_kind, storage=S3_A), "storage.s3.bucket cannot be changed"),
        (body(_kind, storage=S3_Q), body(_kind, storage=S3_A), "storage.s3.prefix cannot be changed"),
        (body(_kind), body(_kind, storage=S3_A), "storage.s3.bucket cannot be changed"),
        (body(_kind, storage=S3_A), body(_kind), "storage.s3.bucket cannot be changed"),
        (body(_kind, storage={"s3": {}}), body(_kind), ""),
    ]


@pytest.mark.parametrize(("new", "old", "refusal"), RULES)
def test_each_rule_takes_what_it_should_and_refuses_the_rest(
    new: dict[str, Any], old: dict[str, Any] | None, refusal: str
) -> None:
    told = problems(new, old)
    assert (told == []) == (refusal == "")
    assert all(refusal in one for one in told[:1])


def test_every_rule_is_tried_both_ways() -> None:
    tried = [refusal for _, _, refusal in RULES if refusal]
    for definition in DEFINITIONS.values():
        for path, schema in walk(definition.schema):
            for rule in schema.get("x-kubernetes-validations", ()):
                assert any(one in rule["message"] for one in tried), (
                    f"{definition.kind} {path}: {rule['message']}"
                )


# ---- structure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("VectorIndex", {"dimension": 0}, "spec.dimension: must be at least 1. dimension=`0`"),
        ("VectorIndex", {"dimension": 65_536}, "spec.dimension: must be at most 65535"),
        ("VectorIndex", {"dimension": 3.5}, "spec.dimension: is a number and must be an integer"),
        ("VectorIndex", {"dimension": "3"}, "spec.dimension: is a string and must be an integer"),
        ("VectorIndex", {"dimension": True}, "spec.dimension: is a boolean and must be an integer"),
        ("VectorIndex", {"dimension": None}, "spec.dimension: is missing: How many numbers each vector has"),
        ("VectorIndex", {"distance": "l2"}, "must be one of `cosine`, `euclidean`, `dot`"),
        ("VectorIndex", {"distance": "Cosine"}, "did you mean `cosine`?"),
        ("VectorIndex", {"replica": 2}, "spec.replica: no such field; did you mean `replicas`?"),
        ("VectorIndex", {"zzz": 2}, "spec.zzz: no such field; there are `bootstrap`, `deletionPolicy`,"),
        (
            "VectorIndex",
            {"hnsw": {"efsearch": 2}},
            "spec.hnsw.efsearch: no such field; did you mean `efSearch`?",
        ),
        ("VectorIndex", {"hnsw": []}, "spec.hnsw: is an array and must be an object"),
        ("VectorIndex", {"replicas": 0}, "must be at least 1"),
        (
            "VectorIndex",
            {"drain": {"into": "x", "maxAge": "5 min"}},
            "spec.drain.maxAge: is not written as it must be",
        ),
        (
            "VectorIndex",
            {"drain": {"into": "x", "maxAge": "0m"}},
            "spec.drain.maxAge: is not written as it must be",
        ),
        ("VectorIndex", {"snapshots": {"schedule": "0 0 30 2 *"}}, "spec.snapshots.schedule: the schedule"),
        (
            "VectorIndex",
            {"snapshots": {"schedule": "every single day"}},
            "spec.snapshots.schedule: is not written",
        ),
        (
            "VectorIndex",
            {"snapshots": {"schedule": "0 0 * * *", "timeZone": "Mars/X"}},
            "spec.snapshots.timeZone: no such time zone",
        ),
        (
            "VectorIndex",
            {"snapshots": {"schedule": "0 0 * * *", "retention": {}}},
            "must have at least 1 fields",
        ),
        (
            "VectorIndex",
            {"source": {"dataset": {**SOURCE["dataset"], "metadataColumns": ["a", "a"]}}},
            "same item twice",
        ),
        ("VectorIndex", {"pod": {"resources": {"limits": {"cpu": 1.5}}}}, "must be an integer or string"),
        ("VectorIndex", {"storage": {"cache": {"size": "20 GB"}}}, "spec.storage.cache.size: is not written"),
        ("Dataset", {"sources": []}, "spec.sources: must have at least 1 items"),
        ("Dataset", {"sources": [{"uri": "a"}, {"uri": "a"}]}, "spec.sources[1]: is there twice. uri=`a`"),
        (
            "Dataset",
            {"sources": [{"uri": "a", "options": {"header": True}}]},
            "sources[0].options.header: is a boolean",
        ),
        (
            "Dataset",
            {"schema": {"fingerprint": "abc"}},
            "spec.schema.fingerprint: is not written as it must be",
        ),
        (
            "Dataset",
            {"refresh": {"schedule": "61 * * * *"}},
            "spec.refresh.schedule: the schedule cannot be read",
        ),
        ("IndexSnapshot", {"deadlineSeconds": 1}, "must be at least 10"),
    ],
)
def test_each_wrong_field_is_told_by_its_path(kind: str, spec: dict[str, Any], message: str) -> None:
    (told,) = problems(body(kind, **spec))
    assert message in told


def test_a_spec_that_is_missing_or_null_is_one_problem() -> None:
    for kind in kinds.KINDS:
        for without in ({}, {"spec": None}):
            resource = {**{name: value for name, value in body(kind).items() if name != "spec"}, **without}
            (told,) = problems(resource)
            assert told.startswith("spec: is missing")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"name": "Products"}, "metadata.name: has lower-case letters"),
        ({"name": "-x"}, "metadata.name: has lower-case letters"),
        ({"name": "x\n"}, "metadata.name: has lower-case letters"),
        ({"name": "x", "lables": {}}, "metadata.lables: no such field; did you mean `labels`?"),
        (
            {"name": "x", "annotations": {"adopt": True}},
            "metadata.annotations.adopt: is a boolean and must be a string",
        ),
        ({"name": "x", "labels": {"a": "b c"}}, "metadata.labels.a: a label has at most 63"),
        ({"name": "x", "labels": []}, "metadata.labels: is an array and must be an object"),
        (
            {"name": "x", "annotations": {"a": "b" * 300_000}},
            "metadata.annotations: must have at most 262144 bytes",
        ),
    ],
)
def test_metadata_is_checked_as_kubernetes_does(metadata: dict[str, Any], message: str) -> None:
    resource = body("Dataset") | {"metadata": metadata}
    assert any(message in one for one in problems(resource))


def test_what_the_server_added_to_metadata_can_be_applied_again() -> None:
    metadata = {"name": "x", "uid": "u", "generation": 3, "resourceVersion": "7", "creationTimestamp": "t"}
    assert problems(body("Dataset") | {"metadata": metadata}) == []


def test_all_problems_are_told_at_once_in_the_order_they_stand() -> None:
    text = """\
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: VectorIndex
metadata:
  name: products
spec:
  dimension: 0
  distnace: dot
  hnsw:
    m: 1
  source: {dataset: {idColumn: id, vectorColumn: v}}
  bootstrap: {snapshot: {name: a, uri: b.lhv1}}
"""
    with pytest.raises(Invalid) as caught:
        crd.accepted(documents.parse(text, "f.yaml")[0], DEFINITIONS)
    assert [line.split(": ")[:2] for line in caught.value.message.splitlines()] == [
        ["f.yaml:6:3", "spec.dimension"],
        ["f.yaml:7:3", "spec.distnace"],
        ["f.yaml:9:5", "spec.hnsw.m"],
        ["f.yaml:10:12", "spec.source.dataset.name"],
        ["f.yaml:11:15", "spec.bootstrap.snapshot"],
    ]


# ---- the definitions themselves -------------------------------------------------------------------------------------


def walk(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every part of a structural schema."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from walk(inner, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk(schema["additionalProperties"], f"{path}{{}}")


PARTS = [
    pytest.param(definition, path, schema, id=f"{definition.kind}{path}")
    for definition in DEFINITIONS.values()
    for path, schema in walk(definition.schema)
    if path != ".metadata"  # Kubernetes' own; it allows nothing to be said about it
]


@pytest.mark.parametrize(("definition", "path", "schema"), PARTS)
def test_every_part_is_described_typed_and_bounded(
    definition: Definition, path: str, schema: dict[str, Any]
) -> None:
    assert schema.get("description", "").endswith("."), "every field is described, in sentences"
    typed = "type" in schema or schema.get("x-kubernetes-int-or-string")
    assert typed, "a structural schema gives every part a type"
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        assert path in (".spec.pod.affinity", ".spec.pod.topologySpreadConstraints[]")
    kind = schema.get("type")
    if not path.startswith(".spec"):
        return
    # What CEL costs is reckoned from these, and whoever reads the field can rely on them.
    if kind == "string":
        assert "maxLength" in schema or "enum" in schema
    if kind == "array":
        assert "maxItems" in schema
    if kind == "integer":
        assert {"minimum", "maximum", "format"} <= schema.keys() or path.endswith("tolerationSeconds")
    if "additionalProperties" in schema:
        assert "maxProperties" in schema


@pytest.mark.parametrize("definition", DEFINITIONS.values(), ids=list(DEFINITIONS))
def test_rules_have_messages_and_read_no_old_self_inside_lists(definition: Definition) -> None:
    for path, schema in walk(definition.schema):
        for rule in schema.get("x-kubernetes-validations", ()):
            assert rule["message"]
            assert "[]" not in path or "oldSelf" not in rule["rule"]


@pytest.mark.parametrize("definition", DEFINITIONS.values(), ids=list(DEFINITIONS))
def test_the_status_names_every_condition_and_columns_read_fields_that_are_there(
    definition: Definition,
) -> None:
    conditions = {
        "VectorIndex": INDEX_CONDITIONS,
        "Dataset": DATASET_CONDITIONS,
        "IndexSnapshot": SNAPSHOT_CONDITIONS,
    }
    listed = definition.schema["properties"]["status"]["properties"]["conditions"]
    assert (listed["x-kubernetes-list-type"], listed["x-kubernetes-list-map-keys"]) == ("map", ["type"])
    names = re.findall(r"[A-Z][A-Za-z]+", listed["items"]["properties"]["type"]["description"])
    assert names == list(conditions[definition.kind])
    paths = {path for path, _ in walk(definition.schema)} | {".metadata.creationTimestamp"}
    for column in definition.columns:
        assert re.sub(r"\[\?.*?\]", "[]", column.path) in paths


def test_a_column_reads_its_value() -> None:
    resource = {
        "spec": {"dimension": 3},
        "status": {"items": 0, "conditions": [{"type": "Accepted"}, {"type": "Ready", "status": "True"}]},
    }
    columns = {one.name: one for one in DEFINITIONS["VectorIndex"].columns}
    assert columns["Ready"].value(resource) == "True"
    assert columns["Items"].value(resource) == 0
    assert columns["Snapshot"].value(resource) is None
    assert columns["Up-To-Date"].value({"status": {"conditions": None}}) is None
    assert columns["Dimension"].wide
    assert not columns["Age"].wide


def test_bounds_are_those_of_the_engine() -> None:
    spec = DEFINITIONS["VectorIndex"].schema["properties"]["spec"]["properties"]
    hnsw = spec["hnsw"]["properties"]
    assert (spec["dimension"]["minimum"], spec["dimension"]["maximum"]) == (1, DIMENSION_MAX)
    assert (hnsw["m"]["minimum"], hnsw["m"]["maximum"]) == (M_MIN, M_MAX)
    assert hnsw["efSearch"]["maximum"] == hnsw["efConstruction"]["maximum"] == EF_MAX
    assert spec["distance"]["enum"] == [one.value for one in Distance]


def test_formats_options_and_limits_are_those_of_ingest() -> None:
    spec = DEFINITIONS["Dataset"].schema["properties"]["spec"]["properties"]
    source = spec["sources"]["items"]["properties"]
    assert source["format"]["enum"] == [one.value for one in Format]
    assert spec["schema"]["properties"]["policy"]["enum"] == [one.value for one in SchemaPolicy]
    assert spec["sources"]["maxItems"] <= SOURCES_MAX
    assert spec["transform"]["properties"]["sql"]["maxLength"] * 4 <= TRANSFORM_BYTES_MAX
    (rule,) = source["options"]["x-kubernetes-validations"]
    assert set(re.findall(r"'(\w+)'", rule["rule"])) == OPTIONS


def test_names_are_those_of_the_design() -> None:
    assert [(one.kind, one.plural, one.short_names) for one in DEFINITIONS.values()] == [
        ("VectorIndex", "vectorindexes", ("vix",)),
        ("Dataset", "datasets", ("dset",)),
        ("IndexSnapshot", "indexsnapshots", ("isnap",)),
    ]


def test_the_definitions_are_found_in_an_installation_and_in_the_source_tree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert {one.name for one in packaged.files()} == {one.name for one in (ROOT / "crds").glob("*.yaml")}
    (tmp_path / "crds").mkdir()
    (tmp_path / "crds" / "one.yaml").write_text("x")
    monkeypatch.setattr("lakehouse.control.packaged.resources.files", lambda _: tmp_path)
    assert [one.name for one in packaged.files()] == ["one.yaml"]
    monkeypatch.setattr(packaged, "__file__", str(tmp_path / "a" / "b" / "c" / "packaged.py"))
    assert [one.name for one in packaged.files()] == ["one.yaml"]
    (tmp_path / "crds" / "one.yaml").unlink()
    with pytest.raises(NotFound, match="not installed"):
        packaged.files()


def test_the_reference_is_written_from_the_definitions() -> None:
    assert (ROOT / "dataplane" / "RESOURCES.md").read_text("utf-8") == reference.markdown(DEFINITIONS)
