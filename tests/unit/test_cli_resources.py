"""How the command line judges, names and compares resources, without a server."""

from pathlib import Path
from typing import Any

import pytest

from lakehouse.cli import declared, kinds, yaml_files
from lakehouse.core.errors import Invalid

AT = "2026-05-04T12:00:00Z"
WRITTEN = """apiVersion: lakehouse.agentview.dev/v1alpha1
kind: VectorIndex
metadata: {name: a}
spec:
  dimension: 3
  shards: 2
"""


def resource(
    kind: str, generation: int = 2, *, spec: Any = None, **conditions: tuple[str, int]
) -> dict[str, Any]:
    """Conditions as reason and generation; `True` where the reason is a good one."""
    told = [
        {
            "type": name,
            "status": "True" if reason == "Good" else "False",
            "reason": reason,
            "message": "so it is",
            "observedGeneration": at,
        }
        for name, (reason, at) in conditions.items()
    ]
    return {
        "kind": kind,
        "metadata": {"name": "a", "generation": generation},
        "spec": spec or {},
        "status": {"conditions": told},
    }


@pytest.mark.parametrize(
    ("found", "settled"),
    [
        (resource("Dataset", Ready=("Good", 2), Fresh=("Good", 2)), True),
        (resource("Dataset", Ready=("Good", 2), Fresh=("Refreshing", 2)), False),
        (resource("Dataset", Ready=("Good", 2), Fresh=("Good", 1)), False),
        (resource("Dataset", Ready=("Good", 2)), False),
        (resource("VectorIndex", Ready=("Good", 2), UpToDate=("Good", 2)), True),
        (resource("VectorIndex", Ready=("Good", 2), UpToDate=("Building", 2)), False),
        (resource("IndexSnapshot", Complete=("Good", 2)), True),
        (resource("IndexSnapshot", Complete=("Running", 2)), False),
    ],
)
def test_a_wish_is_settled_when_it_was_seen_and_is_fulfilled(found: dict[str, Any], settled: bool) -> None:
    assert kinds.settled(found) is settled


def test_who_waits_is_told_what_failed_before_what_is_not_known_yet() -> None:
    found = resource(
        "Dataset", SchemaCompatible=("Pending", 2), Fresh=("RefreshFailed", 2), Ready=("Pending", 2)
    )
    found["status"] |= {"observedGeneration": 2}
    found["status"]["conditions"][0]["status"] = "Unknown"
    assert declared._standing(found) == "RefreshFailed so it is"


def test_who_waits_is_not_told_of_snapshots_and_pauses() -> None:
    found = resource(
        "VectorIndex",
        Ready=("Good", 2),
        SnapshotCurrent=("NeverTaken", 2),
        ReconciliationPaused=("Active", 2),
    )
    found["status"] |= {"observedGeneration": 2}
    assert declared._standing(found) == "waiting for the dataset it follows"


def test_what_is_to_rest_is_settled_by_resting() -> None:
    index = resource("VectorIndex", spec={"suspend": True}, Ready=("Suspended", 2), UpToDate=("Good", 2))
    assert (kinds.settled(index), kinds.rest(index)) == (True, "suspended")
    serving = resource("VectorIndex", spec={"suspend": True}, Ready=("Good", 2), UpToDate=("Good", 2))
    assert kinds.settled(serving) is False
    paused = resource(
        "Dataset", spec={"refresh": {"suspend": True}}, Ready=("Good", 2), Fresh=("Suspended", 2)
    )
    assert kinds.settled(paused) is True


def test_an_index_that_follows_is_settled_with_the_version_its_dataset_has() -> None:
    spec = {"source": {"dataset": {"name": "d", "follow": "Latest"}}}
    index = resource("VectorIndex", spec=spec, Ready=("Good", 2), UpToDate=("Good", 2))
    index["status"]["source"] = {"dataset": "d", "version": 1}
    assert kinds.followed(index) == "d"
    for version, settled in ((1, True), (2, False)):
        dataset = {"status": {"current": {"version": version}}}
        assert kinds.settled(index, dataset) is settled


def test_what_will_never_be_is_refused_but_not_for_an_old_generation() -> None:
    assert "so it is" in kinds.refused(resource("Dataset", Accepted=("InvalidSpec", 2)))
    assert "for good" in kinds.refused(
        resource("IndexSnapshot", Accepted=("Good", 2), Complete=("FilesGone", 2))
    )
    assert kinds.refused(resource("Dataset", Accepted=("InvalidSpec", 1))) == ""


def test_all_that_a_server_refuses_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(WRITTEN)
    (one,) = yaml_files.read([file])
    told = one.refused(Invalid("VectorIndex/a: spec.dimension: no\nspec.shards: no: never")).message
    assert told.splitlines() == [f"{file}:5:3: spec.dimension: no", f"{file}:6:3: spec.shards: no: never"]


def test_files_without_a_resource_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing yet\n")
    with pytest.raises(Invalid, match="no resource"):
        yaml_files.read([tmp_path])


def test_another_order_of_fields_is_no_difference() -> None:
    head = {"apiVersion": "v1", "kind": "K", "metadata": {"name": "a"}}
    before = {**head, "spec": {"a": 1, "b": {"x": 1, "y": [1]}}}
    after = {**head, "spec": {"b": {"y": [1], "x": 1}, "a": 1}}
    assert declared._difference(before, after, "k/a") == []
    changed = {**head, "spec": {"c": 3, "b": {"y": [1], "x": 2}, "a": 1}}
    lines = declared._difference(before, changed, "k/a")
    assert [one for one in lines if one[0] in "+-"][2:] == ["-    x: 1\n", "+    x: 2\n", "+  c: 3\n"]


def test_watching_tells_what_can_be_seen_under_one_head(capsys: pytest.CaptureFixture[str]) -> None:
    made = {"apiVersion": "v1", "kind": "VectorIndex", "metadata": {"name": "a", "creationTimestamp": AT}}
    table = declared._Growing([], wide=False, named=False)
    for items, position in ((1, "p1"), (1, "p2"), (22_000_000, "p3")):
        table.tell({**made, "spec": {}, "status": {"items": items, "position": position}})
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.startswith("NAME   READY")
    assert (first.split()[4], second.split()[4]) == ("1", "22000000")
