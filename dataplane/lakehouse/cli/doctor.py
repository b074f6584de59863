"""`lakehouse doctor`: what this machine, the settings and the data are like, and what to do about it.

Each check is a function that returns a `Check`; a failed one never keeps the others from running.
What it does not do: repair anything, or read what is in the indexes.
"""

import asyncio
import contextlib
import enum
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.output import Exit, Format, Output, err_console, print_json, print_table
from lakehouse.core.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.settings import Settings

PYTHON_MIN = (3, 11)
FREE_BYTES_MIN = 1 << 30
"""1 GiB: a full snapshot of a modest index beside the one it replaces."""
FEATURES = ("avx2", "fma", "avx512f", "avx512bw", "asimd")
PROBE_S_MAX = 2.0
READ_BY_OTHERS = frozenset(
    f"LAKEHOUSE_{name}" for name in ("URL", "API_KEY", "FULL_DATA", "TASK", "TERMINATION_LOG")
)
"""Variables that are no settings of a server: the client's, the benchmark's, and a Job's."""


class Level(enum.StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True)
class Check:
    """One thing looked at; `advice` says what to do where it is not ok."""

    name: str
    level: Level
    found: str
    advice: str = ""


def doctor(
    data: Annotated[
        str | None, typer.Option(help="Look at this store instead of the configured one.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Look at this port instead of the configured one.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file; default: lakehouse.toml.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Look for what could keep the server from working; exit code 1 if something is wrong."""
    checks = list(examine(config, {"data": data, "port": port}))
    if output is Format.JSON:
        print_json({"ok": _fine(checks), "checks": [asdict(check) for check in checks]})
    else:
        colours = {Level.OK: "green", Level.WARNING: "yellow", Level.WRONG: "bold red"}
        print_table([{"check": check.name, "": check.level, "found": check.found} for check in checks])
        for check in checks:
            if check.advice:
                err_console().print(
                    f"[{colours[check.level]}]{check.level}[/] {check.name}: {check.advice}", highlight=False
                )
    if not _fine(checks):
        raise typer.Exit(Exit.FAILED)


def _fine(checks: list[Check]) -> bool:
    return all(check.level is not Level.WRONG for check in checks)


def examine(config: Path | None, overrides: dict[str, Any]) -> Iterator[Check]:
    """Every check, those of the settings and the store only where the settings can be read."""
    yield python_version()
    yield cpu()
    yield kernels()
    settings, check = configured(config, overrides)
    yield check
    if settings is not None:
        yield from directory(settings.data)
        yield store(settings)
        yield memory(settings)
        yield sandbox(settings)
        yield listening(settings)


def python_version() -> Check:
    """The interpreter."""
    found = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    if sys.version_info < PYTHON_MIN:
        return Check("python", Level.WRONG, found, "use Python 3.11 or newer")
    return Check("python", Level.OK, found)


def cpu() -> Check:
    """What the processor can do, and how many of its cores we may use."""
    flags: set[str] = set()
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                flags.update(value.split())
                break
    known = [feature for feature in FEATURES if feature in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check(
        "cpu", Level.OK, f"{platform.machine()}, {cores} cores, {' '.join(known) or 'features unknown'}"
    )


def kernels() -> Check:
    """Whether the compiled search kernels load, and which variant they chose for this CPU."""
    try:
        from lakehouse.index import kernels as native

        return Check("kernels", Level.OK, native.variant())
    except (ImportError, OSError) as error:
        return Check(
            "kernels",
            Level.WRONG,
            "not usable",
            f"install lakehouse again, with a C++ compiler at hand: {error}",
        )


def configured(config: Path | None, overrides: dict[str, Any]) -> "tuple[Settings | None, Check]":
    """The settings, from the file and the environment."""
    from lakehouse import settings

    try:
        found = settings.load(config, **overrides)
    except LakehouseError as error:
        return None, Check("settings", Level.WRONG, "cannot be used", error.message)
    file = config or (Path(settings.CONFIG_FILE) if Path(settings.CONFIG_FILE).is_file() else None)
    named = sorted(name for name in os.environ if name.startswith(settings.ENV_PREFIX))
    keys = f"{len(found.keys)} keys" if found.keys else "no keys: everyone on this machine is an admin"
    told = f"{file or 'no file'}; {', '.join(named) or 'no LAKEHOUSE_* variables'}; {keys}"
    settable = {f"{settings.ENV_PREFIX}{name}".upper() for name in settings.Settings.model_fields}
    unread = sorted(set(named) - settable - READ_BY_OTHERS)
    if unread:
        return found, Check(
            "settings",
            Level.WARNING,
            told,
            f"no setting is called so, and nobody reads it: {', '.join(unread)}",
        )
    return found, Check("settings", Level.OK, told)


def directory(data: str) -> Iterator[Check]:
    """Free space, and who holds the lock; only where the data is a directory."""
    if data == "memory:":
        yield Check(
            "data", Level.WARNING, "memory", "nothing outlives the process; name a directory or s3://…"
        )
        return
    if data.startswith("s3://"):
        return
    path = _local(data)
    yield _free_space(_existing(path))
    yield _lock_holder(path)


def _local(data: str) -> Path:
    return Path(data.removeprefix("file://")).expanduser()


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def _free_space(existing: Path) -> Check:
    free = shutil.disk_usage(existing).free
    found = f"{free / 2**30:,.1f} GiB free at {existing}"
    if free < FREE_BYTES_MIN:
        return Check(
            "disk", Level.WARNING, found, "writes are refused with 503 once it is full: free some space"
        )
    return Check("disk", Level.OK, found)


def _lock_holder(path: Path) -> Check:
    """Without taking the lock: what the process that holds it wrote into its file."""
    holders = []
    for lock in sorted(path.glob(".lock-*")) if path.is_dir() else []:
        pid = _holder(lock)
        if pid is not None:
            holders.append(f"{lock.name.removeprefix('.lock-')}: pid {pid}")
    return Check("lock", Level.OK, "; ".join(holders) or "free")


def _holder(lock: Path) -> str | None:
    import fcntl

    try:
        with lock.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(32).strip() or "unknown"
    except OSError:
        return None
    return None


def store(settings: "Settings") -> Check:
    """Whether the store does what the log relies on, tried with a few bytes under `_probe/`.

    A directory that is not there is not made: the place where it would be is tried.
    """
    is_local = settings.data != "memory:" and not settings.data.startswith("s3://")
    path = _local(settings.data)
    try:
        if is_local and not path.exists():
            with tempfile.TemporaryDirectory(prefix=".lakehouse-doctor-", dir=_existing(path)) as folder:
                asyncio.run(_probed(settings.model_copy(update={"data": folder})))
            found = f"{path} is not there yet; the place for it is fit"
        else:
            found = asyncio.run(_probed(settings))
    except (LakehouseError, OSError) as error:
        return Check("store", Level.WRONG, settings.data, str(error))
    return Check("store", Level.OK, f"{found}: create-if-absent, read, list and delete work")


async def _probed(settings: "Settings") -> str:
    from lakehouse.cli.stores import opened

    async with opened(settings) as (found, _):
        return found.url


def memory(settings: "Settings") -> Check:
    """Whether what SQL and ingest may take at once is there; indexes come on top."""
    available = _memory_bytes()
    workers, each = settings.sql_workers, settings.sql_memory_bytes_max
    asked = workers * each + settings.ingest_memory_bytes_max
    parts = f"{workers} SQL workers of {_gib(each)} and {_gib(settings.ingest_memory_bytes_max)} for ingest"
    if available is None:
        return Check("memory", Level.OK, f"unknown; {parts} may be taken")
    found = f"{_gib(available)} available; {parts} may be taken"
    if asked > available:
        advice = "lower sql_workers, sql_memory_bytes_max or ingest_memory_bytes_max, or have more memory"
        return Check("memory", Level.WARNING, found, advice)
    return Check("memory", Level.OK, found)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def _memory_bytes() -> int | None:
    """What this process could still take: of the machine, or of its control group where that is less."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10)
    groups = (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    )
    for limit, used in groups:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            found.append(max(0, int(Path(limit).read_text()) - int(Path(used).read_text())))
    return min(found, default=None)


def sandbox(settings: "Settings") -> Check:
    """Whether the kernel confines SQL's workers, tried with a real one."""
    try:
        walls, landlock = asyncio.run(_walls(settings))
    except (LakehouseError, OSError, TimeoutError) as error:
        return Check("sql", Level.WARNING, "off", f"{_SQL_ADVICE}: {error or type(error).__name__}")
    return judged(walls, landlock)


_SQL_ADVICE = (
    "everything else works, but SQL needs Linux with seccomp and resource limits, also in a container"
)


def judged(walls: Mapping[str, str], landlock: int) -> Check:
    """What the walls of a worker come to; `landlock` is the kernel's version of it, 0 for none."""
    from lakehouse.sql.sandbox import ESSENTIAL

    broken = sorted(name for name, said in walls.items() if said != "ok")
    off = sorted(ESSENTIAL - {name for name, said in walls.items() if said == "ok"})
    if off:
        return Check("sql", Level.WARNING, f"off: not held back from {', '.join(off)}", _SQL_ADVICE)
    if landlock == 0 or broken:
        found = f"limits and seccomp hold; no Landlock, so a worker can read what {_user()} can"
        advice = "use a kernel from 5.13 on with landlock among its `lsm=`, or run the query role as a user of its own"
        return Check("sql", Level.WARNING, found, advice)
    return Check("sql", Level.OK, f"limits, seccomp and Landlock {landlock} confine the workers")


def _user() -> str:
    return f"user {os.getuid()}"


async def _walls(settings: "Settings") -> tuple[Mapping[str, str], int]:
    """What a confined worker was held back from, and the version of Landlock."""
    from lakehouse.runtime import SystemRuntime
    from lakehouse.sql.workers import WorkerPool

    runtime = SystemRuntime()
    with tempfile.TemporaryDirectory(prefix="lakehouse-doctor-") as folder:
        pool = WorkerPool(runtime, Path(folder), settings.sql_memory_bytes_max, 1)
        try:
            await pool.start()
            return await pool.probe(), pool.landlock
        finally:
            await pool.close()
            runtime.close()


def listening(settings: "Settings") -> Check:
    """Whether the port is free, or who answers there."""
    import socket

    address = f"{settings.host}:{settings.port}"
    try:
        family = socket.getaddrinfo(settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(family[4])
    except OSError as error:
        answer = _who_answers(settings)
        if answer is not None:
            return Check("port", Level.OK, f"{address}: {answer}")
        return Check(
            "port", Level.WRONG, f"{address}: {error.strerror or error}", "choose another with --port"
        )
    return Check("port", Level.OK, f"{address} is free")


def _who_answers(settings: "Settings") -> str | None:
    """A lakehouse server is known by what its `/health` tells of itself."""
    import httpx

    host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host
    try:
        answer = httpx.get(f"http://{host}:{settings.port}/health", timeout=PROBE_S_MAX)
        known = answer.json()
        return f"a lakehouse server answers, version {known['version']}, roles {', '.join(known['roles'])}"
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
