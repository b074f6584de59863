"""`lakehouse up -f`: files become datasets, datasets become indexes, and everything is told over HTTP and the CLI."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lakehouse.cli import yaml_files
from live_lake import LiveLake
from live_server import command_line, environment, serving
from ports import free_port

DATASET = """
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: Dataset
metadata: {name: products}
spec:
  sources: [{uri: products.parquet}]
"""
MAIN = """
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: VectorIndex
metadata: {name: main}
spec:
  dimension: 2
  distance: euclidean
  source: {dataset: {name: products, idColumn: id, vectorColumn: embedding, metadataColumns: [price]}}
---
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: VectorIndex
metadata: {name: fresh}
spec:
  dimension: 2
  distance: euclidean
  drain: {into: main, maxItems: 2, maxAge: 1h}
"""
RESTORED = """
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: IndexSnapshot
metadata: {name: kept}
spec: {indexRef: {name: main}}
---
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: VectorIndex
metadata: {name: restored}
spec:
  dimension: 2
  distance: euclidean
  bootstrap: {snapshot: {name: kept}}
"""


def small(home: Path) -> None:
    """The files that DATASET names."""
    LiveLake(home).parquet("products.parquet", ["a", "b"], [[1, 2], [3, 4]], price=[10, 20])


def test_the_whole_tour(up: Any, tmp_path: Path) -> None:
    small(tmp_path)
    lake = up(DATASET, MAIN)
    lake.until_ready("products", kind="Dataset")
    lake.until_ready("main", "fresh")
    found = lake.http.post("/v1/vectors/index/main/search", json={"vector": [1, 2], "filter": "price < 15"})
    assert [hit["id"] for hit in found.json()["results"]] == ["a"]

    assert lake.add("main", "c").status_code == 200  # follow Once: writable once it is built
    assert lake.add("fresh", "a", "d").status_code == 200
    lake.until(lambda: lake.ids("main") == {"a", "b", "c", "d"} and not lake.ids("fresh"), "drained")

    done = lake.cli("apply", "-f", str(lake.file("restored.yaml", RESTORED)), "--wait")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["indexsnapshot/kept", "created", "vectorindex/restored", "created"]
    assert lake.ids("restored") == {"a", "b", "c", "d"}

    table = lake.cli("get", "vix").stdout.splitlines()
    assert table[0].split()[:3] == ["NAME", "READY", "REASON"]
    assert [line.split()[0] for line in table[1:]] == ["fresh", "main", "restored"]
    assert "VersionPublished" in (told := lake.cli("describe", "dset/products").stdout) or "Published" in told
    assert json.loads(lake.cli("get", "isnap", "kept", "-o", "json").stdout)["status"]["items"] == 4

    gone = lake.cli("delete", "-f", str(lake.file("restored.yaml", RESTORED)), "--wait")
    assert gone.stdout.split() == ["vectorindex/restored", "deleted", "indexsnapshot/kept", "deleted"]
    assert lake.http.get("/v1/resources/vix/restored").status_code == 404
    assert lake.ids("restored") == {"a", "b", "c", "d"}  # Retain


def test_what_a_resource_declares_is_changed_by_the_resource_only(up: Any, tmp_path: Path) -> None:
    small(tmp_path)
    lake = up(DATASET, MAIN.replace("metadataColumns: [price]", "follow: Latest"))
    lake.until_ready("main")
    index = "/v1/vectors/index"
    answers = [
        lake.http.post(index, json={"name": "main", "dimension": 2}),
        lake.http.delete(f"{index}/main"),
        lake.add("main", "c"),
        lake.http.post(f"{index}/main/delete", json={"ids": ["a"]}),
        lake.http.post(f"{index}/fresh/merge", json={"dest": "main"}),
    ]
    assert [answer.status_code for answer in answers] == [409] * 5
    assert all("VectorIndex/main" in answer.json()["detail"] for answer in answers)
    assert lake.ids("main") == {"a", "b"}


def test_a_declared_dataset_takes_no_file_and_no_deletion_over_http(up: Any, tmp_path: Path) -> None:
    small(tmp_path)
    lake = up(DATASET)
    lake.until_ready("products", kind="Dataset")
    before = lake.http.get("/v1/catalog/manifest/products").json()
    rows = {"file": ("x.csv", b"id\n1\n")}
    answers = [
        lake.http.post("/v1/ingest?name=products", content=b"id\n1\n"),
        lake.http.post("/v1/ingest", files=rows, data={"name": "products"}),
        lake.http.delete("/v1/catalog/dataset/products"),
        lake.http.post("/v1/catalog/register", json={"name": "products", "schema_fingerprint": "f"}),
    ]
    assert [answer.status_code for answer in answers] == [409] * 4
    assert all("Dataset/products" in answer.json()["detail"] for answer in answers)
    assert lake.http.get("/v1/catalog/manifest/products").json() == before
    assert lake.http.post("/v1/ingest?name=other", content=b"id\n1\n").status_code == 200


def test_an_index_that_is_declared_and_not_there_yet_is_503_and_not_404(up: Any) -> None:
    lake = up(MAIN)  # without its dataset
    answer = lake.until(
        lambda: lake.condition("vix", "main", "SourceResolved")[1] == "DatasetNotFound"
    ) and lake.http.post("/v1/vectors/index/main/search", json={"vector": [1, 2]})
    assert (answer.status_code, answer.json()["outcome"]) == (503, "not_committed")
    assert "VectorIndex/main" in answer.json()["detail"]
    assert lake.http.get("/v1/vectors/index/nobody").status_code == 404


def test_a_suspended_index_is_503_until_it_is_not(up: Any) -> None:
    plain = MAIN.partition("---")[2].replace("drain: {into: main, maxItems: 2, maxAge: 1h}", "suspend: false")
    lake = up(plain)
    lake.until_ready("fresh")
    lake.add("fresh", "a")
    lake.cli("apply", "-f", str(lake.file("0.yaml", plain.replace("false", "true"))))
    lake.until(lambda: lake.condition("vix", "fresh", "Ready")[1] == "Suspended")
    answer = lake.http.post("/v1/vectors/index/fresh/search", json={"vector": [1, 2]})
    assert answer.status_code == 503
    lake.cli("apply", "-f", str(lake.file("0.yaml", plain)), "--wait")
    assert lake.ids("fresh") == {"a"}


def test_apply_waits_for_the_version_that_it_asked_for_and_for_the_index_that_follows(
    up: Any, tmp_path: Path
) -> None:
    small(tmp_path)
    follows = MAIN.partition("---")[0].replace("[price]}", "[price], follow: Latest}")
    lake = up(f"{follows}---{DATASET}")
    lake.until_ready("main")
    one = f"{DATASET}  transform: {{sql: SELECT * FROM source LIMIT 1}}\n"
    told = lake.cli("apply", "-f", str(lake.file("0.yaml", f"{follows}---{one}")), "--wait").stderr
    assert sorted(told.splitlines()) == [
        "dataset/products ready  version 2, 1 row",
        "vectorindex/main ready  1 item",
    ]
    assert lake.ids("main") == {"a"}
    wrong = lake.file("0.yaml", one.replace("FROM source", "FROM nobody"))
    failed = lake.cli("apply", "-f", str(wrong), "--wait", "--timeout", "12")
    *while_waiting, at_the_end = [line for line in failed.stderr.splitlines() if "RefreshFailed" in line]
    assert (failed.returncode, len(while_waiting), at_the_end.count("not ready after 12 s")) == (5, 1, 1)


def test_deleting_goes_on_where_one_is_not_there_and_says_so(up: Any) -> None:
    lake = up(MAIN)
    missing, there = lake.file("d.yaml", DATASET), lake.file("m.yaml", MAIN)
    answer = lake.cli("delete", "-f", str(there), "-f", str(missing), "--wait")
    assert (answer.returncode, "Dataset/products" in answer.stderr) == (3, True)
    assert answer.stdout.splitlines() == ["vectorindex/fresh deleted", "vectorindex/main deleted"]


def test_apply_says_what_it_did_and_diff_what_it_would(up: Any) -> None:
    fresh = MAIN.partition("---")[2].replace("into: main", "into: other")
    lake = up(fresh)
    same, other = lake.file("same.yaml", fresh), lake.file("other.yaml", fresh.replace("1h", "2h"))
    assert lake.cli("diff", "-f", str(same)).returncode == 0
    changed = lake.cli("diff", "-f", str(other))
    assert changed.returncode == 1
    assert "-    maxAge: 1h\n+    maxAge: 2h\n" in changed.stdout
    results = [lake.cli("apply", *args).stdout.strip() for args in (
        ("-f", str(same)), ("-f", str(other), "--dry-run"), ("-f", str(other)), ("-f", str(other)),
    )]  # fmt: skip
    assert results == [
        "vectorindex/fresh unchanged",
        "vectorindex/fresh configured (dry run)",
        "vectorindex/fresh configured",
        "vectorindex/fresh unchanged",
    ]


def test_what_is_not_allowed_is_400_with_every_problem(up: Any) -> None:
    lake = up()
    document = {
        "apiVersion": "lakehouse.agentview.dev/v1alpha1",
        "kind": "VectorIndex",
        "metadata": {"name": "x"},
        "spec": {"dimension": 0, "distanse": "cosine"},
    }
    answer = lake.apply(document)
    assert answer.status_code == 400
    assert {one["path"] for one in answer.json()["problems"]} == {"spec.dimension", "spec.distanse"}
    assert lake.get("/resources")["items"] == []
    assert lake.apply(document | {"spec": {"dimension": 2}}).status_code == 201
    changed = lake.apply(document | {"spec": {"dimension": 3}})
    assert changed.status_code == 400
    assert "dimension cannot be changed" in changed.json()["detail"]
    old = lake.apply(document | {"spec": {"dimension": 2}, "apiVersion": "lakehouse/v0"})
    assert (old.status_code, "apiVersion" in old.json()["detail"]) == (400, True)
    elsewhere = lake.http.put("/v1/resources/vix/y", json=document)
    assert elsewhere.status_code == 400
    assert lake.http.get("/v1/resources/pods").status_code == 404


BAD = {
    "not YAML": ("kind: [", r"x.yaml:1:"),
    "a tab": ("kind: VectorIndex\n\tspec: 1\n", r"x.yaml:2:1: a tab cannot indent"),
    "an unknown field": (MAIN.replace("maxItems", "maxItem"), "x.yaml:16:"),
    "two problems": (MAIN.replace("maxItems: 2", "maxItems: none").replace("1h", "soon"), "x.yaml:16:"),
    "an unknown kind": (DATASET.replace("Dataset", "DataSet"), "x.yaml:3:"),
    "the same resource twice": (f"{DATASET}---{DATASET}", "written twice"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_file_ends_up_before_it_serves_and_says_where(tmp_path: Path, name: str) -> None:
    text, told = BAD[name]
    (tmp_path / "x.yaml").write_text(text)
    port = free_port()
    done = subprocess.run(
        command_line("up", "--data", "data", "--port", str(port), "-f", "x.yaml"),
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_what_cannot_be_changed_ends_up_and_says_where(up: Any) -> None:
    plain = MAIN.partition("---")[2].replace("into: main", "into: other")
    lake = up(plain)
    wrong = lake.file("0.yaml", plain.replace("dimension: 2", "dimension: 3"))
    told = lake.cli("apply", "-f", "0.yaml")
    assert (told.returncode, "0.yaml:6:3: spec.dimension: " in told.stderr) == (2, True), told.stderr
    lake.server.terminate()
    lake.server.spawn()
    assert lake.server.process.wait(60) == 2
    assert f"{wrong}:6:3: spec.dimension: dimension cannot be changed" in lake.server.log_tail()


def test_up_again_finds_what_was_applied_and_needs_no_files(up: Any, tmp_path: Path) -> None:
    small(tmp_path)
    lake = up(DATASET, MAIN)
    lake.until_ready("main")
    assert lake.server.terminate() == 0
    lake.server._args = ()
    lake.start()
    lake.until_ready("main", "fresh")
    assert lake.ids("main") == {"a", "b"}


def test_watched_files_are_applied_when_they_change(up: Any) -> None:
    fresh = MAIN.partition("---")[2].replace("into: main", "into: other")
    lake = up(fresh, args=("--watch",))
    lake.until(lambda: lake.get("/resources")["count"] == 1)
    lake.file("0.yaml", fresh.replace("maxItems: 2", "maxItem: 3"))
    lake.until(lambda: "did you mean `maxItems`" in lake.server.log_tail(), "told")
    lake.file("0.yaml", fresh.replace("maxItems: 2", "maxItems: 3"))
    lake.until(lambda: lake.get("/resources/vix/fresh")["spec"]["drain"]["maxItems"] == 3, "applied")


def test_files_of_the_old_system_begin_an_index_and_one_that_does_not_fit_is_told(
    up: Any, tmp_path: Path
) -> None:
    golden = Path(__file__).parents[1] / "format" / "golden"
    for name in ("v1-euclidean-300x16.lhv1", "v2-cosine-50x8.lhv1"):
        (tmp_path / name).write_bytes((golden / name).read_bytes())
    lake = up(
        _from_file("first", 16, "euclidean", "v1-euclidean-300x16.lhv1"),
        _from_file("second", 8, "cosine", "v2-cosine-50x8.lhv1"),
        _from_file("wrong", 9, "cosine", "v2-cosine-50x8.lhv1"),
    )
    lake.until_ready("first", "second")
    lengths = [lake.get(f"/vectors/index/{name}")["length"] for name in ("first", "second")]
    assert lengths == [300, 50]
    told = lake.until(lambda: (found := lake.condition("vix", "wrong", "Restored"))[0] == "False" and found)
    assert (told[1], "dimension" in told[2]) == ("RestoreFailed", True)


def _from_file(name: str, dimension: int, distance: str, file: str) -> str:
    return f"""
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: VectorIndex
metadata: {{name: {name}}}
spec:
  dimension: {dimension}
  distance: {distance}
  bootstrap: {{snapshot: {{uri: {file}}}}}
"""


def test_a_stop_in_the_middle_of_reading_is_quick_and_leaves_nothing_half_done(
    up: Any, tmp_path: Path
) -> None:
    rows = "".join(f"{number},{number * 7 % 1013},{'x' * 200}\n" for number in range(400_000))
    (tmp_path / "products.csv").write_text(f"id,n,text\n{rows}")
    lake = up(DATASET.replace("parquet", "csv"))
    lake.until(lambda: lake.condition("dset", "products", "Ready")[1] == "Refreshing", "reading")
    assert lake.server.terminate() == 0
    assert list((tmp_path / "data").rglob("_catalog/manifests/*/*")) == []
    lake.start()
    lake.until_ready("products", kind="Dataset")
    assert lake.get("/resources/dset/products")["status"]["current"]["rows"] == 400_000


def test_serve_keeps_no_resources_and_says_who_does(tmp_path: Path) -> None:
    import httpx

    with serving("memory:", tmp_path / "log") as server:
        answer = httpx.get(f"{server.url}/v1/resources", timeout=60)
    assert answer.status_code == 404
    assert "lakehouse up" in answer.json()["detail"]


def test_the_examples_are_valid_and_name_files_that_exist() -> None:
    examples = Path(__file__).parents[2] / "examples"
    wanted = yaml_files.read([examples, examples / "restore"])
    assert [one.key for one in wanted] == [
        ("Dataset", "packages"),
        ("Dataset", "sections"),
        ("VectorIndex", "packages"),
        ("VectorIndex", "fresh"),
        ("IndexSnapshot", "packages-by-hand"),
        ("VectorIndex", "packages-restored"),
    ]
    for dataset in wanted[:2]:
        for source in dataset.body["spec"]["sources"]:
            assert Path(source["uri"].removeprefix("file://")).is_file()
