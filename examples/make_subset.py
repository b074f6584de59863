"""Choose the rows of the full Debian package file that fit into a repository.

    python examples/make_subset.py FULL.parquet [OUT.parquet]

Deterministic: no chance is involved, so the same file gives the same subset.  It makes no embeddings.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 5_000
"""About 3.7 MB: enough for a graph to matter, small enough for a clone."""
SECTION_ROWS_MIN = 15
"""So that even the smallest section (`zope`, 15 packages) is there whole."""
NEIGHBOURS = 40
"""Nearest packages kept for each anchor, so that its search results read as they do on the full file."""
ANCHORS = ("postgresql", "nginx", "git", "vim", "python3-numpy", "ffmpeg", "gimp", "rustc")
ROW_GROUP_ROWS = 1_024
"""Several groups, so that a streaming reader has something to stream."""

Mask = npt.NDArray[np.bool_]


def main() -> None:
    """Read the command line, then the file; write the subset."""
    parser = argparse.ArgumentParser(description="Write a deterministic subset of the Debian package file.")
    parser.add_argument("full", type=Path, help="the full Parquet file")
    parser.add_argument(
        "out", type=Path, nargs="?", default=Path(__file__).with_name("debian-packages.parquet")
    )
    arguments = parser.parse_args()
    table = pq.read_table(arguments.full)
    write(table.filter(pa.array(chosen(table))), arguments.out)


def chosen(table: pa.Table) -> Mask:
    """Which rows to keep: what the examples search for, then an even sample of every section."""
    sections = np.array(table["section"].to_pylist())
    keep = interesting(table, sections)
    fraction = (ROWS - int(keep.sum())) / int((~keep).sum())
    for section in np.unique(sections):
        rows = np.flatnonzero((sections == section) & ~keep)
        missing = SECTION_ROWS_MIN - int((keep & (sections == section)).sum())
        keep[evenly(rows, min(len(rows), max(round(fraction * len(rows)), missing)))] = True
    return keep


def interesting(table: pa.Table, sections: npt.NDArray[np.str_]) -> Mask:
    """Databases, essential packages, and the neighbourhoods of well-known packages, python ones apart."""
    ids = np.array(table["id"].to_pylist())
    sizes = table["installed_size_kib"].to_numpy()
    keep = (sections == "database") | np.isin(
        np.array(table["priority"].to_pylist()), ["required", "important", "standard"]
    )
    vectors = embeddings(table)
    small_python = (sections == "python") & (sizes < 500)
    for anchor in ANCHORS:
        distances = -(vectors @ vectors[ids == anchor][0])
        keep[np.argsort(distances, kind="stable")[:NEIGHBOURS]] = True
        keep[np.argsort(np.where(small_python, distances, np.inf), kind="stable")[:NEIGHBOURS]] = True
    return keep


def embeddings(table: pa.Table) -> npt.NDArray[np.float32]:
    """All embeddings as one matrix."""
    column = table["embedding"].combine_chunks()
    return column.values.to_numpy().reshape(len(column), -1)


def evenly(rows: npt.NDArray[np.intp], wanted: int) -> npt.NDArray[np.intp]:
    """`wanted` of `rows`, at equal steps."""
    if wanted <= 0:
        return rows[:0]
    return rows[np.linspace(0, len(rows) - 1, wanted).round().astype(np.intp)]


def write(table: pa.Table, path: Path) -> None:
    """Zstandard; the embedding as split bytes, which halves it because its floats have short mantissas."""
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        row_group_size=ROW_GROUP_ROWS,
        use_dictionary=["section", "priority", "architecture"],
        column_encoding={"embedding.list.element": "BYTE_STREAM_SPLIT"},
    )


if __name__ == "__main__":
    main()
