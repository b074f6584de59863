"""The programs that a cluster on this machine is made of: Go modules built once and kept, and Debian packages.

Versions are pinned here and in kubernetes/go.mod.  Kubernetes is 1.34 because later releases refuse cgroup
version 1 by default, and this one runs on both.  What this does not do: start anything.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import EngineError

KUBERNETES = "v1.34.4"
HELM = "v3.19.0"
COREDNS = "v1.15.0"
CACHE = Path(os.environ.get("LAKEHOUSE_TEST_CACHE", Path.home() / ".cache" / "lakehouse"))
PROGRAMS = Path(os.environ.get("LAKEHOUSE_TEST_CLUSTER_BIN", CACHE / f"cluster-{KUBERNETES}"))
MODULE = Path(__file__).parent / "kubernetes"

VERSION = "k8s.io/component-base/version"
LINK = (
    f"-s -X {VERSION}.gitVersion={KUBERNETES} -X {VERSION}.gitMajor=1 "
    f"-X {VERSION}.gitMinor={KUBERNETES.split('.')[1]} -X {VERSION}.gitTreeState=clean"
)
"""Without it the API server calls itself v0.0.0, and clients that ask for its version believe that."""

COMPONENTS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "sysctl": "procps",
    "mount": "mount",
    "cc": "gcc",
}
"""What must be there, as a program or a file, and the Debian package that brings it."""

PROGRESS_S = 15


def need_packages(wanted: dict[str, str]) -> None:
    """Install the Debian packages whose program is missing.  Raises `EngineError` where that can't be done."""
    missing = sorted({package for name, package in wanted.items() if shutil.which(name) is None})
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise EngineError(
            "programs are missing; as root on Debian or Ubuntu: apt-get install " + " ".join(missing)
        )
    say("installing Debian packages: " + " ".join(missing))
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    run_slowly("apt-get update", ["apt-get", "-q", "update"], Path("/"), environment)
    command = ["apt-get", "-q", "install", "-y", "--no-install-recommends", *missing]
    run_slowly("apt-get install", command, Path("/"), environment)


def program(name: str) -> Path:
    """The path of a built program, after building it if it is missing.  Raises `EngineError`."""
    path = PROGRAMS / name
    if not path.is_file():
        with _lock():
            if not path.is_file():
                _build(name)
    return path


def build_all() -> None:
    """Build what is missing: about 13 minutes on 2 cores with nothing cached."""
    for name in ("etcd", *COMPONENTS, "coredns", "helm"):
        program(name)


def say(text: str) -> None:
    """Progress, where it does not mix with what a command prints."""
    print(text, file=sys.stderr, flush=True)


def _build(name: str) -> None:
    if shutil.which("go") is None:
        raise EngineError(
            f"{name} is built from its Go module, and there is no `go` (1.24 or newer) on the PATH"
        )
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PROGRAMS, prefix=".build-") as folder:
        if name == "helm":
            command = ["go", "install", "-trimpath", "-ldflags=-s", f"helm.sh/helm/v3/cmd/helm@{HELM}"]
        elif name == "coredns":
            command = ["go", "install", "-trimpath", "-ldflags=-s", f"github.com/coredns/coredns@{COREDNS}"]
        elif name == "etcd":
            command = ["go", "build", "-trimpath", "-ldflags=-s", "-o", f"{folder}/etcd"]
            command += ["go.etcd.io/etcd/server/v3"]
        else:
            command = ["go", "build", "-trimpath", f"-ldflags={LINK}", "-o", f"{folder}/{name}"]
            command += [f"k8s.io/kubernetes/cmd/{name}"]
        say(f"building {name} once into {PROGRAMS}")
        run_slowly(f"building {name}", command, MODULE, {"GOBIN": folder, "CGO_ENABLED": "0"})
        (Path(folder) / name).rename(PROGRAMS / name)


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """Two builds of one program at once would only take twice as long."""
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    with (PROGRAMS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_slowly(what: str, command: list[str], directory: Path, environment: dict[str, str]) -> None:
    """Run a command that takes minutes, and say now and then that it still runs."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=PROGRESS_S)
                break
            say(f"  {what}: {time.monotonic() - began:.0f} s")
        if process.returncode != 0:
            log.seek(0)
            raise EngineError(f"{what} failed: " + " / ".join(log.read().splitlines()[-5:]))
