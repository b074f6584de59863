"""One service for the tests of SQL that only ask."""

from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import pytest

from sql_lake import PACKAGES, Lake, products


@pytest.fixture(scope="session")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """`products` in two versions of 100 and 120 rows, `packages`, and an index `items` of the products."""
    lake = Lake(tmp_path_factory.mktemp("lake"))
    lake.dataset("products", products())
    lake.dataset("products", products(60), products(60, start=60))
    lake.dataset("packages", pq.read_table(PACKAGES))
    vectors = np.array([[float(n), 1.0, 0.0] for n in range(100)], np.float32)
    lake.index("items", [f"p{n}" for n in range(100)], vectors)
    yield lake
    lake.close()
