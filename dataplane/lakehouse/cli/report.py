"""`lakehouse report`: a support bundle of a cluster's namespace, or of one server, without its secrets.

What it does not do: send it anywhere; read it before you do.
"""

from pathlib import Path
from typing import Annotated

import typer

from lakehouse.cli.output import ApiKey, Url, note

Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        help="Collect from this namespace of a cluster, with kubectl.",
        show_default=False,
    ),
]


def report(
    call: typer.Context,
    namespace: Namespace = None,
    url: Url = None,
    api_key: ApiKey = None,
    context: Annotated[
        str | None, typer.Option(help="The kubeconfig's context to use.", show_default="the current one")
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="The kubeconfig to use.", show_default="kubectl's own")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file to write.", show_default="lakehouse-report-TIME.tar.gz"
        ),
    ] = None,
) -> None:
    """Collect what somebody who helps you needs to know: status, events, logs, metrics, versions; no secrets."""
    import os

    from lakehouse.cli.output import usage_error
    from lakehouse.cli.support import bundle as bundles
    from lakehouse.cli.support.cluster import Cluster
    from lakehouse.cli.support.redact import Redactor, secrets_of
    from lakehouse.cli.support.server import Server
    from lakehouse.runtime import SystemRuntime

    in_cluster = bool(namespace or context or kubeconfig)
    if in_cluster and _is_typed(call, "url"):
        usage_error("a report is of a cluster (-n NAMESPACE) or of a server (--url URL), not of both")
    now = SystemRuntime(1).now()
    path = output or Path(f"lakehouse-report-{now:%Y%m%dT%H%M%SZ}.tar.gz")
    source = (
        Cluster(namespace, context, str(kubeconfig) if kubeconfig else None)
        if in_cluster
        else Server(url or "http://127.0.0.1:3110", api_key)
    )
    source.check()
    redactor = Redactor([*secrets_of(os.environ), api_key or ""])
    with bundles.writing(path, redactor, now, lambda what: note(f"[dim]collecting {what}[/]")) as bundle:
        bundle.collect("versions", lambda: bundle.json("versions.json", _versions()))
        source.collect(bundle)
        missing = bundle.missing
    note(
        f"wrote [bold]{path}[/]; secrets were taken out by what they look like: read it before you pass it on"
    )
    if missing:
        note(f"[yellow]{len(missing)} parts could not be had; missing.txt in it says why[/]")


def _is_typed(call: typer.Context, option: str) -> bool:
    """Whether it stands on the command line; what the environment says gives way to that."""
    source = call.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def _versions() -> dict[str, str]:
    """Of this command line, and of what it runs on."""
    import platform
    from importlib import metadata

    from lakehouse import __version__

    packages = ("boto3", "duckdb", "hnswlib", "httpx", "numpy", "pyarrow", "pydantic", "uvicorn")
    return {
        "lakehouse": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: metadata.version(name) for name in packages},
    }
