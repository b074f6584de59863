"""The layout of the repository holds, and what it says about itself is true."""

import ast
import dataclasses
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = {
    ".ci",
    ".dockerignore",
    ".editorconfig",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "charts",
    "crds",
    "dataplane",
    "examples",
    "hatch_build.py",
    "kind-config.yaml",
    "operator",
    "pyproject.toml",
    "tests",
}
FILE_BYTES_MAX = 8 << 20
"""What a clone costs: the real data in examples/ is the largest file."""
TEXT = {
    ".cfg",
    ".cpp",
    ".go",
    ".h",
    ".json",
    ".lock",
    ".md",
    ".mod",
    ".py",
    ".sum",
    ".toml",
    ".yaml",
    ".yml",
    "",
}


def tracked() -> list[Path]:
    """Files that belong to the repository: in the index, or new and not ignored."""
    if shutil.which("git") is None:
        pytest.skip("no git, so what belongs to the repository is unknown")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git clone, so what belongs to the repository is unknown")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def texts() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        if path.suffix in TEXT:
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8")


def test_the_top_level_holds_only_what_it_should() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in tracked()} == TOP_LEVEL


def test_operator_holds_no_module_of_its_own() -> None:
    assert [path.name for path in (ROOT / "operator").iterdir() if path.is_file()] == []


def test_operator_of_the_standard_library_wins_at_the_root() -> None:
    code = "import operator, sys; assert operator.add(1, 2) == 3; print(operator.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ROOT not in Path(done.stdout.strip()).parents


@pytest.mark.parametrize("name", ["operator", "http"])
def test_no_test_folder_hides_a_standard_module(name: str) -> None:
    """`tests` is on the tests' path: a folder there stays a bare one, and none is called operator."""
    assert not (ROOT / "tests" / name / "__init__.py").exists()
    assert not (ROOT / "tests" / "operator").exists()


def test_no_file_is_larger_than_a_clone_should_carry() -> None:
    assert [path for path in tracked() if path.stat().st_size > FILE_BYTES_MAX] == []


def test_no_file_names_a_package_registry_or_a_place_on_one_machine() -> None:
    hosts = ["py" + "pi.org", "python" + "hosted.org", "proxy." + "golang.org", "registry." + "npmjs"]
    places = ["/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/"]
    found = [
        f"{path}: {word}" for path, text in texts() for word in (*hosts, *places) if word in text.lower()
    ]
    assert found == []


def test_every_locked_dependency_has_a_hash() -> None:
    for lock in (ROOT / ".ci" / "requirements").glob("*.lock"):
        for entry in re.sub(r"\\\n", " ", lock.read_text()).splitlines():
            assert re.match(r"[A-Za-z0-9._-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", entry), (
                f"{lock.name}: {entry}"
            )


def test_every_declared_dependency_is_locked_within_its_pin() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = {
        "build": project["dependency-groups"]["build"],
        "all": project["project"]["dependencies"] + project["dependency-groups"]["dev"],
    }
    for lock, requirements in declared.items():
        text = (ROOT / ".ci" / "requirements" / f"{lock}.lock").read_text()
        locked = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE))
        for requirement in map(Requirement, requirements):
            assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), (
                f"{lock}.lock: {requirement}"
            )


def test_the_commands_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z0-9-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_the_way_to_a_first_cluster_is_the_same_in_both_documents() -> None:
    """And the images that it builds are those that the chart asks for."""
    section = (ROOT / "README.md").read_text().partition("\n## On Kubernetes\n")[2].partition("\n## ")[0]
    guide = (ROOT / "dataplane" / "KUBERNETES.md").read_text()
    blocks = re.findall(r"^```\n.*?^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    assert [block for block in blocks if block not in guide] == []
    chart = (ROOT / "charts" / "lakehouse" / "Chart.yaml").read_text()
    version = re.findall(r"^appVersion: (\S+)$", chart, re.MULTILINE)
    assert set(re.findall(r" lakehouse(?:-operator)?:(\S+)", section)) == set(version)


def test_links_between_documents_lead_somewhere() -> None:
    relative = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
    broken = [
        f"{path}: {target}"
        for path, text in texts()
        if path.suffix == ".md"
        for target in relative.findall(text)
        if not (ROOT / path.parent / target).exists()
    ]
    assert broken == []


@pytest.mark.parametrize(
    ("module", "name"),
    [("lakehouse.engine_settings", "EngineSettings"), ("lakehouse.index.settings", "IndexSettings")],
)
def test_every_engine_setting_is_documented(module: str, name: str) -> None:
    cls = getattr(importlib.import_module(module), name)
    documented = _documented_fields(cls)
    assert [field.name for field in dataclasses.fields(cls) if field.name not in documented] == []


def test_every_server_setting_is_described() -> None:
    from lakehouse.settings import Settings

    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_readme_lists_every_setting() -> None:
    from lakehouse.settings import markdown_table

    assert markdown_table() in (ROOT / "README.md").read_text(), (
        "put this into README.md: settings.markdown_table()"
    )


def test_every_module_opens_with_a_sentence() -> None:
    silent = []
    for path, text in texts():
        if path.suffix == ".py" and not (ast.get_docstring(ast.parse(text)) or "").strip():
            silent.append(str(path))
    assert silent == []


@pytest.mark.xdist_group("one")
def test_the_tests_of_a_group_stay_on_one_worker(request: pytest.FixtureRequest) -> None:
    """pytest-xdist tells its scheduler by the end of a test's id, which not every pytest lets it change."""
    if request.config.getoption("loadgroup", default=False):
        assert request.node.nodeid.endswith("@one")


def _documented_fields(cls: type) -> set[str]:
    """Fields followed by a string, which is how a dataclass field is documented here."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id
        for field, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
