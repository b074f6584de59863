"""Kubernetes' own description of its objects, as JSON Schemas that refuse fields nobody knows.

It comes with the Go module of the Kubernetes that the host engine builds, so nothing is fetched where that was built.
What this does not do: defaults and rules that only a server checks.
"""

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from e2e.engines.programs import KUBERNETES, MODULE

PRESERVES = "x-kubernetes-preserve-unknown-fields"
LOOSE = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": ["string", "number"]},
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"type": ["string", "integer"]},
}
"""Said to be text, but taken as numbers too."""


@functools.cache
def validator(api_version: str, kind: str) -> Draft202012Validator:
    """For objects of one kind; skips the test where Kubernetes' module cannot be had."""
    definitions, names = _definitions()
    name = names[api_version, kind]
    return Draft202012Validator({"$ref": f"#/definitions/{name}", "definitions": definitions})


@functools.cache
def _definitions() -> tuple[dict[str, Any], dict[tuple[str, str], str]]:
    swagger = json.loads((_module() / "api" / "openapi-spec" / "swagger.json").read_text(encoding="utf-8"))
    names = {}
    for name, schema in swagger["definitions"].items():
        for one in schema.get("x-kubernetes-group-version-kind", ()):
            version = f"{one['group']}/{one['version']}" if one["group"] else one["version"]
            names[version, one["kind"]] = name
        if "properties" in schema and not schema.get(PRESERVES):
            schema.setdefault("additionalProperties", False)
    return swagger["definitions"] | LOOSE, names


def _module() -> Path:
    if shutil.which("go") is None:
        pytest.skip("the descriptions come with Kubernetes' Go module, and there is no `go` on the PATH")
    command = ["go", "mod", "download", "-json", f"k8s.io/kubernetes@{KUBERNETES}"]
    done = subprocess.run(command, cwd=MODULE, capture_output=True, text=True, check=False, timeout=250)
    if done.returncode != 0:
        pytest.skip(f"Kubernetes' Go module cannot be had: {done.stdout[-300:]}{done.stderr[-300:]}")
    return Path(json.loads(done.stdout)["Dir"])
