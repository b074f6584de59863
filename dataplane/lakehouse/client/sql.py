"""The calls that run SQL, and their answer: a table that turns into whatever the reader works with.

A short query is asked and answered in one exchange; one that may take long is submitted, and its result fetched by
its id, so that it outlives a connection.  What this module does not do: read SQL; the server does, in a sandbox.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict

import httpx

from lakehouse.client.tabular import Tabular, counted
from lakehouse.client.wire import ARROW, Call, Fresh, Request, json_of, nothing, path, post, with_headers
from lakehouse.core import errors

if TYPE_CHECKING:
    import pyarrow as pa

Parameters = Sequence[Any] | Mapping[str, Any]
"""For `?` and `$1` in order, or for `$name` by name."""
WAIT_S = 20.0
"""How long the server holds an answer back for a query to end; below the 60 s at which proxies lose patience."""
LONG_S = 45.0
"""A query that may run longer is asked for again and again, because some proxy would cut one long wait off."""
ACCEPTED = 202
TRUNCATED_KEY = b"lakehouse.truncated"
"""Metadata of the last batch of a stream that a limit cut off; its head was sent before anybody knew."""


class SqlOptions(TypedDict, total=False):
    """What a query takes besides its text and parameters."""

    timeout_s: float | None
    """Seconds it may run; default and maximum are the server's."""
    row_limit: int | None
    """Most rows of the answer; more are cut off, and the table says `truncated`."""
    byte_limit: int | None
    """Most bytes of the answer, as sent."""
    explain: bool
    """Say how it was run too: the table's `plan` and `profile`."""
    wait_s: float | None
    """Wait in turns of so many seconds, at most 60, instead of in one: for a proxy between that has less patience."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Table(Tabular):
    """The result of a query, whole, in memory.

    Iterating gives tuples, `len` counts rows.  Any library that speaks the Arrow C stream takes it as it is.
    """

    arrow: "pa.Table"
    query_id: str = ""
    truncated: bool = False
    """Whether a limit cut rows off."""
    plan: str | None = None
    """How it was run, as DuckDB shows it; only with `explain`."""
    profile: Mapping[str, Any] = field(default_factory=dict)
    """What it cost, as the server measured it."""

    def to_arrow(self) -> "pa.Table":
        return self.arrow

    @property
    def row_count(self) -> int:
        """Rows in this answer."""
        return int(self.arrow.num_rows)

    @property
    def schema(self) -> "pa.Schema":
        """Names and Arrow types of the columns."""
        return self.arrow.schema

    def __len__(self) -> int:
        return self.row_count

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for batch in self.arrow.to_batches():
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def _footer(self) -> str:
        return counted(self.row_count) + (", truncated" if self.truncated else "")


@dataclass(frozen=True, slots=True)
class QueryStatus:
    """One query as the server describes it."""

    id: str
    status: str
    """`queued`, `running`, `succeeded`, `failed` or `cancelled`."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """`sql`, `format`, `began_at`, `seconds`, `bytes`; at the end `row_count`, `truncated`, `profile`, or `error`."""

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.status not in ("queued", "running")


Answered = Table | QueryStatus
"""The result, or, where it is not there yet, the query."""


# --- the calls ----------------------------------------------------------------------------------------------


def request(text: str, parameters: Parameters | None, accept: str, options: SqlOptions) -> Request:
    """One query, and the form its result shall have."""
    body: dict[str, Any] = {"sql": text}
    if parameters is not None:
        body["parameters"] = dict(parameters) if isinstance(parameters, Mapping) else list(parameters)
    body |= {name: value for name, value in options.items() if value is not None}
    wait_s = options.get("wait_s")
    longest_s = options.get("timeout_s") or 0.0 if wait_s is None else wait_s
    return replace(with_headers(post("/v1/sql", body), {"accept": accept}), timeout_s=longest_s + WAIT_S)


def is_long(options: SqlOptions) -> bool:
    """Whether to wait for a query in turns."""
    return options.get("wait_s") is not None or (options.get("timeout_s") or 0.0) > LONG_S


def direct(text: str, parameters: Parameters | None, options: SqlOptions) -> Call[Table]:
    """Run a query and wait for its result; hanging up ends it."""
    return Call(request(text, parameters, ARROW, options), table_of)


def submitted(text: str, parameters: Parameters | None, options: SqlOptions) -> Call[Answered]:
    """Begin a query whose result is kept."""
    patient = (
        SqlOptions(**options)
        if options.get("wait_s") is not None
        else SqlOptions(**options | {"wait_s": 0.0})
    )
    return Call(request(text, parameters, ARROW, patient), _read_answered)


def awaited(query_id: str, wait_s: float = WAIT_S) -> Call[Answered]:
    """A query's result, for which the server waits for `wait_s`."""
    asked = Request(
        "GET", path("sql", query_id), {"wait_s": str(wait_s)}, {"accept": ARROW}, timeout_s=wait_s + WAIT_S
    )
    return Call(asked, _read_answered)


def query_status(fresh: Fresh, query_id: str) -> Call[QueryStatus]:
    """What a query is doing, or came to.  Raises `NotFound` when the server has forgotten it."""
    asked = Request("GET", path("sql", query_id), {"status": "true"})
    return Call(asked, lambda answer: status_of(json_of(answer)))


def queries(fresh: Fresh) -> Call[tuple[QueryStatus, ...]]:
    """The queries that wait, run, or ended lately, newest first."""
    return Call(Request("GET", "/v1/sql"), lambda answer: tuple(map(status_of, json_of(answer)["queries"])))


def cancel(fresh: Fresh, query_id: str) -> Call[None]:
    """End a query, or forget its result.  Raises `NotFound` when there is none."""
    return Call(Request("DELETE", path("sql", query_id)), nothing)


# --- what comes back ----------------------------------------------------------------------------------------


def _read_answered(answer: httpx.Response) -> Answered:
    if answer.status_code == ACCEPTED:
        return status_of(json_of(answer))
    return table_of(answer)


def table_of(answer: httpx.Response) -> Table:
    """The table in an Arrow IPC stream.  Raises `Unavailable` when the stream is cut short."""
    import pyarrow as pa

    batches = []
    truncated = says_truncated(answer) is True
    try:
        with pa.ipc.open_stream(answer.content) as stream:
            for batch, metadata in stream.iter_batches_with_custom_metadata():
                batches.append(batch)
                truncated = truncated or ends_early(metadata)
            arrow = pa.Table.from_batches(batches, stream.schema)
    except pa.ArrowInvalid as error:
        raise errors.Unavailable(f"the answer ended in the middle: {error}. url=`{answer.url}`") from error
    return Table(arrow, query_id_of(answer), truncated)


def ends_early(metadata: "pa.KeyValueMetadata | None") -> bool:
    """Whether a batch says that a limit cut off what would follow."""
    return metadata is not None and metadata.get(TRUNCATED_KEY) == b"true"


def says_truncated(answer: httpx.Response) -> bool | None:
    """Whether the head says that a limit cut rows off; None where it was sent too early to know."""
    return {"true": True, "false": False}.get(answer.headers.get("lakehouse-truncated", "false").lower())


def query_id_of(answer: httpx.Response) -> str:
    """The id under which the server knows the query."""
    return str(answer.headers.get("lakehouse-query-id", ""))


def status_of(body: Mapping[str, Any]) -> QueryStatus:
    """A query as JSON describes it."""
    details = {name: value for name, value in body.items() if name not in ("id", "status")}
    return QueryStatus(str(body["id"]), str(body["status"]), details)


def profiled(table: Table, status: QueryStatus) -> Table:
    """The table with what its query's status says of how it was run."""
    profile = status.details.get("profile") or {}
    return replace(table, plan=profile.get("plan"), profile=profile)
