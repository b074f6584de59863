"""Clusters for the end-to-end tests: `up`, `load-image`, `down`, whatever the cluster is made of.

`kind` runs nodes as containers and is what most people have; `host` starts a real Kubernetes on this machine
from programs that it builds itself and pulls no image; `context` is any cluster that a kubeconfig names.  The
package needs Python's standard library alone, so that a cluster can be had before anything is installed.  What
it does not know: what is installed into the cluster.
"""

from pathlib import Path
from typing import Protocol


class EngineError(Exception):
    """Why there is no cluster, and what to do about it."""


class Engine(Protocol):
    """One way to have a cluster.  `up` and `down` may be repeated; all of them raise `EngineError`."""

    @property
    def kubectl(self) -> list[str]:
        """The command that reaches the cluster, credentials included."""

    @property
    def helm(self) -> list[str]:
        """The helm command that reaches the cluster."""

    @property
    def services_reachable(self) -> bool:
        """Whether ClusterIPs and pod addresses answer this machine; else go through `kubectl port-forward`."""

    @property
    def pulls_images(self) -> bool:
        """Whether docker builds our images and the nodes pull MinIO's; else all are built here from nothing pulled."""

    def check(self) -> None:
        """Raises `EngineError` with what is missing for a cluster; makes nothing."""

    def is_kept(self) -> bool:
        """Asked before `up`: whether the cluster was there before the tests, and outlives them."""

    def build(self) -> None:
        """What `up` needs once: programs and packages."""

    def up(self) -> None:
        """A cluster whose nodes are all Ready."""

    def load_image(self, archive: Path, name: str) -> str:
        """Give every node the image of a docker-archive; returns the name that pods use for it."""

    def down(self) -> None:
        """Leave nothing behind: no process, mount, network or file of the cluster."""


class NodeControl(Protocol):
    """What an engine that owns its nodes also can."""

    def stop_kubelet(self, node: str) -> None:
        """End a node's kubelet; its pods go on running."""

    def start_kubelet(self, node: str) -> None:
        """Start it again."""


def of(name: str) -> Engine:
    """The engine of that name."""
    from . import context, host, kind

    engines: dict[str, type[Engine]] = {
        "kind": kind.Kind,
        "host": host.Host,
        "context": context.Context,
    }
    if name not in engines:
        raise EngineError(f"unknown engine; one of {', '.join(engines)}. engine=`{name}`")
    return engines[name]()
