"""Rows on a terminal: as many columns as fit, one line per row, and a line that says what was left out.

What it does not do: fetch, or shorten what goes to a file.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from lakehouse.cli.output import counted
from lakehouse.client.tabular import cell_text

if TYPE_CHECKING:
    import pyarrow as pa

    from lakehouse.client import Table

COLUMN_WIDTH_MIN = 12
"""Characters that a wide column keeps before the columns to its right are left out."""
COLUMN_WIDTH_MAX = 60
GAP = 2
ROWS_AT_EACH_END = 20
"""Of a long result on a terminal: its beginning and its end tell more than a screen of its middle."""


def print_result(result: "Table", out: Console, seconds: float | None = None) -> None:
    """The rows of a query and a line that counts them."""
    arrow = result.to_arrow()
    shown, hidden = _ends(arrow) if out.is_terminal else (arrow, 0)
    columns = _fitting(shown, out.width)
    if shown.num_rows:
        out.print(_drawn(shown.select(columns), hidden))
    said = [counted(result.row_count)]
    if hidden:
        said.append(f"{shown.num_rows} shown")
    if len(columns) < arrow.num_columns:
        said.append(f"{len(columns)} of {arrow.num_columns} columns shown")
    if result.truncated:
        said.append("truncated")
    if seconds is not None:
        said.append(f"{seconds:.3f} s")
    out.print(f"[dim]{', '.join(said)}[/]", highlight=False)


def _ends(table: "pa.Table") -> tuple["pa.Table", int]:
    """The beginning and the end of a long table, and how many rows are between them."""
    import pyarrow as pa

    hidden = table.num_rows - 2 * ROWS_AT_EACH_END
    if hidden <= 0:
        return table, 0
    first, last = table.slice(0, ROWS_AT_EACH_END), table.slice(table.num_rows - ROWS_AT_EACH_END)
    return pa.concat_tables([first, last]), hidden


def _fitting(table: "pa.Table", width: int) -> list[int]:
    """The columns from the left that fit; at least one."""
    natural = [
        max([len(cell_text(name)), *(len(cell_text(value)) for value in column.to_pylist())])
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    needed = accumulate(min(one, COLUMN_WIDTH_MIN) + GAP for one in natural)
    return [j for j, end in enumerate(needed) if j == 0 or end <= width]


def _drawn(table: "pa.Table", hidden: int) -> RichTable:
    import pyarrow.types as kinds

    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for field in table.schema:
        numeric = (
            kinds.is_integer(field.type) or kinds.is_floating(field.type) or kinds.is_decimal(field.type)
        )
        drawn.add_column(
            f"{escape(cell_text(field.name))}",
            justify="right" if numeric else "left",
            no_wrap=True,
            overflow="ellipsis",
            max_width=COLUMN_WIDTH_MAX,
        )
    rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    for j, row in enumerate(rows):
        if hidden and j == ROWS_AT_EACH_END:
            drawn.add_row(*["⋮"] * table.num_columns, style="dim")
        drawn.add_row(*_cells(row))
    return drawn


def _cells(row: Sequence[Any]) -> list[str]:
    return ["[dim]NULL[/]" if value is None else escape(cell_text(value)) for value in row]
