"""A cluster that somebody else runs: the context of a kubeconfig, and a registry that its nodes pull from.

`LAKEHOUSE_TEST_CONTEXT` names the context (never guessed: the tests delete namespaces), and
`LAKEHOUSE_TEST_REGISTRY` the registry and path that images are pushed to, such as registry.example.com/team.
`docker login` gives the right to push; the nodes pull without a Secret.
"""

import os
import shutil
from pathlib import Path

from . import EngineError, docker
from .machine import run


class Context:
    """The engine `context`; it neither makes nor removes the cluster."""

    services_reachable = False
    pulls_images = True

    @property
    def kubectl(self) -> list[str]:
        return ["kubectl", "--context", self._context()]

    @property
    def helm(self) -> list[str]:
        return ["helm", "--kube-context", self._context()]

    def check(self) -> None:
        missing = [name for name in ("kubectl", "helm") if shutil.which(name) is None]
        if missing:
            raise EngineError(f"not on the PATH: {', '.join(missing)}")
        docker.program()
        self._context()
        self._registry()

    def is_kept(self) -> bool:
        """Always: it is not ours."""
        return True

    def build(self) -> None:
        """Nothing: what it needs is installed."""

    def up(self) -> None:
        """See that it answers."""
        self.check()
        run(*self.kubectl, "wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s")

    def load_image(self, archive: Path, name: str) -> str:
        """Push it; pods use the name in the registry."""
        target = f"{self._registry()}/{name.rpartition('/')[2]}"
        docker.push(archive, name, target)
        return target

    def down(self) -> None:
        """Nothing: it is not ours."""

    def _context(self) -> str:
        context = os.environ.get("LAKEHOUSE_TEST_CONTEXT", "")
        if not context:
            raise EngineError("name the context to test in with LAKEHOUSE_TEST_CONTEXT")
        return context

    def _registry(self) -> str:
        registry = os.environ.get("LAKEHOUSE_TEST_REGISTRY", "").rstrip("/")
        if not registry:
            raise EngineError("name a registry that the cluster pulls from in LAKEHOUSE_TEST_REGISTRY")
        return registry
