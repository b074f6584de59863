"""The Dockerfile installs what was locked and copies what is there; building it is for the end-to-end tests."""

import re
import tomllib

import pytest

from chart.rendering import ROOT

LOCKS = ROOT / ".ci" / "requirements"
DOCKERFILE = (ROOT / "dataplane" / "Dockerfile").read_text(encoding="utf-8")
PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==(\S+)", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    return dict(PIN.findall((LOCKS / f"{name}.lock").read_text(encoding="utf-8")))


@pytest.mark.parametrize("image", ["dataplane", "operator"])
def test_an_image_holds_the_versions_that_were_tested_and_nothing_for_developers(image: str) -> None:
    found = pins(image)
    assert found.items() <= pins("all").items()
    assert (
        not {"pytest", "mypy", "ruff", "hypothesis", "pandas", "polars", "matplotlib", "schemathesis"}
        & found.keys()
    )


def test_the_images_hold_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[~=<>\[; ]", one, maxsplit=1)[0].replace(".", "-") for one in requirements}

    assert names(project["dependencies"]) <= pins("dataplane").keys()
    assert names(project["optional-dependencies"]["operator"]) <= pins("operator").keys()
    assert not {"duckdb", "pyarrow", "hnswlib"} & pins("operator").keys()
    assert not {"kopf", "aiohttp"} & pins("dataplane").keys()


def test_every_package_that_is_fetched_is_known_by_its_hash() -> None:
    for line in re.findall(
        r"pip (?:\S+ )*?(?:install|wheel|download) [^;&]*", DOCKERFILE.replace("\\\n", " ")
    ):
        assert "--require-hashes" in line or "--no-index" in line, line


def test_the_dockerfile_copies_what_is_there_and_not_ignored() -> None:
    admitted = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(source == one or source.startswith(f"{one}/") for one in admitted), source


def test_images_run_as_somebody_without_rights_and_end_on_sigterm() -> None:
    runtime = DOCKERFILE[DOCKERFILE.index(" AS runtime") :]
    assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", runtime, re.MULTILINE)
    assert "STOPSIGNAL SIGTERM" in runtime
    assert "PYTHONSAFEPATH=1" in runtime
    assert "march=native" not in DOCKERFILE
