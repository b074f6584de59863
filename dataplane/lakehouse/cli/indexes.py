"""`lakehouse index`: make, look at, join and remove indexes on a server."""

import enum
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.output import ApiKey, Format, Output, Url, connected, facts, note, print_json, show

if TYPE_CHECKING:
    from lakehouse.client import IndexInfo

app = typer.Typer(help="Make, show, merge, measure and delete indexes.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The index.", metavar="INDEX")]


class DistanceName(enum.StrEnum):
    """As `lakehouse.core.types.Distance`, which takes numpy to import."""

    COSINE = "cosine"
    EUCLIDEAN = "euclidean"
    DOT = "dot"


class OnConflict(enum.StrEnum):
    """What a merge does with an id that dest already has."""

    SKIP = "skip"
    REPLACE = "replace"


def _described(info: "IndexInfo") -> dict[str, Any]:
    return info.params.to_json() | {"length": info.length}


@app.command("list")
def list_(url: Url = None, api_key: ApiKey = None, output: Output = Format.TABLE) -> None:
    """List every index with its parameters and length."""
    from lakehouse.core.errors import NotFound

    rows = []
    with connected(url, api_key) as lake:
        for name in lake.indexes():
            try:
                rows.append(_described(lake.index(name)))
            except NotFound:
                continue  # dropped since the names were listed
    show(rows, output, rows)


@app.command("show")
def show_(name: Name, url: Url = None, api_key: ApiKey = None, output: Output = Format.TABLE) -> None:
    """Show one index."""
    with connected(url, api_key) as lake:
        facts(_described(lake.index(name)), output)


@app.command("create")
def create(
    name: Name,
    dimension: Annotated[int, typer.Option("--dimension", "-d", help="Numbers per vector.")],
    distance: Annotated[DistanceName, typer.Option(help="How near two vectors are.")] = DistanceName.COSINE,
    m: Annotated[int, typer.Option(help="Neighbours a graph node keeps.")] = 16,
    ef_search: Annotated[int, typer.Option(help="Candidates a search keeps: more finds more, slower.")] = 64,
    url: Url = None,
    api_key: ApiKey = None,
    output: Output = Format.TABLE,
) -> None:
    """Make an empty index."""
    with connected(url, api_key) as lake:
        info = lake.create(name, dimension, distance=distance.value, m=m, ef_search=ef_search)
    facts(_described(info), output)


@app.command("delete")
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Delete an index with all its items and snapshots."""
    with connected(url, api_key) as lake:
        if not yes:
            length = lake.index(name).length
            typer.confirm(f"Delete index {name} and its {length:,} items for good?", abort=True, err=True)
        lake.drop(name)
    note(f"deleted {name}")


@app.command("merge")
def merge(
    source: Annotated[str, typer.Argument(help="The index to copy from.")],
    dest: Annotated[str, typer.Argument(help="The index to copy into.")],
    clear_source: Annotated[
        bool, typer.Option(help="Delete from SOURCE what DEST now holds; never what was written meanwhile.")
    ] = False,
    on_conflict: Annotated[
        OnConflict, typer.Option(help="What to do with an id that DEST has: leave it, or overwrite it.")
    ] = OnConflict.SKIP,
    url: Url = None,
    api_key: ApiKey = None,
    output: Output = Format.TABLE,
) -> None:
    """Copy the items of SOURCE into DEST; safe to repeat."""
    from lakehouse.cli.output import Exit

    with connected(url, api_key) as lake:
        result = lake.merge(source, dest, clear_source=clear_source, on_conflict=on_conflict.value)
    shown = asdict(result)
    shown.pop("position", None)
    facts(shown, output)
    if result.failed:
        raise typer.Exit(Exit.FAILED)


@app.command("stats")
def stats(name: Name, url: Url = None, api_key: ApiKey = None, output: Output = Format.TABLE) -> None:
    """Show what is in memory and what the log holds, per shard."""
    from lakehouse.cli.output import print_table

    with connected(url, api_key) as lake:
        found = lake.stats(name)
    if output is Format.JSON:
        print_json(found)
        return
    shards = found.pop("shards", [])
    facts(found, output)
    for number, shard in enumerate(shards):
        print_table([{"": key, " ": value} for key, value in shard.items()], title=f"shard {number}")


@app.command("recall")
def recall(
    name: Name,
    samples: Annotated[int, typer.Option(help="Stored vectors to search for.", min=1)] = 100,
    k: Annotated[int, typer.Option(help="Results per search.", min=1)] = 10,
    ef: Annotated[int | None, typer.Option(help="Candidates a search keeps; default: the index's.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    output: Output = Format.TABLE,
) -> None:
    """Compare searches with the exact answer."""
    with connected(url, api_key) as lake:
        facts(lake.recall(name, samples=samples, k=k, ef=ef), output)
