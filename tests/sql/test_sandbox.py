"""The walls hold against native code too: a process that confined itself tries system calls, not SQL."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lakehouse.sql import sandbox
from lakehouse.sql.sandbox import ESSENTIAL
from lakehouse.sql.worker import REHEARSED_BYTES
from sql_lake import MEMORY_BYTES, Lake

PREPARED = """
import ctypes, mmap, os, resource, signal, socket, sys
from pathlib import Path
from lakehouse.sql import sandbox
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
ours, theirs = socket.socketpair()
allowed, outside = Path(sys.argv[1]), Path(sys.argv[2])
victim = os.getppid()
sandbox.confine(allowed, 256 << 20, ours.fileno())
try:
    got = ATTEMPT
except (OSError, MemoryError, ValueError) as error:
    os._exit(0)
os._exit(7)
"""
NATIVE = {
    "read a file": "os.open(outside, os.O_RDONLY)",
    "read passwords": "os.open('/etc/passwd', os.O_RDONLY)",
    "read the parent's environment": "os.open(f'/proc/{victim}/environ', os.O_RDONLY)",
    "read the parent's memory": "os.open(f'/proc/{victim}/mem', os.O_RDONLY)",
    "write an allowed file": "os.open(allowed / 'a', os.O_WRONLY)",
    "append to an allowed file": "os.open(allowed / 'a', os.O_RDONLY | os.O_APPEND)",
    "truncate by opening": "os.open(allowed / 'a', os.O_RDONLY | os.O_TRUNC)",
    "create a file": "os.open(allowed / 'new', os.O_WRONLY | os.O_CREAT)",
    "create a nameless file": "os.open(allowed, os.O_TMPFILE | os.O_RDWR)",
    "list a directory": "os.listdir(allowed)",
    "truncate": "os.truncate(allowed / 'a', 0)",
    "unlink": "os.unlink(allowed / 'a')",
    "rename": "os.rename(allowed / 'a', allowed / 'b')",
    "link": "os.link(allowed / 'a', allowed / 'b')",
    "symlink": "os.symlink(outside, allowed / 'b')",
    "mkdir": "os.mkdir(allowed / 'd')",
    "rmdir": "os.rmdir(allowed)",
    "chmod": "os.chmod(allowed / 'a', 0o777)",
    "chown": "os.chown(allowed / 'a', 1, 1)",
    "utime": "os.utime(allowed / 'a')",
    "mkfifo": "os.mkfifo(allowed / 'f')",
    "chdir": "os.chdir('/tmp')",
    "chroot": "os.chroot('/tmp')",
    "socket": "socket.socket()",
    "unix socket": "socket.socket(socket.AF_UNIX)",
    "socket pair": "socket.socketpair()",
    "fork": "os.fork()",
    "spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "exec": "os.execv('/bin/true', ['true'])",
    "kill the parent": "os.kill(victim, signal.SIGTERM)",
    "kill everything": "os.kill(-1, 0)",
    "priority of others": "os.setpriority(os.PRIO_PROCESS, victim, 19)",
    "become another user": "os.setuid(12345)",
    "new session": "os.setsid()",
    "raise a limit": "resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)",
    "limit of others": "resource.prlimit(victim, resource.RLIMIT_CPU, (1, 1))",
    "memory over the limit": "mmap.mmap(-1, 1 << 40)",
    "memory in many pieces": "[bytearray(32 << 20) for _ in range(100)]",
    "executable memory": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "descriptor of the parent": "os.pidfd_open(victim)",
    "memory file": "os.memfd_create('x')",
    "pipe": "os.pipe()",
}
X86_64 = {
    "ptrace": "call(101, 16, victim, 0, 0)",
    "process_vm_readv": "call(310, victim, 0, 0, 0, 0, 0)",
    "process_vm_writev": "call(311, victim, 0, 0, 0, 0, 0)",
    "unshare": "call(272, 0x10000000)",
    "setns": "call(308, 0, 0)",
    "mount": "call(165, b'/', b'/mnt', b'bind', 4096, 0)",
    "bpf": "call(321, 0, 0, 0)",
    "io_uring_setup": "call(425, 8, 0)",
    "keyctl": "call(250, 0, 0)",
    "add_key": "call(248, b'user', b'x', b'y', 1, -1)",
    "perf_event_open": "call(298, 0, 0, -1, -1, 0)",
    "userfaultfd": "call(323, 0)",
    "openat2": "call(437, -100, b'/etc/passwd', bytes(24), 24)",
    "old open": "call(2, b'/etc/passwd', 0)",
    "clone3": "call(435, bytes(64), 64)",
    "vfork": "call(58)",
    "personality": "call(135, 0x0008)",
    "seccomp again": "call(317, 0, 0, 0)",
    "shared memory": "call(29, 1, 4096, 0o1600)",
    "x32": "call(0x40000000 + 39)",
    "32 bit": "call(0x80000000 + 20)",
}


def refusal(tmp_path: Path, attempt: str) -> int:
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    allowed.mkdir()
    (allowed / "a").write_text("a")
    outside.write_text("secret")
    program = PREPARED.replace("ATTEMPT", attempt)
    path = str(Path(sandbox.__file__).parents[2])
    command = [sys.executable, "-c", program, str(allowed), str(outside)]
    ended = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, check=False, timeout=60)
    assert [path.name for path in allowed.iterdir()] == ["a"]
    assert (allowed / "a").read_text() == "a"
    assert outside.read_text() == "secret"
    return ended.returncode


@pytest.mark.parametrize("attempt", NATIVE.values(), ids=NATIVE.keys())
def test_a_confined_process_is_refused(tmp_path: Path, attempt: str) -> None:
    assert refusal(tmp_path, attempt) == 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")
@pytest.mark.parametrize("attempt", X86_64.values(), ids=X86_64.keys())
def test_a_confined_process_is_refused_by_number(tmp_path: Path, attempt: str) -> None:
    assert refusal(tmp_path, attempt) in (0, -31)  # SIGSYS: another ABI's numbers end the process


@pytest.mark.parametrize(
    "act",
    [
        "os.open(allowed / 'a', os.O_RDONLY)",
        "bytearray(64 << 20)",
        "os.getrandom(8)",
        "resource.getrlimit(resource.RLIMIT_AS)",
        "__import__('threading').Thread(target=int).start()",
    ],
)
def test_what_computing_needs_is_not_refused(tmp_path: Path, act: str) -> None:
    assert refusal(tmp_path, act) == 7


@pytest.mark.skipif(sandbox.landlock_abi() == 0, reason="this kernel has no Landlock")
def test_rule_sets_stack_down_to_one_file(tmp_path: Path) -> None:
    narrowed = "[sandbox.read_only([str(allowed / 'a')]), os.open(allowed / 'a', os.O_RDONLY)]"
    assert refusal(tmp_path, narrowed) == 7
    closed = tmp_path / "closed"
    closed.mkdir()
    assert refusal(closed, "[sandbox.read_only([]), os.open(allowed / 'a', os.O_RDONLY)]") == 0


def test_the_self_test_tells_of_every_wall(lake: Lake) -> None:
    checks = lake.service.checks()
    assert checks["sql"] == "ok"
    walls = {name.removeprefix("sql "): said for name, said in checks.items() if name != "sql"}
    assert walls.keys() >= ESSENTIAL
    assert {walls[name] for name in ESSENTIAL} == {"ok"}
    if sandbox.landlock_abi():
        assert walls["read outside"] == "ok"


def test_a_worker_has_the_limits_and_no_environment_of_ours(lake: Lake) -> None:
    lake.rows("SELECT 1")
    limits = lake.workers[-1].limits
    assert limits["Max file size"] == limits["Max core file size"] == limits["Max locked memory"] == "0"
    assert int(limits["Max address space"]) <= lake.workers[
        -1
    ].size_at_start + MEMORY_BYTES + REHEARSED_BYTES + (64 << 20)
    environment = Path(f"/proc/{lake.service.pool.zygote_pid}/environ").read_bytes()
    names = {entry.partition(b"=")[0] for entry in environment.split(b"\0") if entry}
    assert not {b"PATH", b"HOME", b"AWS_SECRET_ACCESS_KEY", b"USER"} & names


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_whole_instructions_and_ends_in_a_refusal(machine: str) -> None:
    program = sandbox.filter_program(machine, 1)
    assert len(program) % 8 == 0
    assert program[-8:] == bytes([6, 0, 0, 0, 1, 0, 5, 0])
