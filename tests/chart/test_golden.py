"""What the chart renders is what was reviewed: one file per value set, without the CRDs.

`LAKEHOUSE_UPDATE_GOLDEN=1 pytest tests/chart/test_golden.py` writes them anew; read the difference before it is kept.
"""

import difflib
import os
from pathlib import Path

import pytest

from chart.rendering import CHART, helm, sets, text, values, without_chance
from e2e.engines.programs import KUBERNETES

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", sets())
def test_a_value_set_renders_what_was_reviewed(name: str) -> None:
    rendered = without_chance(text("--set", "crds.enabled=false", *values(name)))
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("LAKEHOUSE_UPDATE_GOLDEN"):
        file.write_text(rendered, encoding="utf-8")
    before = file.read_text(encoding="utf-8")
    difference = "\n".join(difflib.unified_diff(before.splitlines(), rendered.splitlines(), lineterm="", n=1))
    assert difference == "", f"set LAKEHOUSE_UPDATE_GOLDEN=1 if this is meant:\n{difference}"


def test_every_golden_file_has_its_value_set() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.yaml")) == sets()


@pytest.mark.parametrize("name", sets())
def test_a_value_set_is_linted_without_a_warning(name: str) -> None:
    done = helm("lint", "--strict", "--kube-version", KUBERNETES, str(CHART), *values(name))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


def test_two_renderings_differ_in_chance_alone() -> None:
    arguments = ("--set", "crds.enabled=false", *values("evaluation"))
    again = without_chance(text(*arguments, "--set", "fullnameOverride="))
    assert without_chance(text(*arguments)) == again
