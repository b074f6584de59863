"""A real Kubernetes on this machine, as root, without pulling an image: a control plane and nodes.

Each of them is a `machine` with namespaces of its own, joined by a bridge; this machine keeps its packet filter,
its mounts and its /var untouched, and reaches pods and Services by three routes.  `up` takes seconds once the
programs are built.  What it does not have: network policies are accepted and not enforced, and pods reach
nothing outside.
"""

import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from . import EngineError, control_plane, node
from .certificates import Authority
from .machine import Machine, make_bridge, remove_bridge, remove_tree, run, wait_for
from .programs import CACHE, PACKAGES, build_all, need_packages, program, say

READY_S_MAX = 120
NODES = int(os.environ.get("LAKEHOUSE_TEST_NODES", "2"))
STATE = Path(os.environ.get("LAKEHOUSE_TEST_CLUSTER", CACHE / "cluster"))


class Host:
    """The engine `host`; its state is in a directory (default ~/.cache/lakehouse/cluster), logs included."""

    services_reachable = True
    pulls_images = False

    def __init__(self, directory: Path = STATE, nodes: int = NODES) -> None:
        self.directory = directory.absolute()
        self.authority = Authority(self.directory / "pki")
        self.control = Machine("control", control_plane.ADDRESS, self.directory / "control")
        self.nodes = [
            Machine(f"node{number}", f"10.231.0.{10 + number}", self.directory / f"node{number}")
            for number in range(1, nodes + 1)
        ]

    @property
    def kubeconfig(self) -> Path:
        return self.authority.path("admin.kubeconfig")

    @property
    def kubectl(self) -> list[str]:
        return [str(program("kubectl")), "--kubeconfig", str(self.kubeconfig)]

    @property
    def helm(self) -> list[str]:
        return [str(program("helm")), "--kubeconfig", str(self.kubeconfig)]

    def check(self) -> None:
        if os.geteuid() != 0:
            raise EngineError("the host engine makes namespaces and networks: run it as root, or use kind")

    def is_kept(self) -> bool:
        """Never: the one cluster of this machine is for tests."""
        return False

    def build(self) -> None:
        """Programs from their Go modules, and Debian packages."""
        need_packages(PACKAGES)
        build_all()

    def up(self) -> None:
        """A running cluster is left alone; a broken one is ended and started afresh."""
        self.check()
        self.build()
        with self._lock():
            if self._is_well():
                return
            self._down()
            self._start()

    def down(self) -> None:
        with self._lock():
            self._down()

    def load_image(self, archive: Path, name: str) -> str:
        """Import it on every node at once; the name stays as it is."""
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(lambda machine: node.import_image(machine, archive), self.nodes))
        return name

    def stop_kubelet(self, name: str) -> None:
        node.stop_kubelet(self._node(name))

    def start_kubelet(self, name: str) -> None:
        node.start_kubelet(self._node(name))

    def _start(self) -> None:
        say(f"starting Kubernetes with {len(self.nodes)} nodes; state and logs in {self.directory}")
        networks = [node.pod_network(number) for number in range(1, len(self.nodes) + 1)]
        routes = [(network, machine.address) for machine, network in zip(self.nodes, networks, strict=True)]
        make_bridge([])
        self.authority.create()
        control_plane.issue(self.authority)
        self.control.start({})
        make_bridge([*routes, (control_plane.SERVICES, self.nodes[0].address)])
        for network, via in routes:
            self.control.run("ip", "route", "add", network, "via", via)
        control_plane.start(self.control, self.authority)
        for machine, network in zip(self.nodes, networks, strict=True):
            node.issue(self.authority, machine)
            machine.start(node.MOUNTS)
            for other, via in routes:
                if via != machine.address:
                    machine.run("ip", "route", "add", other, "via", via)
            node.start(machine, self.authority, network)
        wait_for(self._is_well, "every node to be Ready", seconds=READY_S_MAX)

    def _down(self) -> None:
        for machine in [*self.nodes, *self._others(), self.control]:
            machine.stop()
        remove_bridge()
        for folder in self.directory.glob("*/"):
            remove_tree(folder, keep=["log"])
        (self.directory / "pause.tar").unlink(missing_ok=True)

    def _others(self) -> Iterator[Machine]:
        """Nodes of a cluster that was started with more of them."""
        known = {machine.name for machine in self.nodes}
        for folder in self.directory.glob("node*/"):
            if folder.name not in known:
                yield Machine(folder.name, "", folder)

    def _is_well(self) -> bool:
        if not all(machine.is_running for machine in (self.control, *self.nodes)):
            return False
        ready = "{range .items[*]}{.metadata.name}={.status.conditions[?(@.type=='Ready')].status} {end}"
        try:
            seen = run(*self.kubectl, "get", "nodes", "--request-timeout=5s", f"-o=jsonpath={ready}").split()
        except EngineError:
            return False
        return sorted(seen) == sorted(f"{machine.name}=True" for machine in self.nodes)

    def _node(self, name: str) -> Machine:
        for machine in self.nodes:
            if machine.name == name:
                return machine
        raise EngineError(f"no such node. node=`{name}`")

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
