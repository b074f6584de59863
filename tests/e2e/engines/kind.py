"""A cluster of containers, made by `kind` from kind-config.yaml at the repository's root.

It needs docker (or podman) and kind on the PATH, and pulls kind's node image.
"""

import json
import shutil
from pathlib import Path

from . import EngineError
from .machine import run

NAME = "lakehouse"
CONFIG = Path(__file__).resolve().parents[3] / "kind-config.yaml"


class Kind:
    """The engine `kind`; `up` is `kind create cluster --config kind-config.yaml`."""

    services_reachable = False

    @property
    def kubectl(self) -> list[str]:
        return ["kubectl", "--context", f"kind-{NAME}"]

    @property
    def helm(self) -> list[str]:
        return ["helm", "--kube-context", f"kind-{NAME}"]

    def build(self) -> None:
        """Nothing: what it needs is installed."""

    def up(self) -> None:
        missing = [name for name in ("kind", "kubectl", "helm") if shutil.which(name) is None]
        if missing:
            raise EngineError(f"not on the PATH: {', '.join(missing)}; see https://kind.sigs.k8s.io")
        if NAME not in run("kind", "get", "clusters").split():
            run("kind", "create", "cluster", "--config", str(CONFIG), "--wait", "180s")

    def load_image(self, archive: Path, name: str) -> str:
        run("kind", "load", "image-archive", str(archive), "--name", NAME)
        return name

    def down(self) -> None:
        if shutil.which("kind") is not None:
            run("kind", "delete", "cluster", "--name", NAME)

    def nodes(self) -> list[str]:
        """Names of its nodes, for those who ask."""
        listed = json.loads(run(*self.kubectl, "get", "nodes", "-o", "json"))
        return [item["metadata"]["name"] for item in listed["items"]]
