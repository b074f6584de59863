"""An index built from a dataset is filtered by any column of it, also by those that its items do not carry."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from live_lake import LiveLake

ROWS = 3_000
pytestmark = pytest.mark.xdist_group("dataset-filters")
YAML = """
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: Dataset
metadata: {name: products}
spec:
  sources: [{uri: products.parquet}]
---
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: VectorIndex
metadata: {name: products}
spec:
  dimension: 8
  source: {dataset: {name: products, idColumn: id, vectorColumn: embedding, metadataColumns: [price]}}
"""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveLake]:
    lake = LiveLake(tmp_path_factory.mktemp("lake"), [YAML])
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(ROWS, 8)).astype(np.float32)
    lake.parquet(
        "products.parquet",
        [f"p{number}" for number in range(ROWS)],
        vectors.tolist(),
        price=list(range(ROWS)),
        country=["SE" if number % 300 == 0 else "DK" for number in range(ROWS)],
        title=[f"Product number {number}" for number in range(ROWS)],
    )
    try:
        lake.start()
        lake.until_ready("products", kind="Dataset")
        lake.until_ready("products")
        yield lake
    finally:
        lake.stop()


def search(lake: LiveLake, **asked: Any) -> Any:
    answer = lake.http.post("/v1/vectors/index/products/search", json={"vector": [1] * 8, "k": 10, **asked})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_column_that_no_item_carries_filters_and_gives_k_rows_when_k_match(lake: LiveLake) -> None:
    found = search(lake, filter="country = 'SE'")
    assert len(found["results"]) == 10
    assert {int(hit["id"][1:]) % 300 for hit in found["results"]} == {0}
    assert found["plan"]["matched"] == 10
    assert set(found["results"][0]["metadata"]) == {"price"}

    both = search(lake, filter="country = 'SE' AND price >= 1500")
    assert sorted(int(hit["id"][1:]) for hit in both["results"]) == [1500, 1800, 2100, 2400, 2700]


def test_expressions_that_only_sql_knows_are_filters_too(lake: LiveLake) -> None:
    found = search(lake, filter="title ILIKE '%number 12' OR length(title) = 16 AND ends_with(title, '7')")
    assert {hit["id"] for hit in found["results"]} == {"p12", "p7"}


def test_the_same_filter_in_sql_scroll_count_and_batch(lake: LiveLake) -> None:
    sql = "SELECT id FROM vector_search('products', [1,1,1,1,1,1,1,1], filter := 'country = ''SE''')"
    rows = lake.http.post("/v1/sql", json={"sql": sql}).json()["rows"]
    assert [row[0] for row in rows] == [hit["id"] for hit in search(lake, filter="country = 'SE'")["results"]]
    path = "/v1/vectors/index/products"
    assert lake.http.post(f"{path}/count", json={"filter": "country = 'SE'"}).json() == {"count": 10}
    page = lake.http.post(f"{path}/scroll", json={"filter": "country = 'SE'", "limit": 100}).json()
    assert len(page["items"]) == 10
    batch = {"vectors": [[1] * 8, [-1] * 8], "filter": "country = 'SE'", "k": 3}
    assert [len(hits) for hits in lake.http.post(f"{path}/search/batch", json=batch).json()["results"]] == [
        3,
        3,
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("colour(", "filter"),
        ("country = 'SE') UNION SELECT 1 --", "filter"),
        ("country = (SELECT secret FROM nothing_of_this_name)", "nothing_of_this_name"),
        ("length(no_such_column) = 1", "no_such_column"),
        ("country = ", 'syntax error at or near ")". filter=`country = `'),  # no place in a statement of ours
    ],
)
def test_what_neither_side_can_read_is_refused_with_the_reason(lake: LiveLake, text: str, says: str) -> None:
    answer = lake.http.post("/v1/vectors/index/products/search", json={"vector": [1] * 8, "filter": text})
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["detail"]


def test_items_written_later_match_by_what_they_carry_and_not_by_the_dataset(lake: LiveLake) -> None:
    item = {"id": "new", "vector": [1] * 8, "metadata": {"price": 9_999, "colour": "red"}}
    assert lake.http.post("/v1/vectors/index/products/add", json={"items": [item]}).status_code == 200
    assert [hit["id"] for hit in search(lake, filter="price = 9999")["results"]] == ["new"]
    assert [hit["id"] for hit in search(lake, filter="colour = 'red'")["results"]] == ["new"]
    assert "new" not in {hit["id"] for hit in search(lake, filter="country = 'SE'")["results"]}
