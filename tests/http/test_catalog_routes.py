"""The catalog routes of the contract."""

import httpx
import pytest

PARTS = [{"key": "lake/a.parquet", "size": 10, "big": 2**80, "text": "é"}]


def register(client: httpx.Client, name: str, **more: object) -> httpx.Response:
    return client.post("/catalog/register", json=registration(name=name, **more))


def registration(**change: object) -> dict[str, object]:
    return {"name": "bad", "schema_fingerprint": "f1", "objects": PARTS, "row_count": 5} | change


def test_register_publishes_a_first_version(client: httpx.Client) -> None:
    answer = register(client, "first")
    assert answer.status_code == 200
    manifest = answer.json()["manifest"]
    assert answer.json()["existing"] is False
    assert (manifest["name"], manifest["version"], manifest["row_count"]) == ("first", 1, 5)
    assert manifest["objects"] == PARTS
    assert client.get("/catalog/manifest/first").json() == manifest
    stored = client.get("/storage/get/_catalog/manifests/first/00000000000000000001.json")
    assert stored.json() == manifest


def test_the_same_again_is_existing_and_other_objects_make_a_new_version(client: httpx.Client) -> None:
    first = register(client, "again").json()["manifest"]
    same = register(client, "again").json()
    assert same == {"manifest": first, "existing": True}
    more = register(client, "again", objects=[*PARTS, {"key": "lake/b.parquet"}]).json()
    assert (more["existing"], more["manifest"]["version"]) == (True, 2)
    assert more["manifest"]["dataset_id"] == first["dataset_id"]
    assert client.get("/catalog/manifest/again").json() == more["manifest"]


def test_another_fingerprint_conflicts_and_changes_nothing(client: httpx.Client) -> None:
    before = register(client, "schema").json()["manifest"]
    assert register(client, "schema", schema_fingerprint="f2").status_code == 409
    assert client.get("/catalog/manifest/schema").json() == before


def test_list_has_the_newest_manifest_of_each_dataset(client: httpx.Client) -> None:
    names = ["listed one", "listed/two", "listed-ü"]
    for name in names:
        register(client, name)
        register(client, name, objects=[])
    listed = client.get("/catalog/list").json()
    assert listed["count"] == len(listed["manifests"])
    found = {manifest["name"]: manifest["version"] for manifest in listed["manifests"]}
    assert {name: found.get(name) for name in names} == dict.fromkeys(names, 2)
    assert client.get("/catalog/manifest/listed%2Ftwo").json()["name"] == "listed/two"


def test_a_bare_manifest_of_the_old_system_is_read_and_adopted(client: httpx.Client) -> None:
    bare = {"Name": "old", "schema_fingerprint": "f1", "objects": PARTS, "row_count": 3}
    assert client.put("/storage/put/_catalog/manifests/old.json", json=bare).is_success
    found = client.get("/catalog/manifest/old").json()
    assert (found["name"], found["version"], found["objects"], found["row_count"]) == ("old", 1, PARTS, 3)
    assert "old" in {manifest["name"] for manifest in client.get("/catalog/list").json()["manifests"]}
    assert register(client, "old").json() == {"manifest": found, "existing": True}
    following = register(client, "old", objects=[]).json()["manifest"]
    assert (following["version"], following["dataset_id"]) == (2, found["dataset_id"])
    first = client.get("/storage/get/_catalog/manifests/old/00000000000000000001.json").json()
    assert first == found


def test_a_missing_dataset_is_404(client: httpx.Client) -> None:
    assert client.get("/catalog/manifest/nothing").status_code == 404


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "x.json"},
        {"name": ".."},
        {"name": 7},
        {"name": "n" * 201},
        {"schema_fingerprint": ""},
        {"schema_fingerprint": None},
        {"objects": "many"},
        {"objects": [1]},
        {"row_count": -1},
        {"row_count": 1.5},
        {"row_count": 2**70},
    ],
    ids=str,
)
def test_a_bad_registration_is_refused(client: httpx.Client, change: dict[str, object]) -> None:
    before = client.get("/catalog/list").json()
    assert client.post("/catalog/register", json=registration(**change)).status_code == 400
    assert client.get("/catalog/list").json() == before


def test_a_registration_over_4_mebibytes_is_413(client: httpx.Client) -> None:
    answer = register(client, "fat", objects=[{"key": "k" * (4 << 20)}])
    assert answer.status_code == 413
    assert client.get("/catalog/manifest/fat").status_code == 404
