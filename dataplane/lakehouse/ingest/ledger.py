"""What has to be read, and what the next manifest says: decided from the last one, without I/O.

A source in a state the ledger knows is not read again.  What this module does not do: read, write or publish.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from lakehouse.core import schema
from lakehouse.core.errors import Conflict, Invalid
from lakehouse.core.manifest import Manifest, Rejects, SourceEntry
from lakehouse.core.schema import Change, ChangeKind, Field, Schema, SchemaConflict, SchemaPolicy
from lakehouse.ingest import stats
from lakehouse.ingest.job import UNKNOWN
from lakehouse.ingest.sources import Found
from lakehouse.ingest.spec import IngestSpec, Mode

STATS_MAX = 50_000
"""Sources times columns above which a manifest has no statistics: they would be most of it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to read, in units that become objects of their own, and what stays as it is."""

    units: tuple[tuple[Found, ...], ...]
    kept: tuple[SourceEntry, ...]
    objects: tuple[Mapping[str, Any], ...]
    """Objects of the last version that stay."""
    is_unchanged: bool
    """Whether the last version already is what is asked for."""


def plan(newest: Manifest | None, spec: IngestSpec, found: Sequence[Found]) -> Plan:
    """Decide.  Raises `Conflict` when what is there cannot be joined with what is asked."""
    if newest is None:
        return Plan(_units(spec, found), (), (), is_unchanged=False)
    _check_known(newest, spec)
    known = {entry.uri: entry for entry in newest.sources}
    same = [each for each in found if _is_same(known.get(each.uri), each, newest, spec)]
    if spec.mode is Mode.REPLACE:
        return _replacing(newest, spec, found, same)
    return _appending(newest, spec, found, same)


def _check_known(newest: Manifest, spec: IngestSpec) -> None:
    if newest.schema is None and not (spec.mode is Mode.REPLACE and spec.policy is SchemaPolicy.ANY):
        raise Conflict(
            "the dataset was registered without a schema, so new rows cannot be compared with it: replace it "
            f"under the policy Any, or ingest under another name. name=`{newest.name}`"
        )


def _is_same(entry: SourceEntry | None, found: Found, newest: Manifest, spec: IngestSpec) -> bool:
    return (
        entry is not None
        and (entry.etag, entry.size, entry.reader) == (found.etag, found.size, found.reader)
        and newest.transform_sha256 == spec.transform_sha256
    )


def _units(spec: IngestSpec, found: Sequence[Found]) -> tuple[tuple[Found, ...], ...]:
    if spec.transform is not None and spec.mode is Mode.REPLACE:
        return (tuple(found),) if found else ()
    return tuple((each,) for each in found)


def _replacing(newest: Manifest, spec: IngestSpec, found: Sequence[Found], same: Sequence[Found]) -> Plan:
    uris = {each.uri for each in same}
    is_unchanged = len(same) == len(found) == len(newest.sources)
    if spec.transform is not None:
        return Plan(_units(spec, found), (), (), is_unchanged)
    kept = tuple(entry for entry in newest.sources if entry.uri in uris)
    reading = [each for each in found if each.uri not in uris]
    return Plan(_units(spec, reading), kept, _objects_of(newest, kept), is_unchanged)


def _appending(newest: Manifest, spec: IngestSpec, found: Sequence[Found], same: Sequence[Found]) -> Plan:
    uris = {each.uri for each in same}
    reading = [each for each in found if each.uri not in uris]
    replaced = {each.uri for each in reading}
    going = {key for entry in newest.sources if entry.uri in replaced for key in entry.objects}
    kept = tuple(entry for entry in newest.sources if entry.uri not in replaced)
    for entry in kept:
        if going.intersection(entry.objects):
            raise Conflict(
                "one transform made the rows of several sources, so those of one cannot be replaced: use the "
                f"mode replace. name=`{newest.name}`"
            )
    objects = tuple(each for each in newest.objects if each.get("key") not in going)
    return Plan(_units(spec, reading), kept, objects, is_unchanged=not reading)


def _objects_of(newest: Manifest, kept: Iterable[SourceEntry]) -> tuple[Mapping[str, Any], ...]:
    keys = {key for entry in kept for key in entry.objects}
    return tuple(each for each in newest.objects if each.get("key") in keys)


# --- schema


def decided(
    base: Schema | None, kept: Sequence[SourceEntry], own: Mapping[str, Schema], spec: IngestSpec
) -> Schema:
    """The schema of the next version, from what stays and what each new source holds (by URI).

    Raises `SchemaConflict` when the policy or the pinned fingerprint does not allow it, `Invalid` when there is
    no column at all.
    """
    new = [each for each in own.values() if each.fields]
    whole = _resolved(schema.united([*_staying(base, kept), *new]), base)
    if not whole.fields:
        if base is None:
            raise Invalid(f"the sources are empty: no row and no column. name=`{spec.name}`")
        return base
    final = schema.merged(base, whole, spec.policy)
    if spec.policy is SchemaPolicy.STRICT:
        for uri, each in own.items():
            _check_whole(final, each, uri)
    _check_pinned(final, base, spec)
    return final


def _staying(base: Schema | None, kept: Sequence[SourceEntry]) -> list[Schema]:
    """What of the old columns the kept sources have."""
    if base is None or not kept:
        return []
    names = {name.casefold() for entry in kept for name in entry.columns}
    return [Schema(tuple(field for field in base.fields if field.name.casefold() in names))]


def _resolved(whole: Schema, base: Schema | None) -> Schema:
    """Columns without any value take the old type, else they are text."""
    return Schema(tuple(_known(field, base) for field in whole.fields))


def _known(field: Field, base: Schema | None) -> Field:
    if field.type != UNKNOWN:
        return field
    old = base.field(field.name) if base is not None else None
    return replace(field, type=schema.TEXT if old is None else old.type)


def _check_whole(final: Schema, own: Schema, uri: str) -> None:
    missing = [field for field in final.fields if own.fields and own.field(field.name) is None]
    if missing:
        changes = tuple(Change(ChangeKind.REMOVED, field.name, field.type, None) for field in missing)
        raise SchemaConflict(
            "a source lacks columns of the dataset and the policy is Strict. "
            f"difference=`{schema.shown(changes)}` source=`{uri}`",
            changes,
        )


def _check_pinned(final: Schema, base: Schema | None, spec: IngestSpec) -> None:
    if spec.fingerprint and final.fingerprint != spec.fingerprint:
        changes = schema.difference(base, final) if base is not None else ()
        columns = ", ".join(f"{field.name} {field.type}" for field in final.fields)
        raise SchemaConflict(
            f"the schema is not the pinned one: {schema.shown(changes) or columns}. "
            f"fingerprint=`{final.fingerprint}` pinned=`{spec.fingerprint}`",
            changes,
        )


# --- the manifest


@dataclass(frozen=True, slots=True)
class Written:
    """A unit as it lies in the bucket."""

    entries: tuple[SourceEntry, ...]
    objects: tuple[Mapping[str, Any], ...]
    stats: Mapping[str, Mapping[str, Any]]
    schema: Schema
    """What its objects have."""

    @property
    def rows(self) -> int:
        return sum(each["rows"] for each in self.objects)


def manifest(
    spec: IngestSpec,
    version: int,
    newest: Manifest | None,
    final: Schema,
    written: Sequence[Written],
    loose: Sequence[Mapping[str, Any]],
    rejects: Rejects | None,
    *,
    dataset_id: UUID,
    created_at: str,
) -> Manifest:
    """The next version; `loose` are objects that stay and belong to no source."""
    objects = (*loose, *(each for unit in written for each in unit.objects))
    entries = tuple(entry for unit in written for entry in unit.entries)
    rows = [each.get("rows") for each in objects]
    sizes = [each.get("size") for each in objects]
    has_stats = not loose and len(entries) * len(final.fields) <= STATS_MAX
    return Manifest(
        name=spec.name,
        dataset_id=newest.dataset_id if newest is not None else dataset_id,
        version=version,
        schema_fingerprint=final.fingerprint,
        objects=objects,
        row_count=None if None in rows else sum(row for row in rows if row is not None),
        created_at=created_at,
        schema=final,
        bytes=None if None in sizes else sum(size for size in sizes if size is not None),
        stats=stats.merged(final, ((unit.rows, unit.stats) for unit in written)) if has_stats else None,
        sources=entries if has_stats else tuple(replace(entry, stats=None) for entry in entries),
        rejects=rejects,
        transform_sha256=spec.transform_sha256,
        mode=spec.mode.value,
        first_version=newest.first_version if newest is not None else version,
    )


def stand(newest: Manifest, current: Schema, plan_: Plan) -> tuple[list[Written], list[Mapping[str, Any]]]:
    """What stays, as units again; and the objects that belong to no source."""
    by_key = {each["key"]: each for each in plan_.objects if "key" in each}
    owned = {key for entry in plan_.kept for key in entry.objects}
    groups: dict[tuple[str, ...], list[SourceEntry]] = {}
    for entry in plan_.kept:
        groups.setdefault(entry.objects, []).append(entry)
    units = [
        Written(
            tuple(entries),
            tuple(by_key[key] for key in keys),
            next((entry.stats for entry in entries if entry.stats), {}),
            current,
        )
        for keys, entries in _by_objects(groups)
    ]
    return units, [each for each in plan_.objects if each.get("key") not in owned]


def _by_objects(
    groups: Mapping[tuple[str, ...], list[SourceEntry]],
) -> Iterable[tuple[tuple[str, ...], list[SourceEntry]]]:
    """Sources that share objects are one unit; sources without objects are one each."""
    for keys, entries in groups.items():
        if keys:
            yield keys, entries
        else:
            yield from (((), [entry]) for entry in entries)
