"""Beginning a life whose content is there: who may, as which record, and what of the life before it takes over.

Content comes first and the record last.  Between the two lies a claim, create-only: a life that has been swept can
never begin, and one that may still begin is never swept.  What this module does not do: make content
(`lakehouse.seeding`), or take over what another life acknowledged (`lakehouse.carrying`).
"""

import json
import logging
from collections.abc import Set
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from lakehouse import ending, incarnations, named_snapshots
from lakehouse.core import names
from lakehouse.core.entry import ALL_CARRIED
from lakehouse.core.errors import Conflict, Corrupt, NotFound, Outcome, Unavailable
from lakehouse.core.incarnation import CARRYING_ENTRY_VERSION, Continues, Incarnation
from lakehouse.log import ShardLog
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

CLAIMS_MAX = 64
GRACE_S = 24 * 3600.0
"""Seconds that content may lie there without a record before it is swept.  Only politeness to slow builds, which fail
when they are swept: what keeps a life whole is the claim."""
SWEPT = "swept"
MARK = "unnamed"
_STAMP = "%Y%m%dT%H%M%SZ"


async def claim(store: ObjectStore, runtime: Runtime, name: str, life: UUID, number: int) -> None:
    """Say that a life may begin as record `number`; nobody sweeps it until that record is another's.

    Raises `Conflict` when its content was swept.
    """
    for _ in range(CLAIMS_MAX):
        steps = await _steps(store, name, life)
        if steps and steps[-1] is None:
            raise Conflict(
                f"the content of this build was removed: build again. index=`{name}` life=`{life.hex}`"
            )
        if steps and steps[-1] == number:
            return None
        data = _dumped({"number": number})
        try:
            return await incarnations.create_at(store, runtime, names.fate_key(name, life, len(steps)), data)
        except Conflict:
            continue
    raise Conflict(f"the index keeps changing: build again. index=`{name}` life=`{life.hex}`")


async def _steps(store: ObjectStore, name: str, life: UUID) -> list[int | None]:
    """The record numbers as which a life may begin, in the order they were claimed; None: never again."""
    found: list[int | None] = []
    for info in await store.list(names.fate_prefix(name, life)):
        data = await incarnations.read_listed(store, info.key)
        try:
            body = json.loads(data)
            found.append(None if body.get(SWEPT) else int(body["number"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corrupt(f"a claim cannot be read. key=`{info.key}`") from error
    return found


def _dumped(body: dict[str, object]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


# ---------------------------------------------------------------- what is taken over


async def pin(store: ObjectStore, name: str, replaced: UUID, life: UUID) -> None:
    """Keep every log entry of a life from now on, for `life`, which is to take them over."""
    await store.put(names.pin_key(name, replaced, life), b"{}")


async def unpin(store: ObjectStore, name: str, replaced: UUID, life: UUID) -> None:
    """Say that `life` will not begin."""
    await store.delete(names.pin_key(name, replaced, life))


async def ends_of_logs(
    store: ObjectStore, runtime: Runtime, name: str, record: Incarnation
) -> tuple[int, ...]:
    """The newest slot of every log of a life."""
    life = ending.uuid_of(record)
    found = [await ShardLog(store, runtime, name, life, shard).after(0) for shard in range(record.shards)]
    return tuple(slots[-1] if slots else 0 for slots in found)


# ---------------------------------------------------------------- content from several processes


async def missing(store: ObjectStore, name: str, life: UUID, shards: int) -> list[int]:
    """The shards of a life to be whose content is not there yet."""
    absent = []
    for shard in range(shards):
        infos = await store.list(names.snapshot_prefix(name, life, shard), limit=1)
        if not infos or names.sequence_of(infos[0].key) != 0:
            absent.append(shard)
    return absent


class NotComplete(Unavailable):
    """The life that is to be replaced has not taken over the one before it yet: nobody has opened it."""

    def __init__(self, name: str, life: Incarnation) -> None:
        super().__init__(
            f"the life to replace has not taken over the one before it: open the index first. name=`{name}`",
            outcome=Outcome.NOT_COMMITTED,
            retry_after_s=5.0,
        )
        self.life = life


async def is_complete(store: ObjectStore, runtime: Runtime, name: str, record: Incarnation) -> bool:
    """Whether every log of a life has taken over all that it continues, as far as it can be read."""
    if record.continues is None:
        return True
    life = ending.uuid_of(record)
    for shard in range(record.shards):
        if not await _has_carried(store, ShardLog(store, runtime, name, life, shard)):
            return False
    return True


async def _has_carried(store: ObjectStore, log: ShardLog) -> bool:
    snapshots = await store.list(names.snapshot_prefix(log.name, log.incarnation, log.shard))
    if any(names.sequence_of(info.key) > 0 for info in snapshots):  # nobody takes one before
        return True
    for seq in await log.after(0):
        try:
            found, _ = await log.read(seq)
        except (Corrupt, NotFound):
            continue
        if any(request.request.key == ALL_CARRIED.key for request in found.requests):
            return True
    return False


async def publish(
    store: ObjectStore,
    runtime: Runtime,
    record: Incarnation,
    *,
    replaces: bool,
    ends_logs: bool = True,
    over_damage: bool = False,
    guards: bool = False,
) -> Incarnation:
    """Begin the life of `record`, whose content others have put; the record as it counts.

    Its number is found here.  With `ends` and `continues` it replaces exactly that life; else, with `replaces`,
    whatever lives then, taking over what is acknowledged from now on.  Several may do so at once, and again: one
    record comes of it. `ends_logs` puts an end to the logs of the replaced life; else whoever opens the new one does.
    `guards`: whatever lives then must hold nothing that writers gave it, and a name that lived must live still.

    Raises `Conflict` when the name lives (or another life than the one to replace, or one that holds what writers gave
    it where that is guarded), when this life has ended already,
    or when content is missing or was swept; `NotComplete` where the life to replace was never opened, unless
    `over_damage` (`lakehouse.building.publish` sees to both); `Unavailable(UNKNOWN)` when it may have begun.
    """
    assert record.params is not None
    name, life = record.params.name, ending.uuid_of(record)
    for _ in range(ending.CHANGES_MAX):
        now = await incarnations.current(store, name)
        if now is not None and now.uuid == life:
            await _finish(store, runtime, name, now, ends_logs)
            return now
        if now is not None and now.alive and await ending.finished(store, runtime, name, now) is not None:
            continue
        try:
            if guards and record.ends is None and now is not None:
                check_given(name, now)
            new = await _prepared(store, runtime, record, now, replaces, over_damage)
            await incarnations.create(store, runtime, name, new)
        except Conflict:
            if await _moved_on(store, name, now):
                continue
            raise
        await _finish(store, runtime, name, new, ends_logs)
        return new
    raise Conflict(f"the index keeps changing: look at it again. name=`{name}`")


def check_given(name: str, record: Incarnation) -> None:
    """Raises `Conflict` for a life that may hold what no dataset gave it, and for one that has ended."""
    if not record.alive:
        raise dropped(name)
    if not record.is_given:
        raise Conflict(f"the index may hold what writers gave it: look at it again. name=`{name}`")


def dropped(name: str) -> Conflict:
    """What a build comes to whose index was dropped: it does not come back by that."""
    return Conflict(f"the index was dropped while its next life was built. name=`{name}`")


async def has_begun(store: ObjectStore, name: str, life: UUID, *, replaces: bool) -> bool:
    """Whether this life is the current one already: to be asked before its content is made.

    Raises `Conflict` when its content would be made in vain: the name lives and is not to be replaced, or this life
    has ended already.
    """
    now = await incarnations.current(store, name)
    if now is not None and now.uuid == life:
        return True
    await _check(store, name, life, now, replaces=replaces)
    return False


async def _check(
    store: ObjectStore, name: str, life: UUID, now: Incarnation | None, *, replaces: bool
) -> None:
    if now is not None and now.alive and not replaces:
        raise Conflict(f"index already exists. name=`{name}`")
    if any(life in (known.uuid, known.ends) for known in await incarnations.every(store, name)):
        raise Conflict(f"this life has ended already: build again. name=`{name}` life=`{life.hex}`")


async def _moved_on(store: ObjectStore, name: str, before: Incarnation | None) -> bool:
    now = await incarnations.current(store, name)
    return now != before


async def _prepared(
    store: ObjectStore,
    runtime: Runtime,
    record: Incarnation,
    now: Incarnation | None,
    replaces: bool,
    over_damage: bool,
) -> Incarnation:
    """The record to create: claimed, its content there, what it replaces pinned."""
    assert record.params is not None
    name, life = record.params.name, ending.uuid_of(record)
    if record.ends is not None and (now is None or now.uuid != record.ends):
        raise Conflict(
            f"another life is there than the one to replace: look at the index again. name=`{name}`"
        )
    await _check(store, name, life, now, replaces=replaces or record.ends is not None)
    number = 0 if now is None else now.number + 1
    new = replace(record, number=number, seeded=True)
    await claim(store, runtime, name, life, number)
    if now is not None and now.alive:
        await ending.end_replaced(store, runtime, name, now)
        if not over_damage and not await is_complete(store, runtime, name, now):
            raise NotComplete(name, now)
    if now is not None and now.alive and record.ends is None:
        await pin(store, name, ending.uuid_of(now), life)
        positions = await ends_of_logs(store, runtime, name, now)
        new = replace(
            new, ends=now.uuid, continues=Continues(positions), entry_version=CARRYING_ENTRY_VERSION
        )
    absent = await missing(store, name, life, record.shards)
    if absent:
        raise Conflict(f"the content of some shards is not there yet. name=`{name}` shards=`{absent}`")
    return new


async def _finish(
    store: ObjectStore, runtime: Runtime, name: str, record: Incarnation, ends_logs: bool
) -> None:
    if ends_logs:
        with ending.possibly_done(f"index is being replaced: repeat until it is. name=`{name}`"):
            await ending.end_replaced(store, runtime, name, record)


# ---------------------------------------------------------------- what never began


async def sweep_unnamed(
    store: ObjectStore,
    runtime: Runtime,
    name: str,
    grace_s: float = GRACE_S,
    spared: Set[UUID] = frozenset(),
) -> list[UUID]:
    """Remove content of lives that no record names and that nobody will begin any more; those that were removed.

    What a killed build left is marked when it is first seen and swept `grace_s` later.  A life whose claimed record is
    not decided yet is left alone, and so are those `spared`, which whoever asks is building.
    """
    pinned = await _pinned(store, name)
    found = sorted({*await named_snapshots.lives(store, name), *pinned})
    records = await incarnations.every(
        store, name
    )  # after the listing: a life that began empty is named by now
    named = {life for record in records for life in (record.uuid, record.ends)}
    swept = []
    for life in found:
        if life in named or life in spared or (life not in pinned and await _is_swept(store, name, life)):
            continue
        if not await _is_due(store, runtime, name, life, grace_s):
            continue
        if await _settled_as_swept(store, runtime, name, life, records):
            await _remove(store, name, life, records)
            logger.info("content of a build that never began was removed. index=%s life=%s", name, life.hex)
            swept.append(life)
    return swept


async def _pinned(store: ObjectStore, name: str) -> set[UUID]:
    """Every life for which the one that lives is pinned."""
    now = await incarnations.current(store, name)
    if now is None or now.uuid is None:
        return set()
    pins = await store.list(names.pin_prefix(name, now.uuid))
    return {UUID(hex=info.key.rsplit("/", 1)[1]) for info in pins}


async def _is_swept(store: ObjectStore, name: str, life: UUID) -> bool:
    """Whether nothing is left but what says that a life never begins."""
    level = await store.children(names.life_prefix(name, life))
    if level.objects or list(level.prefixes) != [names.fate_prefix(name, life)]:
        return False
    steps = await _steps(store, name, life)
    return bool(steps) and steps[-1] is None


async def _is_due(store: ObjectStore, runtime: Runtime, name: str, life: UUID, grace_s: float) -> bool:
    """Whether content was seen unnamed long enough ago; the first look marks it."""
    prefix = f"{names.life_prefix(name, life)}{MARK}/"
    marks = [info.key.rsplit("/", 1)[1] for info in await store.list(prefix, limit=1)]
    if not marks and grace_s > 0:
        await store.put(f"{prefix}{runtime.now().strftime(_STAMP)}", b"{}")
        return False
    if not marks:
        return True
    since = datetime.strptime(marks[0], _STAMP).replace(tzinfo=UTC)
    return runtime.now() - since >= timedelta(seconds=grace_s)


async def _settled_as_swept(
    store: ObjectStore, runtime: Runtime, name: str, life: UUID, records: list[Incarnation]
) -> bool:
    """Make it certain that a life never begins.  False while it may: its claimed record is not another's yet."""
    steps = await _steps(store, name, life)
    if steps and steps[-1] is None:
        return True
    taken = {record.number for record in records}
    if any(number not in taken for number in steps):
        return False
    key = names.fate_key(name, life, len(steps))
    try:
        await incarnations.create_at(store, runtime, key, _dumped({SWEPT: True}))
    except Conflict:  # claimed meanwhile
        return False
    return True


async def _remove(store: ObjectStore, name: str, life: UUID, records: list[Incarnation]) -> None:
    """Everything but what says that it is swept, which stays for ever, and its pins."""
    kept = names.fate_prefix(name, life)
    for info in await store.list(names.life_prefix(name, life)):
        if not info.key.startswith(kept):
            await store.delete(info.key)
    for replaced in {record.uuid for record in records if record.uuid is not None}:
        await store.delete(names.pin_key(name, replaced, life))


async def discard(store: ObjectStore, name: str, life: UUID, replaced: UUID | None = None) -> None:
    """Remove the content of a life that this process alone knows and will not begin."""
    for info in await store.list(names.life_prefix(name, life)):
        await store.delete(info.key)
    if replaced is not None:
        await unpin(store, name, replaced, life)
