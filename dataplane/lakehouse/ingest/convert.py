"""Tasks of converting, one after another on one DuckDB connection, and what ends them in our own words.

Runs in a process of its own (`lakehouse.ingest.worker`), or inline in tests.  What this module does not do: any task
itself.
"""

import errno
import os

import duckdb

from lakehouse.core.errors import Invalid, LakehouseError, MemoryExceeded, Outcome, StorageFull, Unavailable
from lakehouse.ingest import converting, inferring, reading, transforming
from lakehouse.ingest.job import (
    Answer,
    Convert,
    Describe,
    Described,
    Gather,
    Infer,
    Rewrite,
    Task,
    Transform,
)


class Converter:
    """Does tasks one after another on one DuckDB connection."""

    def __init__(self, limits: reading.Limits) -> None:
        self._limits = limits
        self._connection = reading.connected(limits)

    def do(self, task: Task) -> Answer:
        """Do one task.  Raises what is wrong with the source or the request as `LakehouseError`."""
        try:
            return self._do(task)
        except LakehouseError:
            raise
        except duckdb.Error as error:
            raise _translated(error, task, self._limits.memory_bytes) from error
        except OSError as error:
            raise _disk_failed(error) from error

    def _do(self, task: Task) -> Answer:
        match task:
            case Infer():
                return inferring.infer(self._connection, task)
            case Convert():
                return converting.convert(self._connection, task)
            case Rewrite():
                return converting.rewrite(self._connection, task)
            case Describe():
                return Described(transforming.describe_transform(self._limits, task))
            case Transform():
                return transforming.transform(self._limits, self._connection, task)
            case Gather():
                return converting.gather(self._connection, task)

    def done(self) -> float:
        """How much of the task at hand is done, 0 to 1; from another thread."""
        percent = self._connection.query_progress()
        return min(1.0, max(0.0, percent / 100))

    def close(self) -> None:
        self._connection.close()


def _translated(error: duckdb.Error, task: Task, memory_bytes: int) -> LakehouseError:
    text = reading.first_line(error)
    if isinstance(error, duckdb.OutOfMemoryException):
        return MemoryExceeded(
            "converting needs more memory than it may have: raise ingest_memory_bytes_max "
            f"(LAKEHOUSE_INGEST_MEMORY_BYTES_MAX). ingest_memory_bytes_max=`{memory_bytes}`",
            outcome=Outcome.NOT_COMMITTED,
        )
    if "No space left" in str(error):
        return StorageFull("no room for working files", outcome=Outcome.NOT_COMMITTED)
    if isinstance(task, Describe | Transform):
        return Invalid(f"the transform fails: {text}")
    return Invalid(f"the rows cannot be converted: {text}")


def _disk_failed(error: OSError) -> Unavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("no room for working files", outcome=Outcome.NOT_COMMITTED)
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return Unavailable(f"working files cannot be written. error=`{reason}`", outcome=Outcome.NOT_COMMITTED)
