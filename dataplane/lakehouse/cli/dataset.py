"""`lakehouse dataset`: what there is, what it looked like before, what could not be read of it, and an end to it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.output import (
    ApiKey,
    Data,
    Format,
    Output,
    Url,
    connected,
    counted,
    escaped,
    note,
    print_json,
    print_table,
    shortened,
    show,
)

if TYPE_CHECKING:
    from lakehouse.client import Dataset

app = typer.Typer(
    help="List, show and delete datasets, their versions and rejected rows.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="The dataset.", metavar="NAME")]
AnyVersion = Annotated[str, typer.Argument(help="The dataset; NAME@v3 is its version 3.", metavar="NAME")]


def _line(dataset: "Dataset") -> dict[str, Any]:
    return {
        "name": dataset.name,
        "version": dataset.version,
        "rows": dataset.row_count,
        "bytes": dataset.bytes,
        "files": dataset.files,
        "columns": len(dataset.columns) or None,
        "rejected": dataset.rejected,
        "created": dataset.created_at[:19].replace("T", " "),
    }


@app.command("list")
def list_(data: Data = None, url: Url = None, api_key: ApiKey = None, output: Output = Format.TABLE) -> None:
    """List every dataset with its newest version."""
    with connected(url, api_key, data) as lake:
        found = lake.datasets()
    show([_line(one) for one in found], output, [_line(one) for one in found])


@app.command("show")
def show_(
    name: AnyVersion,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
    output: Output = Format.TABLE,
) -> None:
    """Show one version: its size, and each column with its type and range."""
    with connected(url, api_key, data) as lake:
        found = lake.dataset(name)
    if output is Format.JSON:
        print_json(found.manifest)
        return
    print_table([_line(found)])
    if found.columns:
        print_table(_columns(found), title="columns")


def _columns(dataset: "Dataset") -> Sequence[dict[str, Any]]:
    stats = dataset.manifest.get("stats") or {}
    return [
        {
            "column": name,
            "type": kind,
            "least": shortened(stats.get(name, {}).get("min")),
            "greatest": shortened(stats.get(name, {}).get("max")),
            "nulls": stats.get(name, {}).get("null_count"),
            "distinct": stats.get(name, {}).get("distinct"),
        }
        for name, kind in dataset.columns
    ]


@app.command("versions")
def versions(
    name: Name, data: Data = None, url: Url = None, api_key: ApiKey = None, output: Output = Format.TABLE
) -> None:
    """List the versions that are kept; each can be queried as NAME@v3."""
    with connected(url, api_key, data) as lake:
        found = lake.dataset_versions(name)
    show([_line(one) for one in found], output, [_line(one) for one in found])


@app.command("rejects")
def rejects(
    name: AnyVersion,
    limit: Annotated[int, typer.Option(help="Most rows to show.", min=1, max=10_000)] = 100,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
    output: Output = Format.TABLE,
) -> None:
    """Show the rows that could not be read: file, line, column, why, and the text itself."""
    with connected(url, api_key, data) as lake:
        found = lake.dataset_rejects(name, limit=limit)
    if output is Format.JSON:
        print_json({"rejects": list(found), "count": found.count})
        return
    print_table(
        [{key: shortened(value) if key == "text" else value for key, value in row.items()} for row in found]
    )
    if found.count > len(found):
        note(f"[dim]{len(found):,} of {found.count:,} rejected rows shown; --limit shows more[/]")


@app.command("delete")
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Delete a dataset: every version and all its files."""
    with connected(url, api_key, data) as lake:
        if not yes:
            rows = lake.dataset(name).row_count
            count = "its rows" if rows is None else f"its {counted(rows)}"
            typer.confirm(f"Delete dataset {name} and {count} for good?", abort=True, err=True)
        lake.drop_dataset(name)
    note(f"deleted {escaped(name)}")
