"""Whatever comes back as rows becomes the reader's own kind of table: Arrow, pandas, polars, or plain Python.

`Tabular` needs one method, `to_arrow`, and gives the rest, the Arrow C stream included, so that any library
that speaks it takes the value as it is (`polars.DataFrame(found)`, `duckdb.from_arrow(table)`).  What this
module does not do: fetch; and it never shows more than a screenful.
"""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

SHOWN_ROWS = 20
SHOWN_COLUMNS = 30
SHOWN_CHARACTERS = 80
"""Of one cell."""
CELL_ELEMENTS = 4
"""Of a list in a cell: the beginning of a vector tells it from another, the rest fills the screen."""


class Tabular:
    """Rows with named columns."""

    __slots__ = ()

    def to_arrow(self) -> "pa.Table":
        """All rows as an Arrow table."""
        raise NotImplementedError

    def to_pandas(self) -> "pd.DataFrame":
        """All rows as a pandas frame; pandas must be installed."""
        return self.to_arrow().to_pandas()

    def to_polars(self) -> "pl.DataFrame":
        """All rows as a polars frame; polars must be installed."""
        import polars as pl

        frame = pl.from_arrow(self.to_arrow())
        return frame if isinstance(frame, pl.DataFrame) else frame.to_frame()

    def rows(self) -> list[tuple[Any, ...]]:
        """All rows as tuples of Python values."""
        return _rows(self.to_arrow())

    def dicts(self) -> list[dict[str, Any]]:
        """All rows as dictionaries; of columns with the same name the last."""
        table = self.to_arrow()
        return [dict(zip(table.column_names, row, strict=True)) for row in _rows(table)]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(self.to_arrow().column_names)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def _footer(self) -> str:
        """What is said below the rows."""
        return counted(self.to_arrow().num_rows)

    def __repr__(self) -> str:
        return text_table(self.to_arrow(), self._footer())

    def _repr_html_(self) -> str:
        return html_table(self.to_arrow(), self._footer())


def _rows(table: "pa.Table") -> list[tuple[Any, ...]]:
    if not table.num_columns:
        return [()] * table.num_rows
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def counted(rows: int) -> str:
    """`1 row`, `1,234 rows`."""
    return f"{rows:,} row{'' if rows == 1 else 's'}"


def cell_text(value: Any) -> str:
    """One value on one line, shortened."""
    line = _text(value).replace("\r", "␍").replace("\n", "⏎").replace("\t", " ")
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…"


def _text(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        shown = ", ".join(map(_text, value[:CELL_ELEMENTS]))
        return f"[{shown}, … {len(value):,}]" if len(value) > CELL_ELEMENTS else f"[{shown}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _shown(table: "pa.Table") -> tuple[Sequence[tuple[str, str]], Iterable[tuple[str, ...]]]:
    """(name, type) of the columns that fit, and the first rows as text."""
    part = table.slice(0, SHOWN_ROWS).select(range(min(SHOWN_COLUMNS, table.num_columns)))
    heads = [(field.name, str(field.type)) for field in part.schema]
    return heads, [tuple(map(cell_text, row)) for row in _rows(part)]


def _left_out(table: "pa.Table") -> Iterator[str]:
    if table.num_rows > SHOWN_ROWS:
        yield f"the first {SHOWN_ROWS} shown"
    if table.num_columns > SHOWN_COLUMNS:
        yield f"{SHOWN_COLUMNS} of {table.num_columns:,} columns shown"


def text_table(table: "pa.Table", footer: str) -> str:
    """The first rows, aligned, and `footer`."""
    heads, rows = _shown(table)
    lines = [tuple(cell_text(name) for name, _ in heads), tuple(cell_text(kind) for _, kind in heads), *rows]
    widths = [max(len(line[j]) for line in lines) for j in range(len(heads))]
    shown = ["  ".join(cell.ljust(widths[j]) for j, cell in enumerate(line)).rstrip() for line in lines]
    shown.insert(2, "  ".join("─" * width for width in widths))
    return "\n".join([*shown, ", ".join([footer, *_left_out(table)])])


def html_table(table: "pa.Table", footer: str) -> str:
    """The first rows as an HTML table; every name and value is escaped."""
    heads, rows = _shown(table)
    head = "".join(
        f"<th>{escape(cell_text(name))}<br><small>{escape(cell_text(kind))}</small></th>"
        for name, kind in heads
    )
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    note = escape(", ".join([footer, *_left_out(table)]))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p><small>{note}</small></p>"
