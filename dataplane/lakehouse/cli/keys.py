"""`lakehouse key`: bearer keys, of which the configuration holds only hashes."""

import enum
from typing import Annotated

import typer

from lakehouse.cli.output import Format, Output, note, print_json

app = typer.Typer(help="Make bearer keys.", no_args_is_help=True)


class KeyRight(enum.StrEnum):
    """What a key may do; each includes the one before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@app.command("new")
def new(
    name: Annotated[str, typer.Option(help="Who holds the key; appears in logs.")] = "default",
    right: Annotated[KeyRight, typer.Option(help="Each right includes the one before it.")] = KeyRight.ADMIN,
    output: Output = Format.TABLE,
) -> None:
    """Make a key: the secret goes to its user, the lines below it into lakehouse.toml."""
    from lakehouse.server.auth import new_key

    secret, digest = new_key()
    if output is Format.JSON:
        print_json({"name": name, "right": right.value, "key": secret, "sha256": digest})
        return
    note("[bold]The key[/], shown only now; clients send it as LAKEHOUSE_API_KEY or as a bearer token:\n")
    typer.echo(secret)
    note("\n[bold]For lakehouse.toml[/] of the server:\n")
    typer.echo(f'[[keys]]\nname = "{name}"\nright = "{right.value}"\nsha256 = "{digest}"')
