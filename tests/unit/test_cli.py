"""The command line without a server: exit codes, help, resuming, targets of the benchmark."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakehouse.cli import doctor, loading, output, snapshots
from lakehouse.cli.bench import report
from lakehouse.cli.output import Exit
from lakehouse.core import errors
from lakehouse.sql import sandbox
from live_server import command_line, environment

FIXTURES = Path(__file__).resolve().parent.parent / "format" / "golden"


def lakehouse(*args: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command_line(*args), capture_output=True, text=True, env=environment(env), check=False, timeout=120
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFound("x"), Exit.NOT_FOUND),
        (errors.Conflict("x"), Exit.CONFLICT),
        (errors.Invalid("x"), Exit.USAGE),
        (errors.TooLarge("x"), Exit.USAGE),
        (errors.Busy("x"), Exit.UNAVAILABLE),
        (errors.StorageFull("x"), Exit.UNAVAILABLE),
        (errors.Fenced("x"), Exit.UNAVAILABLE),
        (errors.Corrupt("x"), Exit.FAILED),
        (errors.Denied("x", authenticated=True), Exit.FAILED),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: errors.LakehouseError, code: Exit) -> None:
    assert output.exit_code(error) is code


def test_every_kind_of_error_whose_message_names_no_remedy_gets_advice() -> None:
    for error in (
        errors.Denied("x", authenticated=False),
        errors.Denied("x", authenticated=True),
        errors.Busy("x"),
        errors.StorageFull("x"),
        errors.Unavailable("x", outcome=errors.Outcome.NOT_COMMITTED),
        errors.Unavailable("x", outcome=errors.Outcome.UNKNOWN),
        errors.Corrupt("x"),
    ):
        assert output.advice(error), error


def test_help_names_the_exit_codes_and_every_command() -> None:
    done = lakehouse("--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for word in ("Exit codes", "serve", "up", "add", "search", "index", "snapshot", "doctor", "bench", "key"):
        assert word in text


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "sys.argv = ['lakehouse', '--help']\n"
        "from lakehouse.cli.app import run\n"
        "code = run()\n"
        "heavy = {'numpy', 'httpx', 'pydantic', 'pyarrow', 'fastapi', 'boto3', 'uvicorn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_an_unknown_command_is_wrong_usage() -> None:
    done = lakehouse("frobnicate")
    assert done.returncode == Exit.USAGE
    assert "frobnicate" in done.stderr
    assert done.stdout == ""


def test_version_is_the_same_in_all_three_forms() -> None:
    assert lakehouse("--version").stdout == lakehouse("version").stdout
    assert '"version"' in lakehouse("version", "--output", "json").stdout


def test_no_server_is_told_with_what_to_do_next() -> None:
    done = lakehouse("index", "list", "--url", "http://127.0.0.1:1")
    assert done.returncode == Exit.UNAVAILABLE
    assert "lakehouse up" in done.stderr
    assert "Traceback" not in done.stderr


def test_colours_stay_out_where_no_color_is_set() -> None:
    done = lakehouse(
        "index", "list", "--url", "http://127.0.0.1:1", env={"NO_COLOR": "1", "FORCE_COLOR": "1"}
    )
    assert "\x1b[3" not in done.stderr


def test_the_environment_names_the_server() -> None:
    done = lakehouse("index", "list", env={"LAKEHOUSE_URL": "http://127.0.0.1:2"})
    assert done.returncode == Exit.UNAVAILABLE
    assert "127.0.0.1:2" in done.stderr


@pytest.mark.parametrize("args", [(), ("--vector", "[1]", "--like", "a")])
def test_a_search_takes_exactly_one_question(args: tuple[str, ...]) -> None:
    done = lakehouse("search", "docs", *args)
    assert done.returncode == Exit.USAGE
    assert "give one of the two: --id" in done.stderr


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def small_parquet(path: Path, rows: int = 10) -> Path:
    return parquet(
        path,
        id=[f"r{row}" for row in range(rows)],
        embedding=pa.array([[float(row), 1.0] for row in range(rows)], pa.list_(pa.float32())),
        section=pa.array(["a"] * rows).dictionary_encode(),
    )


def source(path: Path, batch_rows: int = 4) -> loading.Source:
    return loading.Source.open(path, "id", "embedding", None, batch_rows)


def test_a_source_takes_every_other_column_as_metadata_and_the_dimension_from_the_file(
    tmp_path: Path,
) -> None:
    found = source(small_parquet(tmp_path / "x.parquet"))
    assert (found.dimension, found.rows, found.metadata_columns) == (2, 10, ("section",))


def test_batches_go_on_at_the_batch_that_holds_the_row(tmp_path: Path) -> None:
    found = source(small_parquet(tmp_path / "x.parquet"))
    assert [(row, rows) for row, rows, _ in found.batches(0)] == [(0, 4), (4, 4), (8, 2)]
    assert [(row, rows) for row, rows, _ in found.batches(5)] == [(4, 4), (8, 2)]


@pytest.mark.parametrize(
    ("id_column", "vector_column", "metadata", "word"),
    [
        ("nope", "embedding", None, "nope"),
        ("id", "nope", None, "nope"),
        ("id", "embedding", ["nope"], "nope"),
        ("section", "embedding", ["id"], "cannot be called"),
        ("id", "section", None, "no lists"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(
    tmp_path: Path, id_column: str, vector_column: str, metadata: list[str] | None, word: str
) -> None:
    path = small_parquet(tmp_path / "x.parquet")
    with pytest.raises(errors.Invalid, match=word):
        loading.Source.open(path, id_column, vector_column, metadata, 4)


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"id,embedding\n")
    with pytest.raises(errors.Invalid, match="not a Parquet file"):
        source(path)


def test_a_file_that_is_missing_is_not_found(tmp_path: Path) -> None:
    done = lakehouse("add", "docs", str(tmp_path / "missing.parquet"))
    assert done.returncode == Exit.NOT_FOUND
    assert "missing.parquet" in done.stderr


def job(path: Path) -> loading.Job:
    return loading.Job("docs", source(path), loading.Run("abc"), create=False, in_flight=2)


def test_done_moves_on_only_without_gaps(tmp_path: Path) -> None:
    load = job(small_parquet(tmp_path / "x.parquet"))
    load.acknowledged(4, 4, 8)
    assert load.resume_token == "abc@0"
    load.acknowledged(0, 4, 4)
    assert load.resume_token == "abc@8"
    load.acknowledged(8, 2, 10)
    assert (load.resume_token, load.length) == ("abc@10", 10)


def test_a_resumed_load_gives_the_same_batch_the_same_key(tmp_path: Path) -> None:
    path = small_parquet(tmp_path / "x.parquet")
    first = job(path)
    again = loading.Job("docs", source(path), loading.Run.parse("abc@8"), create=False, in_flight=2)
    other_size = loading.Job("docs", source(path, 5), loading.Run.parse("abc@8"), create=False, in_flight=2)
    assert again.done == 8
    assert first.key(8) == again.key(8) != other_size.key(8)


@pytest.mark.parametrize("text", ["", "abc", "abc@", "abc@x", "@3", "a b@3", "abc@-1"])
def test_a_resume_token_that_nobody_printed_is_refused(text: str) -> None:
    with pytest.raises(errors.Invalid, match="--resume"):
        loading.Run.parse(text)


def test_doctor_finds_nothing_wrong_with_an_empty_directory(tmp_path: Path) -> None:
    checks = list(doctor.examine(None, {"data": str(tmp_path / "data"), "port": 0}))
    assert [check.name for check in checks if check.level is doctor.Level.WRONG] == []
    assert {check.name for check in checks} >= {
        "python",
        "cpu",
        "kernels",
        "settings",
        "disk",
        "lock",
        "store",
        "memory",
        "sql",
        "port",
    }
    assert not list(tmp_path.iterdir()), "looking makes nothing"


def test_doctor_names_variables_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LAKEHOUSE_")]:
        monkeypatch.delenv(name)
    for name in ("LAKEHOUSE_PROT", "LAKEHOUSE_LOG_LEVEL", "LAKEHOUSE_URL"):
        monkeypatch.setenv(name, "info")
    found, check = doctor.configured(None, {})
    assert found is not None
    assert (check.level, check.advice.partition(": ")[2]) == (doctor.Level.WARNING, "LAKEHOUSE_PROT")


def test_doctor_says_what_a_sandbox_with_holes_means() -> None:
    held = dict.fromkeys(("read outside", "execute memory", *sandbox.ESSENTIAL), "ok")
    whole = doctor.judged(held, 7)
    assert (whole.level, whole.advice) == (doctor.Level.OK, "")
    no_landlock = doctor.judged(held | {"read outside": "not held back"}, 0)
    assert no_landlock.level is doctor.Level.WARNING
    assert "landlock" in no_landlock.advice
    off = doctor.judged(held | {"socket": "not held back"}, 7)
    assert off.level is doctor.Level.WARNING
    assert "off: not held back from socket" in off.found


def test_doctor_tells_what_is_wrong_and_exits_1(tmp_path: Path) -> None:
    file = tmp_path / "a-file"
    file.write_text("not a directory")
    done = lakehouse("doctor", "--data", str(file), "--port", "0")
    assert done.returncode == Exit.FAILED
    assert "store" in done.stderr


def test_doctor_names_a_setting_that_cannot_be_right() -> None:
    done = lakehouse("doctor", "--output", "json", env={"LAKEHOUSE_PORT": "many"})
    assert done.returncode == Exit.FAILED
    assert "LAKEHOUSE_PORT" in done.stdout


def test_a_snapshot_that_is_damaged_does_not_verify(tmp_path: Path) -> None:
    golden = sorted(FIXTURES.glob("*v3*.lhv1")) or sorted(FIXTURES.glob("v3*"))
    assert golden, "the golden files hold a version 3 snapshot"
    damaged = bytearray(golden[0].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path = tmp_path / "damaged.lhv1"
    path.write_bytes(damaged)
    assert lakehouse("snapshot", "verify", str(golden[0])).returncode == Exit.OK
    done = lakehouse("snapshot", "verify", str(path))
    assert done.returncode == Exit.FAILED
    assert "damaged" in done.stderr


def test_a_foreign_file_is_no_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "foreign.lhv1"
    path.write_bytes(b"PAR1 and so on")
    done = lakehouse("snapshot", "inspect", str(path))
    assert done.returncode == Exit.USAGE
    assert "not an LHV1 file" in done.stderr


@pytest.mark.parametrize("pattern", ["v1*.lhv1", "v2*.lhv1"])
def test_items_of_the_old_versions_are_read(pattern: str) -> None:
    files = sorted(FIXTURES.glob(pattern))
    assert files, pattern
    for file in files:
        content = snapshots.read_items(file)
        assert len(content.ids) == len(content.vectors) == len(content.metadata)
        assert content.vectors.shape[1] == content.params.dimension


def test_equal_recall_is_read_off_between_the_steps_of_the_ladder() -> None:
    ladder = [
        {"recall": 0.9, "cpu_us": 100.0, "ef": 16},
        {"recall": 1.0, "cpu_us": 300.0, "ef": 64},
    ]
    assert report.peer_at(ladder, 0.95) == pytest.approx(200.0)
    assert report.peer_at(ladder, 0.5) == pytest.approx(100.0)
    assert report.peer_at(ladder, 1.0) == pytest.approx(300.0)


def result(**changes: Any) -> dict[str, Any]:
    """A run in which every target is met, but for `changes`."""
    step = {"ef": 64, "recall": 0.99}
    ours = {form: [step | {"default": True, "cpu_us": 110.0}] for form in ("json", "binary", "batch")}
    peer = {form: [step | {"default": False, "cpu_us": 100.0}] for form in ("peer", "peer_batch")}
    return {
        "settled": ours | peer,
        "ingest": {"rows_per_s": 9_000.0, "visible_at_once": True},
        "memory": {"growth_bytes": 100},
        "peer": {"growth_bytes": 100},
        "restart_s": 1.0,
        "filters": [{"part": 0.1, "recall": 1.0, "cpu_us": 100.0, "scan_cpu_us": 100.0}],
    } | changes


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, set()),
        ({"restart_s": 5.1}, {"kill -9 to first right answer"}),
        ({"memory": {"growth_bytes": 131}}, {"growth of anonymous memory"}),
        (
            {"ingest": {"rows_per_s": 9_000.0, "visible_at_once": False}},
            {"durable ingest, at once searchable"},
        ),
        (
            {"filters": [{"part": 0.1, "recall": 1.0, "cpu_us": 251.0, "scan_cpu_us": 100.0}]},
            {"filter matching 10.00%"},
        ),
    ],
)
def test_a_target_that_is_missed_is_reported_as_missed(changes: dict[str, Any], missed: set[str]) -> None:
    lines = report.targets(result(**changes))
    assert {line.name for line in lines if not line.met} == missed


def test_wide_vectors_go_in_smaller_batches(tmp_path: Path) -> None:
    rows = [np.zeros(65_535, dtype=np.float32)] * 2
    path = parquet(tmp_path / "x.parquet", id=["a", "b"], embedding=pa.array(rows, pa.list_(pa.float32())))
    found = source(path, 1_000)
    assert found.batch_rows * found.dimension * 4 <= loading.VECTOR_BYTES_MAX
