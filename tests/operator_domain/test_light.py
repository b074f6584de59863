"""The operator stays small: nothing that holds vectors or reads datasets is loaded with it."""

import subprocess
import sys

HEAVY = (
    "duckdb",
    "hnswlib",
    "pyarrow",
    "pandas",
    "uvicorn",
    "sqlglot",
    "lakehouse.index",
    "lakehouse.collection",
)


def test_the_operator_loads_no_engine() -> None:
    code = (
        "import sys, lakehouse_operator.domain, lakehouse_operator.main; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
