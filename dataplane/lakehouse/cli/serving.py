"""`lakehouse serve` and `lakehouse up`: the server, as configured or with everything on.

What it does not do: serve; `lakehouse.server` does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from lakehouse.cli.output import note

UP_DATA = "./lakehouse-data"

Data = Annotated[
    str | None,
    typer.Option(
        help="Where everything durable lives: a directory, s3://bucket/prefix, or `memory:`.",
        show_default="./lakehouse-data",
    ),
]
Host = Annotated[
    str | None,
    typer.Option(
        help="Address to listen on; one that is not loopback needs keys or --insecure.",
        show_default="127.0.0.1",
    ),
]
Port = Annotated[
    int | None, typer.Option(help="TCP port; 0 takes a free one.", min=0, max=65_535, show_default="3110")
]
Config = Annotated[
    Path | None,
    typer.Option(help="Settings file.  LAKEHOUSE_* variables override it.", show_default="lakehouse.toml"),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Listen beyond loopback without keys.")]


def serve(
    data: Data = None,
    host: Host = None,
    port: Port = None,
    roles: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: gateway, storage, catalog, ingest, query, vectors.", show_default="all"
        ),
    ] = None,
    config: Config = None,
    insecure: Insecure = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests already taken are finished."""
    _serve(config, _announce, data=data, host=host, port=port, roles=roles, insecure=insecure or None)


def up(
    data: Data = UP_DATA,
    host: Host = None,
    port: Port = None,
    config: Config = None,
    insecure: Insecure = False,
) -> None:
    """Serve everything from one process on a local directory, and say how to begin."""
    _serve(config, _welcome, data=data, host=host, port=port, insecure=insecure or None)


def _serve(config: Path | None, welcome: Callable[[str, str], None], **overrides: object) -> None:
    import logging

    from lakehouse import settings
    from lakehouse.server.serve import serve as serve_until_stopped

    chosen = settings.load(config, **overrides)
    logging.basicConfig(
        level=chosen.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    serve_until_stopped(chosen, lambda url: welcome(_reachable(url), chosen.data))


def _reachable(url: str) -> str:
    """A wildcard address is reached by this machine's own."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _announce(url: str, data: str) -> None:
    note(f"lakehouse serves {url} from {data}")


def _welcome(url: str, data: str) -> None:
    """Plain lines rather than a box: people copy them."""
    create = f'curl {url}/v1/vectors/index -d \'{{"name": "docs", "dimension": 3}}\''
    note(
        f"[bold green]lakehouse[/] serves [bold]{url}[/] from {data}; Ctrl-C stops it\n\n"
        f"  make an index    {create}\n"
        f"  or load a file   lakehouse add docs FILE.parquet --create\n"
        f"  the routes       curl {url}/openapi.json\n"
        f"  the rest         lakehouse --help\n"
    )
