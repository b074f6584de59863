"""Ten million rows: memory stays under a gibibyte, and the time close to what DuckDB alone needs.

Both sides run in the same session with the same options, in turn, so the machine's mood cancels out.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from ingest.lake import Lake
from lakehouse import ingest, settings
from lakehouse.ingest import IngestSpec, Source
from lakehouse.ingest.job import Answer, Task
from lakehouse.ingest.process import ProcessConverting, Told
from lakehouse.ingest.reading import Limits
from lakehouse.ingest.writing import FILE_BYTES, ROW_GROUP_ROWS

ROWS = 10_000_000
RESIDENT_BYTES_MAX = 1 << 30
TIME_FACTOR_MAX = 1.5
GENERATE = f"""COPY (SELECT i AS id, 'name-' || (hash(i) % 100000) AS name, (random() * 1000)::DECIMAL(10, 2) AS price,
    DATE '2020-01-01' + (i % 2000)::INTEGER AS day, random() AS score, i % 7 = 0 AS flag
    FROM range({ROWS}) t(i)) TO '{{path}}' (HEADER)"""
ALONE = """
import duckdb, sys, time
source, out, memory, threads, spill, group, size = sys.argv[1:]
con = duckdb.connect()
con.execute("SET enable_progress_bar = false")
con.execute(f"SET memory_limit = '{memory}B'; SET threads = {threads}; SET temp_directory = '{spill}'")
began = time.monotonic()
con.execute(f"COPY (SELECT * FROM read_csv('{source}', store_rejects = true)) TO '{out}' (FORMAT parquet, "
    f"COMPRESSION zstd, ROW_GROUP_SIZE {group}, FILE_SIZE_BYTES {size})")
print(time.monotonic() - began)
"""


class Watched(ProcessConverting):
    """Keeps its limits, and what the child has needed at most."""

    peak_bytes = 0
    limits: Limits

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        Watched.limits = limits

    async def do(self, task: Task, told: Told) -> Answer:
        answer = await super().do(task, told)
        Watched.peak_bytes = max(Watched.peak_bytes, resident("VmHWM", self.pid))
        return answer


def resident(which: str, pid: int | None = None) -> int:
    """Bytes: `VmHWM`, the most so far, or `VmRSS`, now."""
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    return int(status.partition(f"{which}:")[2].split()[0]) * 1024


@pytest.mark.soak
@pytest.mark.timeout(1_800)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_ten_million_rows_stay_within_memory_and_near_duckdbs_own_time(disk_lake: Lake) -> None:
    lake = disk_lake
    source = lake.sources / "ten-million.csv"
    with duckdb.connect(config={"memory_limit": "1GB", "preserve_insertion_order": "false"}) as con:
        con.execute(GENERATE.format(path=source))
    alone, ours = [], []
    for number in range(2):
        began = time.monotonic()
        spec = IngestSpec(f"d{number}", (Source(str(source)),))
        done = await ingest.run(
            spec,
            lake.catalog,
            lake.store,
            lake.runtime,
            settings.load(),
            lake.told.append,
            scratch=lake.scratch,
            converting=Watched,
        )
        ours.append(time.monotonic() - began)
        assert done.manifest.row_count == ROWS
        limits = Watched.limits
        arguments = [source, lake.scratch / f"alone-{number}", limits.memory_bytes, limits.threads]
        arguments += [lake.scratch / "spill", ROW_GROUP_ROWS, FILE_BYTES]
        ran = subprocess.run(
            [sys.executable, "-c", ALONE, *map(str, arguments)], capture_output=True, text=True, check=True
        )
        alone.append(float(ran.stdout.split()[-1]))
    factor = min(ours) / min(alone)
    figures = {
        "source_mib": source.stat().st_size >> 20,
        "ours_s": ours,
        "duckdb_copy_s": alone,
        "factor": factor,
        "worker_peak_mib": Watched.peak_bytes >> 20,
        "parent_mib": resident("VmRSS") >> 20,
    }
    print(json.dumps(figures))
    assert Watched.peak_bytes + resident("VmRSS") < RESIDENT_BYTES_MAX
    assert factor < TIME_FACTOR_MAX
