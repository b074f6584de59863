"""A dataset version's rows as items: types that fit become what an index holds, the rest is named."""

import datetime as dt
import decimal
import io
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakehouse import dataset_rows as rows
from lakehouse.core.errors import Invalid, NotFound
from lakehouse.core.manifest import Manifest
from lakehouse.core.types import Batch
from lakehouse.dataset_rows import Columns, Rows
from lakehouse.runtime import SystemRuntime
from lakehouse.store.memory import MemoryStore

COLUMNS = Columns("id", "embedding", (), 2)


def table(ids: Any = ("a", "b"), vectors: Any = ((1, 2), (3, 4)), **more: Any) -> pa.Table:
    if not isinstance(vectors, pa.Array):
        vectors = pa.array([None if one is None else list(one) for one in vectors], pa.list_(pa.float32()))
    return pa.table({"id": ids, "embedding": vectors, **more})


async def read(scratch: Path, *tables: pa.Table, columns: Columns = COLUMNS) -> list[Batch]:
    store, objects = MemoryStore(), []
    for number, one in enumerate(tables):
        out = io.BytesIO()
        pq.write_table(one, out)
        await store.put(f"data/{number}", out.getvalue())
        objects.append({"key": f"data/{number}"})
    manifest = Manifest("d", uuid.UUID(int=1), 1, "f", tuple(objects), None, "")
    found = Rows(manifest, columns, store, SystemRuntime(), scratch)
    batches = [batch async for batch in found.batches()]
    assert list(scratch.iterdir()) == []
    return batches


@pytest.mark.parametrize(
    "vectors",
    [
        pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2)),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.float64())),
        pa.array([[1, 2], [3, 4]], pa.large_list(pa.float16())),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.int8())),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.decimal128(5, 2))),
    ],
    ids=lambda one: str(one.type),
)
async def test_lists_of_any_numbers_are_vectors(tmp_path: Path, vectors: pa.Array) -> None:
    (batch,) = await read(tmp_path, table(vectors=vectors))
    assert batch.ids == ("a", "b")
    assert batch.vectors.dtype == np.float32
    assert batch.vectors.tolist() == [[1, 2], [3, 4]]
    assert batch.metadata == (b"", b"")


async def test_ids_are_texts_whole_numbers_or_uuids(tmp_path: Path) -> None:
    uuids = [uuid.UUID(int=1), uuid.UUID(int=2)]
    as_uuid = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([one.bytes for one in uuids], pa.binary(16)))
    batches = await read(tmp_path, table(pa.array([7, -8], pa.int64())), table(as_uuid))
    assert [batch.ids for batch in batches] == [("7", "-8"), (str(uuids[0]), str(uuids[1]))]
    with pytest.raises(Invalid, match="ids are text"):
        await read(tmp_path, table(pa.array([1.5, 2.5])))


async def test_metadata_is_the_columns_asked_for_as_json(tmp_path: Path) -> None:
    more = {
        "price": pa.array([decimal.Decimal("1.50"), None]),
        "day": pa.array([dt.date(2026, 1, 2)] * 2),
        "tags": pa.array([["x"], []]),
        "raw": pa.array([b"\x01", b""]),
        "nan": pa.array([float("nan"), 1.0]),
        "unasked": pa.array([1, 2]),
    }
    columns = Columns("id", "embedding", ("price", "day", "tags", "raw", "nan", "id"), 2)
    (batch,) = await read(tmp_path, table(**more), columns=columns)
    assert [json.loads(text or b"") for text in batch.metadata] == [
        {"price": 1.5, "day": "2026-01-02", "tags": ["x"], "raw": "01", "nan": None, "id": "a"},
        {"price": None, "day": "2026-01-02", "tags": [], "raw": "", "nan": 1.0, "id": "b"},
    ]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (table(("c", None)), "row=`3`"),
        (table(("c", "")), "row=`3`"),
        (table(("c", "d"), ((1, 2), None)), "row=`3` id=`d`"),
        (table(("c", "d"), ((1, 2), (1, 2, 3))), "row=`3` id=`d`"),
        (table(("c", "d"), ((1, 2), (1, None))), "row=`3` id=`d`"),
        (table(("c", "d"), pa.array(["x", "y"])), "lists of numbers"),
        (pa.table({"id": ["c"]}), "column=`embedding`"),
    ],
    ids=["no id", "empty id", "no vector", "another length", "a null in it", "no list", "no column"],
)
async def test_the_first_row_that_is_no_item_is_named_by_its_number_over_all_files(
    tmp_path: Path, wrong: pa.Table, told: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await read(tmp_path, table(), wrong)
    assert told in refused.value.message
    assert list(tmp_path.iterdir()) == []


async def test_many_rows_come_in_batches(tmp_path: Path) -> None:
    count = rows.ROWS_PER_BATCH + 1
    batches = await read(tmp_path, table([str(j) for j in range(count)], [(j, 0) for j in range(count)]))
    assert [len(batch) for batch in batches] == [rows.ROWS_PER_BATCH, 1]


async def test_a_file_that_is_gone_is_not_found(tmp_path: Path) -> None:
    manifest = Manifest("d", uuid.UUID(int=1), 1, "f", ({"key": "data/0"},), None, "")
    found = Rows(manifest, COLUMNS, MemoryStore(), SystemRuntime(), tmp_path)
    with pytest.raises(NotFound):
        [batch async for batch in found.batches()]
