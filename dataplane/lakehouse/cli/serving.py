"""`lakehouse serve` and `lakehouse up`: the server, as configured or with everything on.

What it does not do: serve; `lakehouse.server` does.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lakehouse.cli.output import note, usage_error

if TYPE_CHECKING:
    from lakehouse.cli.yaml_files import Written
    from lakehouse.server.declared import ControllerFactory

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
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            "-f",
            help="Resources to apply first: a YAML file or a folder of them; repeatable.",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Apply the files again when they change.")] = False,
    host: Host = None,
    port: Port = None,
    config: Config = None,
    insecure: Insecure = False,
) -> None:
    """Serve everything from one process on a local directory, and look after declared resources."""
    from lakehouse.cli import yaml_files

    if watch and not files:
        usage_error("--watch needs files: -f FILE")
    written = yaml_files.read(files) if files else []
    _serve(
        config,
        _applied if files else _welcome,
        _controller(written, files if watch and files else ()),
        data=data,
        host=host,
        port=port,
        insecure=insecure or None,
    )


def _controller(written: "Sequence[Written]", watched: Sequence[Path]) -> "ControllerFactory":
    from lakehouse.cli.up import Display, Watcher, applied
    from lakehouse.embedded.controller import Companion, Embedded
    from lakehouse.server.declared import Parts

    display = Display()
    companions: list[Companion] = [display.follow]
    if watched:
        companions.append(Watcher(watched).follow)

    async def first(embedded: Embedded) -> None:
        for one in written:
            await applied(embedded, one)

    def made(parts: Parts) -> Embedded:
        return Embedded(parts, first, companions, display.told)

    return made


def _serve(
    config: Path | None,
    welcome: Callable[[str, str], None],
    controller: "ControllerFactory | None" = None,
    **overrides: object,
) -> None:
    import logging

    from lakehouse import settings
    from lakehouse.server.serve import serve as serve_until_stopped

    chosen = settings.load(config, **overrides)
    logging.basicConfig(
        level=chosen.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    serve_until_stopped(chosen, lambda url: welcome(_reachable(url), chosen.data), controller)


def _reachable(url: str) -> str:
    """A wildcard address is reached by this machine's own."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _announce(url: str, data: str) -> None:
    note(f"lakehouse serves {url} from {data}")


def _applied(url: str, data: str) -> None:
    note(
        f"[bold green]lakehouse[/] serves [bold]{url}[/] from {data}; Ctrl-C stops it\n"
        f"  lakehouse get        what is declared, and how far it is\n"
        f"  lakehouse describe   all of one resource"
    )


def _welcome(url: str, data: str) -> None:
    """Plain lines rather than a box: people copy them."""
    create = f'curl {url}/v1/vectors/index -d \'{{"name": "docs", "dimension": 3}}\''
    note(
        f"[bold green]lakehouse[/] serves [bold]{url}[/] from {data}; Ctrl-C stops it\n\n"
        f"  make an index    {create}\n"
        f"  or load a file   lakehouse add docs FILE.parquet --create\n"
        f"  or declare it    lakehouse apply -f FILE.yaml\n"
        f"  the routes       curl {url}/openapi.json\n"
        f"  the rest         lakehouse --help\n"
    )
