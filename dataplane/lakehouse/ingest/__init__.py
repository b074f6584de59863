"""Files in, Parquet and a manifest out: every row is in the dataset or among its rejected rows.

`run` brings a dataset to what an `IngestSpec` says.  What this package does not do: answer queries, or decide
when to ingest.

What is named here is imported when it is first used: the worker needs none of it, and starts in half the time.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lakehouse.ingest.formats import Format
    from lakehouse.ingest.running import read_rejects, run
    from lakehouse.ingest.spec import IngestResult, IngestSpec, Mode, Progress, Reject, Source, Step

__all__ = [
    "Format",
    "IngestResult",
    "IngestSpec",
    "Mode",
    "Progress",
    "Reject",
    "Source",
    "Step",
    "read_rejects",
    "run",
]

_HOMES = {"Format": "formats", "read_rejects": "running", "run": "running"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'spec')}")
    globals()[name] = value = getattr(module, name)
    return value
