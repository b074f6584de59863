"""What `make demo` shows: YAML becomes datasets and indexes, SQL reaches both, and kill -9 in mid-write loses nothing.

Read it from `main` downwards; each step prints what it does.  The commands it runs are the ones you would type.
At the end the server stays up, in the background; `--stop` ends it instead, `--only-stop` ends one left by an
earlier run.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.rule import Rule
from rich.syntax import Syntax

from lakehouse.cli.process import ServerProcess, free_port
from lakehouse.client import Client, Retries, Stored
from lakehouse.core.errors import LakehouseError
from lakehouse.core.types import Vectors
from lakehouse.runtime import SystemRuntime, pause

EXAMPLES = Path(__file__).resolve().parent
DECLARED = "packages.yaml"
RESTORE = "restore"
PACKAGES = EXAMPLES / "debian-packages.parquet"
SECTIONS = EXAMPLES / "sections.csv"
NEW_PACKAGES = "new-packages.parquet"
FOLDER = EXAMPLES.parent / ".demo"
PORT = 3110
NEW_ROWS, KNOWN_ROWS = 450, 50
"""The fresh index gets 450 packages that the main one lacks and 50 that it has: as many as make it drain at once."""
BATCH_ROWS = 25
WRITERS = 3
ACKNOWLEDGED_BEFORE_KILL = 60
"""Of about 200 batches, so that the kill comes in the middle."""
WAIT_S_MAX = 60.0

COLUMNS = "section,installed_size_kib,description"
NEIGHBOURS = """SELECT p.id, s.title AS section, p.architecture, p.installed_size_kib AS kib, round(v.distance, 3) AS d
FROM vector_search('packages', 'git', k := 6) v JOIN packages p USING (id) JOIN sections s USING (section)
ORDER BY d"""
NEAREST = """SELECT s.title AS section, count(*) AS packages, round(avg(v.distance), 3) AS to_the_nearest_other
FROM packages p JOIN sections s USING (section),
LATERAL (SELECT * FROM vector_search('packages', p.embedding, k := 2)) v
WHERE v.id <> p.id AND p.section IN ('database', 'games', 'haskell', 'fonts')
GROUP BY ALL ORDER BY to_the_nearest_other"""
VERSIONS = (
    """SELECT (SELECT count(*) FROM "packages@v1") AS version_1, (SELECT count(*) FROM packages) AS newest"""
)

console = Console(width=None if sys.stdout.isatty() else 110)


def main() -> int:
    """The demo, step by step."""
    arguments = options()
    folder: Path = arguments.folder.resolve()
    stop_earlier(folder)
    if arguments.only_stop:
        return 0
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    runtime = SystemRuntime()
    server = ServerProcess(
        folder / "data",
        free_port(arguments.port),
        folder / "server.log",
        runtime,
        args=("-f", str(folder / "lake" / DECLARED)),
        command="up",
    )
    try:
        run(server, folder, runtime)
    except BaseException:
        server.kill()
        console.print(f"[red]the demo stopped here[/]; the server's log is {folder / 'server.log'}")
        raise
    finish(server, folder, stop=arguments.stop)
    return 0


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Show what lakehouse does, on 5,115 Debian packages.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="data, log and files (emptied first)")
    parser.add_argument("--port", type=int, default=PORT, help="or any free one if that is taken")
    parser.add_argument("--stop", action="store_true", help="end the server at the end")
    parser.add_argument(
        "--only-stop", action="store_true", help="end the server of an earlier run, and nothing else"
    )
    return parser.parse_args()


def run(server: ServerProcess, folder: Path, runtime: SystemRuntime) -> None:
    """Everything between starting the server and leaving it."""
    lake = folder / "lake"
    table = prepare(lake)
    declared(server, folder, lake)
    searched(server)
    joined(server)
    drained(server, lake, table, runtime)
    edited(server, lake)
    step("kill -9 in the middle of adding")
    survive(server, folder, table, runtime)
    restored(server, folder, lake)


def prepare(lake: Path) -> pa.Table:
    """Copies of the example's files, so that the demo may edit them, with some packages held back; the whole table."""
    shutil.copytree(EXAMPLES / RESTORE, lake / RESTORE)
    for path in (EXAMPLES / DECLARED, SECTIONS):
        shutil.copy(path, lake / path.name)
    table = pq.read_table(PACKAGES)
    held_back = pa.array(new_rows(table))
    pq.write_table(table.filter(pc.invert(held_back)), lake / PACKAGES.name)
    pq.write_table(table.filter(held_back), lake / NEW_PACKAGES)
    return table


def new_rows(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Which packages the dataset lacks at first: some of every section, and postgresql's nearest neighbour."""
    new = np.zeros(len(table), dtype=np.bool_)
    new[np.linspace(0, len(table) - 1, NEW_ROWS).astype(np.int64)] = True
    ids = table["id"].to_pylist()
    new[ids.index("postgresql")] = False
    new[ids.index("postgresql-contrib")] = True
    new[np.flatnonzero(new)[NEW_ROWS:]] = False  # the line above may have made one too many
    return new


def declared(server: ServerProcess, folder: Path, lake: Path) -> None:
    """Files say what should be; the server makes it so."""
    step("What should be, in YAML: two datasets, an index built from one, a fresh index that drains into it")
    console.print(Syntax((lake / DECLARED).read_text(), "yaml", background_color="default"))
    say(f"$ lakehouse up --data {shown(server.data)} --port {server.port} -f {shown(lake / DECLARED)}")
    start(server, folder)
    say(f"answers at [bold]{server.url}[/]")
    cli(server, "apply", "-f", str(lake / DECLARED), "--wait")
    cli(server, "get")


def searched(server: ServerProcess) -> None:
    """The index alone."""
    step("Which packages are like postgresql?")
    cli(server, "search", "packages", "--like", "postgresql", "--k", "6", "--show", COLUMNS)
    step(
        "The same, for any machine: `architecture` is a column of the dataset that the index itself does not hold"
    )
    where = "architecture = 'all' AND installed_size_kib < 1000"
    cli(
        server, "search", "packages", "--like", "postgresql", "--k", "6", "--show", COLUMNS, "--filter", where
    )


def joined(server: ServerProcess) -> None:
    """Vectors and datasets in one query."""
    step("SQL over both: the neighbours of git, with columns of two datasets")
    cli(server, "sql", NEIGHBOURS)
    step("How near is the nearest other package?  One search per row of a table")
    cli(server, "sql", NEAREST)


def drained(server: ServerProcess, lake: Path, table: pa.Table, runtime: SystemRuntime) -> None:
    """New packages come in through the fresh index."""
    known = table.filter(pa.array(~new_rows(table))).slice(0, KNOWN_ROWS)
    arrived = lake.parent / "arrived.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(lake / NEW_PACKAGES), known]), arrived)
    step(
        f"{NEW_ROWS} new packages and {KNOWN_ROWS} known ones arrive in the fresh index, and drain by themselves"
    )
    cli(server, "add", "fresh", str(arrived))
    with Client(server.url) as client:
        wait_for(lambda: client.index("packages").length == len(table), runtime)
        wait_for(lambda: client.index("fresh").length == 0, runtime)
    cli(server, "get", "vectorindexes")
    say("The nearest package of all was among the new ones:")
    cli(server, "search", "packages", "--like", "postgresql", "--k", "2", "--show", COLUMNS)


def edited(server: ServerProcess, lake: Path) -> None:
    """A changed file, applied again."""
    step("Edit the YAML: searches keep more candidates, and the dataset takes the new packages too")
    path = lake / DECLARED
    text = path.read_text().replace("efSearch: 64", "efSearch: 128")
    source = f"    - uri: {PACKAGES.name}\n"
    path.write_text(text.replace(source, f"{source}    - uri: {NEW_PACKAGES}\n"))
    cli(server, "diff", "-f", str(path), expected=1)
    cli(server, "apply", "-f", str(path), "--wait")
    cli(server, "dataset", "versions", "packages")
    cli(server, "sql", VERSIONS)


def restored(server: ServerProcess, folder: Path, lake: Path) -> None:
    """A snapshot becomes another index; and a file for the old system."""
    step("A snapshot, and a new index that begins with what is in it")
    cli(server, "apply", "-f", str(lake / RESTORE), "--wait")
    cli(server, "get")
    cli(server, "search", "packages-restored", "--like", "postgresql", "--k", "2", "--show", COLUMNS)
    step("A file that the old Go system reads")
    snapshot = folder / "packages-v2.lhv1"
    cli(server, "snapshot", "export", "packages", "--version", "2", "--out", str(snapshot))
    cli(server, "snapshot", "inspect", str(snapshot))


@dataclass
class Journal:
    """What the writing clients were told: batch numbers only, kept by the client, not by the server."""

    batches: list[pa.Table]
    sent: set[int] = field(default_factory=set)
    acknowledged: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> int | None:
        """Take the next batch to send."""
        with self.lock:
            number = len(self.sent)
            if number == len(self.batches):
                return None
            self.sent.add(number)
            return number


def survive(server: ServerProcess, folder: Path, table: pa.Table, runtime: SystemRuntime) -> None:
    """Write from several clients, kill the server, start it, and compare with what the clients were told."""
    starts = range(0, len(table), BATCH_ROWS)
    journal = Journal([table.slice(start, BATCH_ROWS) for start in starts])
    with Client(server.url) as lake:
        lake.create("killed", dimension=384)
    writers = [threading.Thread(target=write, args=(server.url, journal)) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    wait_for(lambda: len(journal.acknowledged) >= ACKNOWLEDGED_BEFORE_KILL, runtime)
    server.kill()
    for writer in writers:
        writer.join()
    under_way = len(journal.sent) - len(journal.acknowledged)
    say(
        f"{WRITERS} clients had {len(journal.acknowledged)} of {len(journal.batches)} batches acknowledged; "
        f"{under_way} were under way when the server was killed"
    )
    started = runtime.monotonic()
    start(server, folder)
    say(f"started again on the same directory; ready after {runtime.monotonic() - started:.1f} s")
    compare(server.url, journal)


def write(url: str, journal: Journal) -> None:
    """One client: add batches and note which were acknowledged, until the server is gone."""
    with Client(url, retries=Retries(attempts_max=1)) as lake:
        while (number := journal.next()) is not None:
            batch = journal.batches[number]
            metadata = [{"batch": number}] * len(batch)
            try:
                lake.add("killed", batch["id"].to_pylist(), vectors_of(batch), metadata)
            except LakehouseError:
                return
            with journal.lock:
                journal.acknowledged.add(number)


def compare(url: str, journal: Journal) -> None:
    """Every acknowledged batch is there bit for bit; every other one is there whole or not at all."""
    with Client(url) as lake:
        stored = {item.id: item for item in lake.items("killed", include=("vectors", "metadata"))}
    landed = {number for number in journal.sent if is_there(journal.batches[number], number, stored)}
    lost = journal.acknowledged - landed
    items = sum(len(journal.batches[number]) for number in landed)
    if lost or len(stored) != items:
        raise SystemExit(
            f"BUG: {len(lost)} acknowledged batches are gone, {len(stored) - items} items are stray"
        )
    say(
        f"[green]✓[/] all {len(journal.acknowledged) * BATCH_ROWS:,} acknowledged items are there, bit for bit"
    )
    others = journal.sent - journal.acknowledged
    say(
        f"[green]✓[/] of the {len(others)} others, {len(others & landed)} are there whole, the rest not at all"
    )


def is_there(batch: pa.Table, number: int, stored: dict[str, Stored]) -> bool:
    """Whether a batch is stored as it was sent.  A batch that is stored in part ends the demo."""
    same = [
        item_id in stored
        and stored[item_id].metadata == {"batch": number}
        and np.array_equal(bits(stored[item_id].vector), bits(vector))
        for item_id, vector in zip(batch["id"].to_pylist(), vectors_of(batch), strict=True)
    ]
    if any(same) and not all(same):
        raise SystemExit(f"BUG: batch {number} is there in part")
    return all(same)


def vectors_of(batch: pa.Table) -> Vectors:
    """The embeddings as rows."""
    column = batch["embedding"].combine_chunks()
    rows: Vectors = column.flatten().to_numpy().reshape(len(column), -1)
    return rows


def bits(vector: Vectors | None) -> npt.NDArray[np.uint32]:
    """The vector's bits, because == takes 0.0 and −0.0 for the same."""
    assert vector is not None
    return np.ascontiguousarray(vector, dtype=np.float32).view(np.uint32)


# ---- the server, the commands, the screen


def start(server: ServerProcess, folder: Path) -> None:
    """Start the server and note whom to end next time."""
    server.start()
    (folder / "server.pid").write_text(f"{server.pid}\n")


def stop_earlier(folder: Path) -> None:
    """End the server of an earlier run, once it is sure that this is what the pid file names."""
    try:
        pid = int((folder / "server.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return
    if b"up" in command and os.fsencode(folder / "data") in command:
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not is_running(pid), SystemRuntime())
        say(f"[dim]stopped the server of an earlier run, pid {pid}[/]")


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], runtime: SystemRuntime) -> None:
    """Wait until it holds, within reason."""
    deadline = runtime.monotonic() + WAIT_S_MAX
    while not condition():
        if runtime.monotonic() > deadline:
            raise SystemExit(f"gave up waiting after {WAIT_S_MAX:.0f} s")
        pause(0.005)


def cli(server: ServerProcess, *arguments: str, expected: int = 0) -> None:
    """Show a command, and run it against the demo's server."""
    say(f"$ lakehouse {' '.join(quoted(shown(argument)) for argument in arguments)}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LAKEHOUSE_")}
    environment = {"COLUMNS": str(console.width), **kept, "LAKEHOUSE_URL": server.url}
    done = subprocess.run([sys.executable, "-m", "lakehouse", *arguments], env=environment, check=False)
    if done.returncode != expected:
        raise SystemExit(f"the command failed with exit code {done.returncode}")


def shown(argument: object) -> str:
    """As one types it: paths from where one is."""
    text = str(argument)
    return os.path.relpath(text) if Path(text).is_relative_to(Path.cwd()) else text


def quoted(argument: str) -> str:
    """As one types it in a shell: double quotes around single ones, where that is enough."""
    if "'" in argument and not set(argument) & set('"$`\\!'):
        return f'"{argument}"'
    return shlex.quote(argument)


def step(title: str) -> None:
    """A heading."""
    console.print()
    console.print(Rule(f"[bold]{title}[/]", align="left"))


def say(text: str) -> None:
    """A line; flushed, so that it stands before what a command prints."""
    console.print(text, highlight=False, soft_wrap=True)
    sys.stdout.flush()


def finish(server: ServerProcess, folder: Path, *, stop: bool) -> None:
    """Leave the server up and say how to reach and end it, or end it."""
    step("Done")
    if stop:
        server.stop()
        say("the server has ended, as --stop asked")
        return
    say(f"the server stays up at [bold]{server.url}[/] (data, log and snapshot in {shown(folder)})")
    say(f"  try it    curl -s {server.url}/v1/vectors/index")
    search = shlex.quote('{"id": "git", "k": 3}')
    say(f"            curl -s {server.url}/v1/vectors/index/packages/search -d {search}")
    say(f"  stop it   kill {server.pid}        or: make demo ARGS=--only-stop")


if __name__ == "__main__":
    sys.exit(main())
