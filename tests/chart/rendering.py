"""The chart, rendered by the real helm, and what tests ask about it.

helm is built once from its Go module and kept, as MinIO is.  What this does not do: talk to a cluster.
"""

import contextlib
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from e2e.engines import EngineError
from e2e.engines.programs import KUBERNETES, PROGRAMS, program

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "lakehouse"
VALUES = Path(__file__).parent / "values"
RELEASE, NAMESPACE = "lake", "shop"

Body = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it; skips the test, saying why, where there is none and none can be built."""
    try:
        binary = program("helm")
    except EngineError as error:
        pytest.skip(str(error))
    return subprocess.run([str(binary), *arguments], capture_output=True, text=True, check=False, timeout=120)


def template(*arguments: str, release: str = RELEASE) -> subprocess.CompletedProcess[str]:
    """`helm template` of the chart; helm built from its module needs to be told which Kubernetes it renders for."""
    return helm(
        "template", release, str(CHART), "--namespace", NAMESPACE, "--kube-version", KUBERNETES, *arguments
    )


@functools.cache
def text(*arguments: str) -> str:
    """What `helm template` prints; fails the test where it does not succeed."""
    done = template(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def objects(*arguments: str) -> tuple[Body, ...]:
    """Every rendered object, hooks too, without the CRDs (see `crds`)."""
    return tuple(loaded(text("--set", "crds.enabled=false", *arguments)))


def loaded(documents: str) -> Iterator[Body]:
    """The objects of a stream of YAML."""
    yield from (body for body in YAML(typ="safe", pure=True).load_all(documents) if body)


def of_kind(bodies: tuple[Body, ...], kind: str) -> dict[str, Body]:
    """Those of one kind, by name."""
    return {body["metadata"]["name"]: body for body in bodies if body["kind"] == kind}


def pods(bodies: tuple[Body, ...]) -> Iterator[tuple[str, Body]]:
    """The spec of every pod there will be, with what makes it."""
    for body in bodies:
        name = f"{body['kind']}/{body['metadata']['name']}"
        if body["kind"] == "Pod":
            yield name, body["spec"]
        elif "template" in body.get("spec", {}):
            yield name, body["spec"]["template"]["spec"]


def sets() -> list[str]:
    """The value sets that everything is checked with."""
    return sorted(path.stem for path in VALUES.glob("*.yaml"))


def values(name: str) -> tuple[str, str]:
    """Arguments for one of `sets`."""
    return "--values", str(VALUES / f"{name}.yaml")


def environment(container: Body) -> dict[str, str]:
    """Variables with plain values."""
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


RANDOM = (
    (re.compile(r'^(  (?:admin|read|write|keys\.json|peer-key|AWS_\w+): )"[^"]+"$', re.MULTILINE), r'\1"…"'),
    (re.compile(r'^( +lakehouse\.agentview\.dev/keys: )"[0-9a-f]+"$', re.MULTILINE), r'\1"…"'),
)


def without_chance(rendered: str) -> str:
    """The text without what is new in every rendering: keys and their hashes."""
    for pattern, replacement in RANDOM:
        rendered = pattern.sub(replacement, rendered)
    return rendered


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build helm before the first test: it takes longer than a test may."""
    here = Path(__file__).parent
    if (PROGRAMS / "helm").is_file() or not any(here in item.path.parents for item in session.items):
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    shown = capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
    with shown, contextlib.suppress(EngineError):  # the tests themselves say why they are skipped
        program("helm")
