"""A machine inside this one: namespaces of its own for mounts, network, processes, and its name.

Everything that runs in it is a descendant of one process, and every mount, interface and packet filter rule
belongs to its namespaces; so ending that process ends all of it, and nothing has to be cleaned up by hand even
after a crash.  What this does not know: Kubernetes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from . import EngineError

BRIDGE = "lakehouse0"
HOST_ADDRESS = "10.231.0.1"
"""This machine's own address on the bridge that joins the inner ones."""

START_S_MAX = 20
INIT = """
import json, os, signal, subprocess, sys
name, mounts = sys.argv[1], json.loads(sys.argv[2])
subprocess.run(["mount", "--make-rshared", "/"], check=True)
subprocess.run(["hostname", name], check=True)
for source, target in mounts.items():
    os.makedirs(target, exist_ok=True)
    what = ["-t", "tmpfs", "tmpfs"] if source.startswith("tmpfs") else ["--bind", source]
    subprocess.run(["mount", *what, target], check=True)
open(sys.argv[3], "w").close()
signal.signal(signal.SIGTERM, signal.SIG_DFL)
while True:
    try:
        os.wait()
    except ChildProcessError:
        signal.sigtimedwait({signal.SIGCHLD}, 0.5)
"""
"""Process 1 of a machine: mounts, then nothing but burying orphans."""


@dataclass(frozen=True)
class Machine:
    """A name, an address on the bridge, and a directory for its state."""

    name: str
    address: str
    directory: Path

    def start(self, mounts: Mapping[str, str]) -> None:
        """Make the namespaces, with directories of this machine's state bound over the targets of `mounts`.

        A source is a name under the machine's directory, or `tmpfs` with a suffix that tells two apart.
        """
        log = self.directory / "log"
        log.mkdir(parents=True, exist_ok=True)
        for source in mounts:
            (self.directory / source).mkdir(exist_ok=True)
        started = self.directory / "started"
        started.unlink(missing_ok=True)
        sources = {
            source if source.startswith("tmpfs") else str(self.directory / source): target
            for source, target in mounts.items()
        }
        command = ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        command += ["--mount-proc", sys.executable, "-I", "-c", INIT]
        command += [self.name, json.dumps(sources), str(started)]
        with (log / "init.log").open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._pid_file.write_text(f"{process.pid} {_started(process.pid)}")
        wait_for(started.exists, f"machine `{self.name}` to start; see {log / 'init.log'}")
        self._join_bridge()

    def stop(self) -> None:
        """End process 1 and so everything in the machine; absent is well."""
        pid = self._outer()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: self._outer() is None, f"machine `{self.name}` to end")
        self._pid_file.unlink(missing_ok=True)
        for kind in _cgroups():
            _remove_cgroup(kind / self.cgroup.strip("/"))

    @property
    def is_running(self) -> bool:
        return self._outer() is not None

    @property
    def cgroup(self) -> str:
        """The control group, in every hierarchy, under which this machine puts its own."""
        return f"/lakehouse-{self.name}"

    def inside(self, *command: str) -> list[str]:
        """`command` as it has to be called from outside."""
        namespaces = ["--mount", "--net", "--pid", "--uts", "--ipc"]
        return ["nsenter", "--target", str(self._init()), *namespaces, "--", *command]

    def run(self, *command: str, text: str = "") -> str:
        """Run to the end and return what it printed.  Raises `EngineError` with what it complained of."""
        return run(*self.inside(*command), text=text)

    def spawn(self, name: str, *command: str) -> None:
        """Start a program that stays; its output goes to log/<name>.log."""
        with (self.directory / "log" / f"{name}.log").open("ab") as output:
            subprocess.run(
                ["setsid", "--fork", *self.inside(*command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=True,
            )

    def processes(self, program: str) -> list[int]:
        """Process ids, as seen from outside, of the machine's processes whose program has this path."""
        init = self._init()
        namespace = Path(f"/proc/{init}/ns/pid").readlink()
        return [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and _is(entry, namespace, program)
        ]

    def end(self, program: str) -> None:
        """Kill every process of this program in the machine."""
        for pid in self.processes(program):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.processes(program), f"{program} in `{self.name}` to end")

    def own_cgroup(self) -> None:
        """Make the machine's control group in every hierarchy there is."""
        for kind in _cgroups():
            group = kind / self.cgroup.strip("/")
            group.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):  # in version 1 a new group may use none, until told
                file, above = group / name, kind / name
                if file.exists() and above.exists() and not file.read_text().strip():
                    file.write_text(above.read_text())

    def _join_bridge(self) -> None:
        outer = f"lh-{self.name}"[:15]
        subprocess.run(["ip", "link", "del", outer], capture_output=True, check=False)
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", str(self._init()))
        run("ip", "link", "set", outer, "master", BRIDGE, "up")
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", "default", "via", HOST_ADDRESS)
        self.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")

    @property
    def _pid_file(self) -> Path:
        return self.directory / "pid"

    def _outer(self) -> int | None:
        """The process that holds the machine, if it is still the one that was started."""
        try:
            pid, started = self._pid_file.read_text().split()
            return int(pid) if _started(int(pid)) == started else None
        except (OSError, ValueError):
            return None

    def _init(self) -> int:
        outer = self._outer()
        if outer is None:
            raise EngineError(f"the machine does not run. machine=`{self.name}`")
        children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        if not children:
            raise EngineError(f"the machine has no first process. machine=`{self.name}`")
        return int(children[0])


def make_bridge(routes: Iterable[tuple[str, str]]) -> None:
    """The bridge that joins machines, and this machine's routes to networks behind them: (network, address)."""
    if not Path(f"/sys/class/net/{BRIDGE}").exists():
        clash = run("ip", "-4", "route", "show", "root", "10.231.0.0/16").strip()
        if clash:
            raise EngineError(
                f"the cluster wants the network 10.231.0.0/16, and it is in use. route=`{clash}`"
            )
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{HOST_ADDRESS}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    for network, via in routes:
        run("ip", "route", "replace", network, "via", via)


def remove_bridge() -> None:
    """Take the bridge away, and with it every route over it; absent is well."""
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        run("ip", "link", "del", BRIDGE)


def run(*command: str, text: str = "", environment: Mapping[str, str] | None = None) -> str:
    """Run a command on this machine; its output, or `EngineError` with its complaint."""
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            env=None if environment is None else os.environ | dict(environment),
        )
    except FileNotFoundError as error:
        raise EngineError(f"no such program on the PATH. program=`{command[0]}`") from error
    if done.returncode != 0:
        complaint = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise EngineError(f"`{' '.join(command)[:300]}` failed: {complaint}")
    return done.stdout


class _Condition(Protocol):
    def __call__(self) -> bool: ...


def wait_for(condition: _Condition, what: str, *, seconds: float = START_S_MAX) -> None:
    """Poll until it holds.  Raises `EngineError` naming `what` was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise EngineError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.1)


def remove_tree(directory: Path, keep: Sequence[str] = ()) -> None:
    """Delete what is in a directory, save entries named in `keep`; absent is well."""
    if not directory.is_dir():
        return
    for entry in directory.iterdir():
        if entry.name in keep:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _started(pid: int) -> str:
    """When a process began, in clock ticks: with the id, a name that is never given twice; "" when it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return (
        "" if state == "Z" else rest[18]
    )  # a zombie waits for us, who started it, and holds nothing any more


def _is(entry: Path, namespace: Path, program: str) -> bool:
    try:
        if (entry / "ns" / "pid").readlink() != namespace:
            return False
        return (entry / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace") == program
    except OSError:
        return False


def _cgroups() -> list[Path]:
    """The roots of the control group hierarchies: one per controller in version 1, a single one in version 2."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root]
    return [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]


def _remove_cgroup(group: Path) -> None:
    """Remove a group and those below it; the kernel refuses while a process is in one."""
    if not group.is_dir():
        return
    for child in group.iterdir():
        if child.is_dir():
            _remove_cgroup(child)
    deadline = time.monotonic() + 5
    while group.is_dir():
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)
