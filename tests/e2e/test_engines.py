"""The engines as far as they can be tried without a cluster; `host` itself is tried by every other test here."""

import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from e2e import engines, images, run
from e2e.engines import EngineError, archive, host, kind, node
from e2e.engines.command import main
from e2e.release import CHART, merged

KIND_CLUSTER = {
    "type": "object",
    "required": ["kind", "apiVersion", "name", "nodes"],
    "additionalProperties": False,
    "properties": {
        "kind": {"const": "Cluster"},
        "apiVersion": {"const": "kind.x-k8s.io/v1alpha4"},
        "name": {"type": "string", "pattern": "^[a-z0-9.-]+$"},
        "nodes": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role"],
                "additionalProperties": False,
                "properties": {
                    "role": {"enum": ["control-plane", "worker"]},
                    "image": {"type": "string"},
                    "labels": {"type": "object"},
                    "extraMounts": {"type": "array"},
                    "extraPortMappings": {"type": "array"},
                    "kubeadmConfigPatches": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
        "networking": {"type": "object"},
        "featureGates": {"type": "object"},
        "runtimeConfig": {"type": "object"},
        "kubeadmConfigPatches": {"type": "array", "items": {"type": "string"}},
        "containerdConfigPatches": {"type": "array", "items": {"type": "string"}},
    },
}
"""The part of kind's own definition (kind.x-k8s.io/v1alpha4, `Cluster`) that a configuration may use here."""


def test_the_configuration_of_kind_is_one() -> None:
    (config,) = YAML(typ="safe").load_all(kind.CONFIG.read_text())
    jsonschema.validate(config, KIND_CLUSTER)
    assert config["name"] != kind.NAME
    assert [one["role"] for one in config["nodes"]].count("control-plane") == 1
    assert [one["role"] for one in config["nodes"]].count("worker") >= 2


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(EngineError, match=r"one of kind, host, context\. engine=`minikube`"):
        engines.of("minikube")


def test_a_context_is_never_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests delete namespaces: they run in the cluster that was named, and in no other."""
    monkeypatch.delenv("LAKEHOUSE_TEST_CONTEXT", raising=False)
    with pytest.raises(EngineError, match="LAKEHOUSE_TEST_CONTEXT"):
        engines.of("context").kubectl  # noqa: B018


def test_a_missing_program_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["kind", "up"]) == 1
    assert "not on the PATH: kind, kubectl, helm" in capsys.readouterr().err


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Stand-ins for the programs that need docker's daemon or a cluster; the commands that they were given."""
    log, programs = tmp_path / "log", tmp_path / "programs"
    programs.mkdir()
    for name in ("docker", "kind", "kubectl", "helm"):
        (programs / name).write_text(STAND_IN.format(log=log))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(images, "IMAGES", tmp_path)
    monkeypatch.setattr(images, "BASE", "")
    return lambda: log.read_text().splitlines() if log.exists() else []


STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >>{log}
case "$*" in
  "get clusters") echo "$STAND_IN_CLUSTERS" ;;
  "save --output "*) echo image >"$3" ;;
esac
"""


def test_docker_builds_each_image_once_and_the_nodes_pull_minio(
    ran: Callable[[], list[str]], tmp_path: Path
) -> None:
    found = images.of(kind.Kind())
    names = [found[target].name for target in images.TARGETS]
    archives = [tmp_path / f"docker-{target}-{found[target].tag}" for target in images.TARGETS]
    dockerfile = f"{images.ROOT}/dataplane/Dockerfile"
    assert ran() == [
        line
        for target, name, archive_ in zip(images.TARGETS, names, archives, strict=True)
        for line in (
            f"docker build --file {dockerfile} --target {target} --tag {name} {images.ROOT}",
            f"docker save --output {archive_}.partial {name}",
        )
    ]
    before = ran()
    assert images.of(kind.Kind()) == found
    assert ran() == before
    loaded = {name: images.loaded(kind.Kind(), image) for name, image in found.items()}
    assert ran()[len(before) :] == [
        f"kind load image-archive {archive_}.tar --name lakehouse-e2e" for archive_ in archives
    ]
    assert [image.name for image in loaded.values()] == [*names, images.MINIO]


def test_the_minio_that_nodes_pull_is_the_charts() -> None:
    chart = YAML(typ="safe").load((CHART / "values.yaml").read_text())
    image = chart["minio"]["image"]
    assert f"{image['registry']}/{image['repository']}:{image['tag']}" == images.MINIO


def test_a_registry_gets_the_images_that_docker_built(
    ran: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAKEHOUSE_TEST_CONTEXT", "theirs")
    monkeypatch.setenv("LAKEHOUSE_TEST_REGISTRY", "registry.example.com/team/")
    image = images.Archived("localhost/lakehouse-operator:1", tmp_path / "operator.tar")
    there = images.loaded(engines.of("context"), image)
    assert there.name == "registry.example.com/team/lakehouse-operator:1"
    images.renamed(engines.of("context"), there, "next")
    renamed = "registry.example.com/team/lakehouse-operator:next"
    assert ran() == [
        f"docker load --input {tmp_path}/operator.tar",
        f"docker tag localhost/lakehouse-operator:1 {there.name}",
        f"docker push {there.name}",
        f"docker tag {there.name} {renamed}",
        f"docker save --output {tmp_path}/renamed-operator-1.partial {renamed}",
    ]


def test_a_registry_is_asked_for_before_anything_is_built(
    ran: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKEHOUSE_TEST_CONTEXT", "theirs")
    monkeypatch.delenv("LAKEHOUSE_TEST_REGISTRY", raising=False)
    with pytest.raises(EngineError, match="LAKEHOUSE_TEST_REGISTRY"):
        engines.of("context").up()
    assert ran() == []


@pytest.mark.parametrize(
    ("clusters", "made"),
    [
        ("", ["create", "delete"]),
        ("lakehouse", ["create", "delete"]),
        ("lakehouse lakehouse-e2e", []),
    ],
)
def test_the_tests_end_the_cluster_that_they_made_and_no_other(
    ran: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, clusters: str, made: list[str]
) -> None:
    monkeypatch.setenv("STAND_IN_CLUSTERS", clusters)
    monkeypatch.setattr(sys, "argv", ["run", "kind"])
    monkeypatch.setattr(run, "_pytest", lambda *_, **__: 0)
    assert run.main() == 0
    acts = [line for line in ran() if line.startswith("kind") and "cluster " in line]
    assert [line.split()[1] for line in acts] == made
    assert all("--name lakehouse-e2e" in line for line in acts)


def test_who_is_refused_ends_no_cluster(
    ran: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(host.Host, "down", lambda self: pytest.fail("it was not made by this run"))
    monkeypatch.setattr(sys, "argv", ["run", "--engine", "host"])
    assert run.main() == 1
    assert "run it as root, or use kind" in capsys.readouterr().err


def test_a_cluster_that_was_half_made_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    acts = []

    def broken(self: host.Host) -> None:
        acts.append("up")
        raise EngineError("a node was not ready")

    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(host.Host, "up", broken)
    monkeypatch.setattr(host.Host, "down", lambda self: acts.append("down"))
    monkeypatch.setattr(sys, "argv", ["run", "--engine", "host"])
    assert run.main() == 1
    assert acts == ["up", "down"]


def test_an_archive_is_an_image_of_one_layer(tmp_path: Path) -> None:
    program, layer, target = tmp_path / "program", tmp_path / "layer.tar", tmp_path / "image.tar"
    program.write_bytes(b"#!/bin/true\n")
    archive.layer_of({"/usr/bin/program": program}, layer)
    archive.write(target, "localhost/a:1", layer, entrypoint=["/usr/bin/program"], user="1:1")
    with tarfile.open(target) as image:
        (manifest,) = json.load(image.extractfile("manifest.json") or pytest.fail("no manifest"))
        config = json.load(image.extractfile(manifest["Config"]) or pytest.fail("no config"))
        assert manifest["RepoTags"] == ["localhost/a:1"]
        assert manifest["Layers"] == ["layer.tar"]
    assert config["config"]["Entrypoint"] == ["/usr/bin/program"]
    assert config["config"]["User"] == "1:1"
    with tarfile.open(layer) as files:
        (entry,) = files.getmembers()
    assert (entry.name, entry.mode, entry.uid) == ("usr/bin/program", 0o755, 0)


def test_the_pods_of_two_nodes_have_networks_of_their_own() -> None:
    assert [node.pod_network(number) for number in (1, 2)] == ["10.232.1.0/24", "10.232.2.0/24"]


def test_values_are_merged_object_by_object() -> None:
    before = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert merged(before, {"a": {"c": 3}, "d": []}) == {"a": {"b": 1, "c": 3}, "d": []}
    assert before == {"a": {"b": 1, "c": 2}, "d": [1]}
