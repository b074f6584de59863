"""`lakehouse apply | get | describe | delete | diff`: declared resources, spoken of as kubectl does.

Files are read and checked here, so that a mistake is told with file, line and column; the server checks again.  What
this module does not do: decide what becomes of a resource.
"""

import contextlib
import enum
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.output import (
    ApiKey,
    Exit,
    Url,
    connected,
    err_console,
    escaped,
    fail,
    note,
    print_json,
    usage_error,
)
from lakehouse.core.errors import Busy, Invalid, NotFound

if TYPE_CHECKING:
    from lakehouse.cli.yaml_files import Written
    from lakehouse.client import Client
    from lakehouse.control.crd import Definition

POLL_S = 0.5
QUIET_S = 10.0
"""Without a word into a log, where there is anything new to say of what is waited for."""
WAIT_S_DEFAULT = 600.0


class GetFormat(enum.StrEnum):
    """How `get` prints."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


def _complete_kind(incomplete: str) -> list[str]:
    from lakehouse.cli import kinds

    return [name for name in kinds.kind_names() if name.startswith(incomplete.lower())]


def _complete_name(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names from the server, if it answers within a second; completion has no errors."""
    from lakehouse.client import Client, Retries

    with contextlib.suppress(Exception):
        with Client(ctx.params.get("url"), retries=Retries(attempts_max=1), timeout_s=1.0) as lake:
            found = lake.list_resources(ctx.params["kind"])
        return [one.name for one in found if one.name.startswith(incomplete)]
    return []


Files = Annotated[
    list[Path] | None,
    typer.Option(
        "--file",
        "-f",
        help="A YAML or JSON file, a folder of them, or `-` for standard input; repeatable.",
        show_default=False,
    ),
]
Kind = Annotated[
    str | None,
    typer.Argument(
        help="VectorIndex (vix), Dataset (dset) or IndexSnapshot (isnap); KIND/NAME too.",
        metavar="KIND",
        autocompletion=_complete_kind,
        show_default=False,
    ),
]
Name = Annotated[
    str | None, typer.Argument(metavar="NAME", autocompletion=_complete_name, show_default=False)
]
Wait = Annotated[bool, typer.Option("--wait", help="Return when it is done.")]
Timeout = Annotated[float, typer.Option(help="Seconds that --wait waits.", min=0.0)]


def apply(
    files: Files = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and tell, but change nothing.")] = False,
    wait: Wait = False,
    timeout: Timeout = WAIT_S_DEFAULT,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Create resources from files, or bring them in line."""
    from lakehouse.cli.kinds import label

    wanted = _read(files)
    with connected(url, api_key) as lake:
        for one in wanted:
            try:
                (applied,) = lake.apply(one.body, dry_run=dry_run)
            except Invalid as error:
                raise one.refused(error) from error
            typer.echo(f"{label(one.body)} {applied.result}{' (dry run)' if dry_run else ''}")
        if wait and not dry_run:
            _wait_until_settled(lake, [one.key for one in wanted], timeout)


def get(
    kind: Kind = None,
    name: Name = None,
    output: Annotated[GetFormat, typer.Option("--output", "-o", help="How to print.")] = GetFormat.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on, and print what changes.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List resources, or show one."""
    from lakehouse.cli.kinds import definition

    kind, name = _target(kind, name)
    wanted = None if kind is None else definition(kind)
    with connected(url, api_key) as lake:
        found = _found(lake, wanted, name)
        if output is GetFormat.JSON:
            print_json(found[0] if name else {"items": found, "count": len(found)})
        elif output is GetFormat.YAML:
            typer.echo("---\n".join(_yaml(one) for one in found), nl=False)
        else:
            _print_rows(wanted, found, output)
        if watch:
            _watch(lake, wanted, name, found, output)


def describe(
    kind: Kind = None,
    name: Name = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show all of one resource: what is wanted, what was seen, and what happened lately."""
    from lakehouse.cli.kinds import definition

    kind, name = _target(kind, name)
    if kind is None or name is None:
        usage_error(f"say which: KIND NAME, or KIND/NAME{_given(kind)}")
    wanted = definition(kind)
    with connected(url, api_key) as lake:
        resource = lake.get_resource(wanted.kind, name).body
        events = lake.resource_events(wanted.kind, name)
    typer.echo("\n".join(_description(resource, events, _now())))


def delete(
    kind: Kind = None,
    name: Name = None,
    files: Files = None,
    wait: Wait = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Ask for resources to go; their deletionPolicy says what becomes of their data."""
    from lakehouse.cli.kinds import definition

    kind, name = _target(kind, name)
    if (name is None) == (not files) or (files and kind):
        usage_error(f"say which: KIND NAME, or -f FILE{_given(kind)}")
    if name is not None and kind is not None:
        targets = [(definition(kind).kind, name)]
    else:
        targets = [one.key for one in reversed(_read(files))]
    failed = Exit.OK
    with connected(url, api_key) as lake:
        for one in targets:
            try:
                gone = _deleted(lake, one, wait=wait)
            except NotFound as error:  # the others are to go all the same
                failed = fail(error)
                continue
            typer.echo(f"{one[0].lower()}/{one[1]} {'deleted' if gone else 'deleting'}")
    if failed:
        raise typer.Exit(failed)


def _deleted(lake: "Client", key: tuple[str, str], *, wait: bool) -> bool:
    """Ask for one to go; the server waits for it two minutes at most, and then is asked again."""
    gone = lake.delete_resource(*key, wait=wait)
    with contextlib.suppress(NotFound):  # between two questions
        while wait and not gone:
            gone = lake.delete_resource(*key, wait=wait)
    return gone or wait


def diff(files: Files = None, url: Url = None, api_key: ApiKey = None) -> None:
    """Show what applying files would change; exits with 1 when something would."""
    from lakehouse.cli.kinds import label

    differs = False
    with connected(url, api_key) as lake:
        for found in _differences(lake, _read(files)):
            lines = _difference(found.get("before"), found["resource"], label(found["resource"]))
            differs = differs or bool(lines)
            sys.stdout.writelines(lines)
    if differs:
        raise typer.Exit(Exit.FAILED)


def _differences(lake: "Client", wanted: "Sequence[Written]") -> Sequence[Mapping[str, Any]]:
    try:
        return lake.diff_resources([one.body for one in wanted])
    except Invalid as error:
        for one in wanted:
            if error.message.startswith(one.label):
                raise one.refused(error) from error
        raise


# --- what is meant


def _read(files: Sequence[Path] | None) -> "list[Written]":
    from lakehouse.cli import yaml_files

    if not files:
        usage_error("say which files: -f FILE")
    return yaml_files.read(files)


def _key(document: Mapping[str, Any]) -> tuple[str, str]:
    return str(document["kind"]), str(document["metadata"]["name"])


def _target(kind: str | None, name: str | None) -> tuple[str | None, str | None]:
    """`KIND/NAME` is `KIND NAME`."""
    if kind is not None and name is None and "/" in kind:
        kind, _, name = kind.partition("/")
    return kind, name


def _given(kind: str | None) -> str:
    """The one word that was there, as the end of a message: most often a name without its kind."""
    return "" if kind is None else f". given=`{kind}`"


def _now() -> datetime:
    from lakehouse.runtime import SystemRuntime

    return SystemRuntime().now()


def _found(lake: "Client", kind: "Definition | None", name: str | None) -> list[Mapping[str, Any]]:
    if kind is not None and name is not None:
        return [lake.get_resource(kind.kind, name).body]
    return [one.body for one in lake.list_resources(None if kind is None else kind.kind)]


# --- waiting and watching


def _wait_until_settled(lake: "Client", keys: Sequence[tuple[str, str]], timeout_s: float) -> None:
    """Return when every resource is as wanted.  Raises `Busy` past the time, `Invalid` for one refused."""
    from lakehouse.cli import kinds
    from lakehouse.runtime import SystemRuntime, pause

    runtime = SystemRuntime()
    until = runtime.monotonic() + timeout_s
    waiting, quiet_until, before = list(keys), runtime.monotonic() + QUIET_S, ""
    with err_console().status("") as status:
        while True:
            there = {_key(one.body): one.body for one in lake.list_resources()}
            for key in list(waiting):
                if _is_settled(_present(there, key), keys, there):
                    waiting.remove(key)
                    found = there[key]
                    note(f"{kinds.label(found)} {kinds.rest(found)}  {kinds.summary(found)}".rstrip())
            if not waiting:
                return
            resource = there[waiting[0]]
            standing = _standing(resource)
            told = f"{kinds.label(resource)}: {standing}"
            status.update(escaped(told))
            reason = f"{kinds.label(resource)} {standing.split()[0]}"
            if not err_console().is_terminal and reason != before and runtime.monotonic() > quiet_until:
                note(escaped(told))  # no line can be written over there
                quiet_until, before = runtime.monotonic() + QUIET_S, reason
            if runtime.monotonic() > until:
                raise Busy(f"not ready after {timeout_s:g} s: {told}")
            pause(POLL_S)


def _present(there: Mapping[tuple[str, str], Mapping[str, Any]], key: tuple[str, str]) -> Mapping[str, Any]:
    """A resource that is waited for.  Raises `Invalid` when it never will be ready, `NotFound`."""
    from lakehouse.cli import kinds

    resource = there.get(key)
    if resource is None or "deletionTimestamp" in resource["metadata"]:
        raise NotFound(f"the resource was deleted meanwhile. name=`{key[0]}/{key[1]}`")
    why = kinds.refused(resource)
    if why:
        raise Invalid(f"{kinds.label(resource)} {why}")
    return resource


def _is_settled(
    resource: Mapping[str, Any],
    keys: Sequence[tuple[str, str]],
    there: Mapping[tuple[str, str], Mapping[str, Any]],
) -> bool:
    """With the dataset that an index follows: as it is, or, where it was applied together with it, as it will be."""
    from lakehouse.cli import kinds
    from lakehouse.control.kinds import DATASET

    name = kinds.followed(resource)
    key = (DATASET, name or "")
    dataset = there.get(key)
    if dataset is not None and key in keys and not kinds.settled(dataset):
        return False
    return kinds.settled(resource, dataset)


_ASIDE = ("SnapshotCurrent", "DrainCurrent", "ReconciliationPaused")
"""Conditions that nobody who waits for a resource waits for."""


def _standing(resource: Mapping[str, Any]) -> str:
    """The condition that keeps a resource from being ready: what failed tells more than what is not known yet."""
    status = resource.get("status", {})
    if status.get("observedGeneration") != resource["metadata"]["generation"]:
        return "not looked at yet"
    missing = [
        one
        for one in status.get("conditions", ())
        if one["status"] != "True" and one.get("reason") != "NotConfigured" and one["type"] not in _ASIDE
    ]
    for one in sorted(missing, key=lambda one: one["status"] != "False"):
        return f"{one['reason']} {one.get('message', '')}".strip()
    return "waiting for the dataset it follows"


def _watch(
    lake: "Client",
    kind: "Definition | None",
    name: str | None,
    found: Sequence[Mapping[str, Any]],
    output: GetFormat,
) -> None:
    """Print a row for each resource that changes, until interrupted."""
    from lakehouse.cli import kinds
    from lakehouse.runtime import pause

    seen = {_key(one): one for one in found}
    table = _Growing(found, wide=output is GetFormat.WIDE, named=kind is None)
    while True:
        pause(POLL_S)
        try:
            now = {_key(one): one for one in _found(lake, kind, name)}
        except NotFound:
            now = {}
        changed = [one for key, one in now.items() if seen.get(key) != one]
        for key in seen.keys() - now.keys():
            typer.echo(f"{key[0].lower()}/{key[1]} deleted")
        if output in (GetFormat.JSON, GetFormat.YAML):
            typer.echo("".join(f"---\n{_yaml(one)}" for one in changed), nl=False)
        elif output is GetFormat.NAME:
            typer.echo("".join(f"{kinds.label(one)}\n" for one in changed), nl=False)
        else:
            for one in changed:
                table.tell(one)
        seen = now


class _Growing:
    """A table that grows line by line: a head for each kind, once, and a line for each change that can be seen."""

    def __init__(self, found: Sequence[Mapping[str, Any]], *, wide: bool, named: bool) -> None:
        self._wide = wide
        self._named = named
        self._widths: dict[str, list[int]] = {}
        self._told: dict[tuple[str, str], tuple[Any, ...]] = {}
        for resource in found:
            self._lines(resource)

    def tell(self, resource: Mapping[str, Any]) -> None:
        for line in self._lines(resource):
            typer.echo(line)

    def _lines(self, resource: Mapping[str, Any]) -> list[str]:
        from lakehouse.cli import kinds

        definition, name = kinds.definition(str(resource["kind"])), _key(resource)
        standing = kinds.standing(definition, resource, wide=self._wide)
        if self._told.get(name) == standing:
            return []
        self._told[name] = standing
        rows = [kinds.row(definition, resource, _now(), wide=self._wide, named=self._named)]
        known = self._widths.get(definition.kind, [])
        if not known:
            rows.insert(0, kinds.header(definition, wide=self._wide))
        self._widths[definition.kind] = kinds.widths_of(rows, known)
        return kinds.lines(rows, known)


# --- printing


def _print_rows(kind: "Definition | None", found: Sequence[Mapping[str, Any]], output: GetFormat) -> None:
    """One table per kind, as kubectl prints them."""
    from lakehouse.cli import kinds

    if not found:
        note("no resources found")
        return
    if output is GetFormat.NAME:
        typer.echo("\n".join(kinds.label(one) for one in found))
        return
    now, wide = _now(), output is GetFormat.WIDE
    tables = []
    for definition in [kind] if kind is not None else [kinds.definition(one) for one in kinds.kind_names()]:
        rows = [
            kinds.row(definition, one, now, wide=wide, named=kind is None)
            for one in found
            if one["kind"] == definition.kind
        ]
        if rows:
            tables.append(kinds.lines([kinds.header(definition, wide=wide), *rows]))
    typer.echo("\n\n".join("\n".join(lines) for lines in tables))


def _yaml(value: Any) -> str:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4_096
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue()


def _difference(before: Mapping[str, Any] | None, after: Mapping[str, Any], label: str) -> list[str]:
    import difflib

    old = {} if before is None else _wanted_part(before)
    new = _in_order_of(old, _wanted_part(after))
    return list(
        difflib.unified_diff(
            _yaml(old).splitlines(keepends=True) if old else [],
            _yaml(new).splitlines(keepends=True),
            f"applied/{label}" if before is not None else "nothing",
            f"file/{label}",
        )
    )


def _in_order_of(old: Any, new: Any) -> Any:
    """`new` with its fields in the order that `old` has them: another order is no difference."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    names = [*(name for name in old if name in new), *(name for name in new if name not in old)]
    return {name: _in_order_of(old.get(name), new[name]) for name in names}


def _wanted_part(resource: Mapping[str, Any]) -> dict[str, Any]:
    """What people write: the server's own fields differ without meaning anything."""
    metadata = resource["metadata"]
    kept = {part: dict(metadata[part]) for part in ("labels", "annotations") if metadata.get(part)}
    return {
        "apiVersion": resource["apiVersion"],
        "kind": resource["kind"],
        "metadata": {"name": metadata["name"], **kept},
        "spec": resource["spec"],
    }


def _description(
    resource: Mapping[str, Any], events: Sequence[Mapping[str, Any]], now: datetime
) -> Iterator[str]:
    from lakehouse.cli.kinds import age, lines

    metadata, status = resource["metadata"], resource.get("status", {})
    yield f"Name:        {metadata['name']}"
    yield f"Kind:        {resource['kind']}"
    yield f"Created:     {metadata['creationTimestamp']} ({age(metadata['creationTimestamp'], now)} ago)"
    yield f"Generation:  {metadata['generation']} (observed: {status.get('observedGeneration', 'none yet')})"
    for part in ("labels", "annotations"):
        for name, value in metadata.get(part, {}).items():
            yield f"{part.capitalize() + ':':<12} {name}={value}"
    if "deletionTimestamp" in metadata:
        yield f"Deleting:    since {metadata['deletionTimestamp']}"
    yield "Spec:"
    yield from _indented(resource["spec"])
    yield "Status:"
    yield from _indented({k: v for k, v in status.items() if k not in ("conditions", "observedGeneration")})
    yield "Conditions:"
    rows = [("TYPE", "STATUS", "REASON", "SINCE", "MESSAGE")] + [
        (
            one["type"],
            one["status"],
            one.get("reason", ""),
            age(one["lastTransitionTime"], now),
            one.get("message", ""),
        )
        for one in status.get("conditions", ())
    ]
    yield from (f"  {line}" for line in lines(rows))
    yield "Events:"
    if not events:
        yield "  (none)"
        return
    table = [("TYPE", "REASON", "LAST", "COUNT", "MESSAGE")] + [
        (one["type"], one["reason"], age(one["lastTimestamp"], now), str(one["count"]), one["message"])
        for one in events
    ]
    yield from (f"  {line}" for line in lines(table))


def _indented(value: Mapping[str, Any]) -> Iterator[str]:
    if not value:
        yield "  (none)"
        return
    yield from (f"  {line}" for line in _yaml(dict(value)).splitlines())
