"""The engines as far as they can be tried without a cluster; `host` itself is tried by every other test here."""

import json
import tarfile
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from e2e import engines
from e2e.engines import EngineError, archive, kind, node
from e2e.engines.command import main
from e2e.release import merged

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
    assert config["name"] == kind.NAME
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
