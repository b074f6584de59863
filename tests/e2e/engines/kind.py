"""A cluster of containers, made by `kind` from kind-config.yaml at the repository's root.

It needs docker (or podman) and kind on the PATH, and pulls images.  It has a name of its own, so that the tests
leave alone the cluster that kind-config.yaml makes by itself.
"""

import shutil
from pathlib import Path

from . import EngineError, docker
from .machine import run

NAME = "lakehouse-e2e"
CONFIG = Path(__file__).resolve().parents[3] / "kind-config.yaml"


class Kind:
    """The engine `kind`; `up` is `kind create cluster --config kind-config.yaml --name lakehouse-e2e`."""

    services_reachable = False
    pulls_images = True

    @property
    def kubectl(self) -> list[str]:
        return ["kubectl", "--context", f"kind-{NAME}"]

    @property
    def helm(self) -> list[str]:
        return ["helm", "--kube-context", f"kind-{NAME}"]

    def check(self) -> None:
        missing = [name for name in ("kind", "kubectl", "helm") if shutil.which(name) is None]
        if missing:
            raise EngineError(f"not on the PATH: {', '.join(missing)}; see https://kind.sigs.k8s.io")
        docker.program()

    def is_kept(self) -> bool:
        """Whether it is there already: who made it ends it, with `tests/e2e/cluster kind down`."""
        return NAME in run("kind", "get", "clusters").split()

    def build(self) -> None:
        """Nothing: what it needs is installed."""

    def up(self) -> None:
        self.check()
        if not self.is_kept():
            run("kind", "create", "cluster", "--config", str(CONFIG), "--name", NAME, "--wait", "180s")

    def load_image(self, archive: Path, name: str) -> str:
        run("kind", "load", "image-archive", str(archive), "--name", NAME)
        return name

    def down(self) -> None:
        if shutil.which("kind") is not None:
            run("kind", "delete", "cluster", "--name", NAME)
