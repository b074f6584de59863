"""Files in, Parquet and a manifest out: every row is in the dataset or among its rejected rows.

`run` brings a dataset to what an `IngestSpec` says.  What this package does not do: answer queries, or decide
when to ingest.
"""

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
