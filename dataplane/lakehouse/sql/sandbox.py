"""A worker gives away everything it will not need before it reads the first hostile byte.

Four walls, each of which holds alone: limits of the kernel on memory, files and cores; no capabilities and no way
to gain any; a seccomp filter that allows reading, memory and the one pipe, and nothing that could create a
process, open a socket or write; and Landlock, where the kernel has it, down to the files of one query.  DuckDB's
own settings come on top and are not counted.  What this module does not do: decide which files those are.
"""

import ctypes
import ctypes.util
import errno
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION_3 = 0x20080522
FILES_MAX = 1_024
"""Open files of a worker: a query over a dataset of many files holds a handful at once."""

# --- seccomp

_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Audit architecture, and the column of the tables below."""

ALLOWED: Mapping[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "writev": (20, 66),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "fadvise64": (221, 223),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getcwd": (79, 17),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "brk": (12, 214),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "setitimer": (38, 103),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "restart_syscall": (219, 128),
    "sigaltstack": (131, 132),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getcpu": (309, 168),
    "getrandom": (318, 278),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "membarrier": (324, 283),
    "rseq": (334, 293),
    "set_robust_list": (273, 99),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
"""System calls that take part in computing; with Landlock's, which only ever take rights away."""

_OPENAT, _MMAP, _MPROTECT = (257, 56), (9, 222), (10, 226)
_FCNTL, _PRLIMIT, _TGKILL, _CLONE3, _OPENAT2 = (72, 25), (302, 261), (234, 131), (435, 435), (437, 437)
_CLONE = (56, 220)

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_OFFSET_NUMBER, _OFFSET_MACHINE, _OFFSET_ARGUMENTS = 0, 4, 16
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | 0o20000000  # O_TMPFILE
_PROT_EXEC = 4
_CLONE_THREAD = 0x10000
_FCNTL_COMMANDS = (1, 2, 3, 5, 6)
"""F_GETFD, F_SETFD, F_GETFL, F_GETLK, F_SETLK."""

_Instruction = tuple[int, int, int, int]


def filter_program(machine: str, pid: int) -> bytes:
    """The seccomp filter as classic BPF, for a process with this id.

    What is not allowed fails with EPERM, so that a library which asks for more says so instead of vanishing.
    """
    audit, column = _MACHINES[machine]
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _OFFSET_MACHINE),
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _OFFSET_NUMBER),
    ]
    if machine == "x86_64":  # the x32 ABI has its own numbers above this bit
        program += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    for number in (numbers[column] for numbers in ALLOWED.values()):
        if number is not None:
            program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    program += _when(_OPENAT[column], [_argument(2), *_refuse_bits(_WRITING, errno.EACCES)])
    for protecting in (_MMAP, _MPROTECT):
        program += _when(protecting[column], [_argument(2), *_refuse_bits(_PROT_EXEC, errno.EACCES)])
    program += _when(_FCNTL[column], [_argument(1), *_only(_FCNTL_COMMANDS)])
    program += _when(_TGKILL[column], [_argument(0), *_only((pid,))])
    # A thread of the same process, not a new one: pyarrow's scanner starts two.
    program += _when(_CLONE[column], [_argument(0), *_require_bits(_CLONE_THREAD)])
    program += _when(_PRLIMIT[column], [_argument(2), *_all_zero()])
    for newer in (_CLONE3, _OPENAT2):  # their callers fall back to the older call, which the filter can read
        program += _when(newer[column], [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)])
    program.append((_RETURN, 0, 0, _ERRNO | errno.EPERM))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _when(number: int, then: list[_Instruction]) -> list[_Instruction]:
    return [(_EQUAL, 0, len(then), number), *then]


def _argument(index: int) -> _Instruction:
    return (_LOAD, 0, 0, _OFFSET_ARGUMENTS + 8 * index)


def _refuse_bits(bits: int, number: int) -> list[_Instruction]:
    return [(_ANY_BIT, 0, 1, bits), (_RETURN, 0, 0, _ERRNO | number), (_RETURN, 0, 0, _ALLOW)]


def _require_bits(bits: int) -> list[_Instruction]:
    return [(_ANY_BIT, 1, 0, bits), (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]


def _only(values: Iterable[int]) -> list[_Instruction]:
    allowed = [step for value in values for step in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW))]
    return [*allowed, (_RETURN, 0, 0, _ERRNO | errno.EPERM)]


def _all_zero() -> list[_Instruction]:
    """Both halves of the pointer just loaded are zero: reading a limit, not setting one."""
    high = _OFFSET_ARGUMENTS + 8 * 2 + 4
    return [
        (_EQUAL, 0, 3, 0),
        (_LOAD, 0, 0, high),
        (_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]


# --- Landlock

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE = 1 << 2
_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_NETWORK, _SCOPES = 0b11, 0b11


def landlock_abi() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    return max(0, int(_libc().syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))))


def read_only(paths: Iterable[str]) -> None:
    """From now on this process opens files at or below `paths` for reading, and nothing else.

    Rule sets stack: a later call can only narrow an earlier one.  Does nothing where there is no Landlock.
    Raises `OSError`.
    """
    abi = landlock_abi()
    if abi == 0:
        return
    rights = _RIGHTS_BY_ABI[min(abi, max(_RIGHTS_BY_ABI))]
    attributes = struct.pack("<Q", rights)
    attributes += struct.pack("<Q", _NETWORK) if abi >= 4 else b""
    attributes += struct.pack("<Q", _SCOPES) if abi >= 6 else b""
    ruleset = _call(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    for path in paths:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _call(_LANDLOCK_ADD, ctypes.c_int(ruleset), ctypes.c_int(1), struct.pack("<Qi", _READ_FILE, fd), 0)
        os.close(fd)
    _call(_LANDLOCK_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    os.close(ruleset)


# --- all of it


def confine(readable: Path, memory_bytes: int, keep_fd: int) -> None:
    """Give up everything but memory up to `memory_bytes` more, reading below `readable`, and `keep_fd`.

    Raises `OSError` where a wall cannot be raised; the caller must then end.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    close_all_but(keep_fd)
    os.chdir("/")
    limits = {
        resource.RLIMIT_AS: address_space_bytes() + memory_bytes,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: FILES_MAX,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for which, value in limits.items():
        resource.setrlimit(which, (value, value))
    drop_capabilities()
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_DUMPABLE, 0)
    read_only((str(readable),))
    _install(filter_program(os.uname().machine, os.getpid()))


def close_all_but(keep_fd: int) -> None:
    """Standard streams lead nowhere; every other descriptor but one is closed."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.closerange(3, keep_fd)
    os.closerange(keep_fd + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def drop_capabilities() -> None:
    """Even a worker of a superuser has no privilege then; files of other users stay closed to it."""
    header = struct.pack("<Ii", CAPABILITY_VERSION_3, 0)
    if _libc().capset(header, bytes(24)) != 0:
        raise _failure("capset")


def address_space_bytes() -> int:
    """What this process has mapped now, bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def supported() -> str:
    """Why the essential walls cannot be raised here; empty when they can."""
    if not sys.platform.startswith("linux"):
        return f"SQL needs Linux, whose kernel confines its workers. platform=`{sys.platform}`"
    if os.uname().machine not in _MACHINES:
        return f"SQL has a seccomp filter for {' and '.join(_MACHINES)} only. machine=`{os.uname().machine}`"
    return ""


def _install(program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header)


def _prctl(option: int, value: int, pointer: bytes | None = None) -> None:
    zero = ctypes.c_ulong(0)
    if _libc().prctl(option, ctypes.c_ulong(value), pointer or zero, zero, zero) != 0:
        raise _failure(f"prctl {option}")


def _call(number: int, *arguments: object) -> int:
    result = int(_libc().syscall(number, *arguments))
    if result < 0:
        raise _failure(f"syscall {number}")
    return result


def _failure(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


_loaded: list[ctypes.CDLL] = []


def _libc() -> ctypes.CDLL:
    if not _loaded:
        _loaded.append(ctypes.CDLL(None, use_errno=True))
    return _loaded[0]


# --- self-test


def attempts(outside: Path) -> Mapping[str, Callable[[], object]]:
    """What a confined worker must fail at, by the wall that stops it; `outside` is a readable file elsewhere."""
    libc = _libc()

    def succeed(result: int) -> None:
        if result < 0:
            raise _failure("refused")

    return {
        "memory": lambda: bytearray(1 << 46),
        "write": lambda: os.open("/tmp/lakehouse-escape", os.O_WRONLY | os.O_CREAT, 0o600),
        "remove": lambda: os.unlink(outside),  # noqa: PTH108
        "socket": lambda: succeed(libc.socket(2, 1, 0)),
        "fork": os.fork,
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "signal": lambda: os.kill(os.getppid(), 0),
        "trace": lambda: succeed(libc.ptrace(0, 0, 0, 0)),
        "raise limits": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)),
        "execute memory": lambda: succeed(-(libc.mprotect(0, 4096, 7) != 0)),
        "read outside": lambda: os.open(outside, os.O_RDONLY),
    }


ESSENTIAL = frozenset(
    ("memory", "write", "remove", "socket", "fork", "exec", "signal", "trace", "raise limits")
)
"""Without one of these SQL is refused; the others are reported."""


def self_test(outside: Path) -> dict[str, str]:
    """Try every forbidden thing: `ok` where it was refused, else what held not.  Changes nothing."""
    return {name: _refused(attempt) for name, attempt in attempts(outside).items()}


def _refused(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except (OSError, MemoryError, ValueError):
        return "ok"
    return "not held back"
