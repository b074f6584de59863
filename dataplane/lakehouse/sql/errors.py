"""What a query can end in beside its result.

All of these are about the query: sent again unchanged it fails again, so they are `Invalid`, and `kind` tells them
apart for programs.  What this module does not do: speak HTTP.
"""

from lakehouse.core.errors import Invalid


class QueryFailed(Invalid):
    """The query cannot be answered; `line` and `column` count from 1, columns in characters."""

    def __init__(
        self, message: str, *, kind: str = "invalid", line: int | None = None, column: int | None = None
    ) -> None:
        where = "" if line is None else f" at line {line}, column {column}"
        super().__init__(_placed(message, where))
        self.kind = kind
        """`invalid`, `dataset`, `memory`, `timeout`, `cancelled` or `crashed`."""
        self.line = line
        self.column = column


def _placed(message: str, where: str) -> str:
    """The place goes before the first full stop or line end, so that hints follow it."""
    for end in (". ", "\n"):
        head, mark, tail = message.partition(end)
        if mark and where:
            return f"{head}{where}{mark}{tail}"
    return f"{message}{where}"


class QueryTimeout(QueryFailed):
    """The query ran for as long as it may."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"the query was ended at its time limit: read less, or ask for a longer `timeout_s`. "
            f"timeout_s=`{timeout_s:g}`",
            kind="timeout",
        )


class QueryCancelled(QueryFailed):
    """Somebody cancelled the query."""

    def __init__(self, query_id: str) -> None:
        super().__init__(f"the query was cancelled. id=`{query_id}`", kind="cancelled")


class QueryCrashed(QueryFailed):
    """The worker ended without a word."""

    def __init__(self) -> None:
        super().__init__(
            "the query ended its worker: nested too deeply, or out of memory where that cannot be reported",
            kind="crashed",
        )
