"""Buckets as the operator sees them: opened once per target, looked at by one for all, and told of truthfully.

Every resource that lies in the same place shares one connection, one copy of its Secret and one periodic look, so
many idle resources cost what one does.  The first look proves that the store keeps create-if-absent; the later ones
are one LIST of nothing.  A Secret is read again with each look, so a key that was replaced is used soon, also by pods
that have it as files (`mounts`), and one that was refused is not used twice.

No look waits for another place's, and a store that hangs is known as one `LOOK_S + LIST_S` later, 13 s, however many
lie there: only a few requests at once go to one place, and who waits for a turn where nobody is answered has seen the
same silence.  What this module does not do: hold data, or keep anything when the process ends.
"""

import asyncio
import base64
import binascii
import contextlib
import logging
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lakehouse.control.state import REACHABLE, SECRET_NOT_READABLE, StoreState
from lakehouse.core.errors import (
    BucketNotFound,
    CredentialsRefused,
    Invalid,
    LakehouseError,
    Outcome,
    Unavailable,
)
from lakehouse.store.base import ObjectStore
from lakehouse.store.probe import PROBE, probe
from lakehouse.store.s3 import OTHER_REGION, REGION, S3Settings, S3Store
from lakehouse_operator.asking import INSTANT_S, Asking, Door
from lakehouse_operator.cache import Key
from lakehouse_operator.kube import SECRET
from lakehouse_operator.mounts import Mounts
from lakehouse_operator.parts import Parts
from lakehouse_operator.targets import Target, target

logger = logging.getLogger(__name__)

LOOK_S = 10.0
"""Between looks at a bucket that something active lies in: 8,640 LISTs a day, 4 US cents on S3."""
IDLE_LOOK_S = 60.0
"""… and at one where everything is suspended."""
FRESH_S = 3.0
"""A look that failed is not repeated sooner, however many resources ask."""
WATCH_S = 1.0
"""Most between two thoughts of who is due; who is due sooner is looked at then."""
SECRETS_AT_ONCE = 8
READ_TIMEOUT_S = 5.0
"""For everything that the operator asks of a store, which is small: a turn that waits is one less for others."""
PROVE_S = 20.0
"""Most that the proof of the first look may take, with some twenty requests."""
ATTEMPTS = 2
"""Requests that must fail before a bucket that was there counts as away: one may meet a connection that just ended.
Both share `LIST_S`: the second goes out when the first fails, or beside it when half of the time is over."""
SECRET_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
TOKEN_KEY = "AWS_SESSION_TOKEN"
SECRET_LOST = ("SecretNotFound", SECRET_NOT_READABLE)
"""With a namespace go its Secrets, and the Role that let us read them, before what waits for us."""
SILENT = "Timeout"
"""Why a store that cannot be asked is not reachable: nothing, or nothing of use, came back."""
UNKNOWN = StoreState(None, "Pending", "the bucket has not been looked at yet")
_PROBED = re.compile(re.escape(PROBE) + "[0-9a-f]{32}")
"""Another key at each look: told, it would change the status of whoever lies there."""


@dataclass(frozen=True, slots=True)
class _Credentials:
    """What a Secret says."""

    version: str = ""
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    region: str | None = None
    """Where the resource and the installation name none: the pods have it in their environment."""


class _NoSecretError(Exception):
    """The Secret is not there, or says too little: reason and detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(slots=True, eq=False)
class _Bucket:
    """One target, and what is known of it."""

    target: Target
    doors: tuple[Door, ...]
    """Held for as long as the bucket is in use."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    store: S3Store | None = None
    version: str = ""
    """Of the Secret that `store` was opened with."""
    proven: bool = False
    state: StoreState = UNKNOWN
    looked_s: float = float("-inf")
    suspected: bool = False
    users: set[Key] = field(default_factory=set)
    certificates: Path | None = None
    settings: S3Settings = field(default_factory=S3Settings)
    """How `store` was opened."""
    beside: dict[str, S3Store] = field(default_factory=dict)
    """Other buckets, whole, reached in the same way; by name."""


class Buckets:
    """Every bucket that a resource lies in."""

    def __init__(self, parts: Parts, mounts: Mounts | None = None) -> None:
        """`mounts` is told which version each Secret has; None where nobody has one as files."""
        self._parts = parts
        self._mounts = mounts
        self._buckets: dict[Target, _Bucket] = {}
        self._places: dict[Key, Target] = {}
        """Where each resource lies."""
        self._asking = Asking(parts.runtime)
        self._secrets = asyncio.Semaphore(SECRETS_AT_ONCE)
        self._task: asyncio.Task[None] | None = None
        self._looks: dict[_Bucket, asyncio.Task[None]] = {}
        """Begun by the watch; at most one at each."""

    def start(self) -> None:
        """Begin to look at what is in use; whoever lies there is called when the answer turns."""
        self._task = self._parts.runtime.spawn(self._watch(), name="buckets")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for task in self._looks.values():
            task.cancel()
        await asyncio.gather(*self._looks.values(), return_exceptions=True)
        await self._asking.close()
        for bucket in self._buckets.values():
            await self._release(bucket)
        self._buckets.clear()

    async def of(
        self,
        namespace: str,
        storage: Mapping[str, Any] | None,
        user: Key | None = None,
        *,
        last: bool = False,
    ) -> tuple[ObjectStore | None, StoreState]:
        """The store that a resource's `spec.storage` says, if it can be used now, and whether it answers.

        `user` is called when the answer turns.  With `last` (the resource is to go), a store whose Secret is gone, or
        may not be read any more, is used once more with the key that was in it, if it still answers.
        """
        try:
            wanted = target(namespace, storage, self._parts.settings)
        except Invalid as error:
            return None, StoreState(False, "NotConfigured", error.message)
        bucket = self._buckets.get(wanted)
        if bucket is None:
            bucket = self._buckets[wanted] = _Bucket(wanted, self._asking.doors(wanted))
        if user is not None:
            self._used(user, wanted)
        if self._is_silent(bucket) and self._task is not None and bucket.users:
            # The watch looks soon, and calls when the answer turns: a turn spent here is one less for others.
            bucket.suspected = True
        else:
            await self._look(bucket, self._patience_s(bucket))
        if last and bucket.state.reason in SECRET_LOST and bucket.store is not None:
            try:
                await self._asking.listed(bucket.doors, bucket.store, 1)
            except LakehouseError:
                return None, bucket.state
            return bucket.store, REACHABLE
        return (bucket.store if bucket.state.reachable else None), bucket.state

    async def beside(self, namespace: str, storage: Mapping[str, Any] | None, name: str) -> ObjectStore:
        """Another bucket, whole, reached as the one of that `spec.storage` is: where sources lie.

        Kept open with it.  Raises `Invalid`, `Unavailable`.
        """
        bucket = self._buckets.get(target(namespace, storage, self._parts.settings))
        if bucket is None or bucket.store is None:
            raise Unavailable("the bucket is not open", outcome=Outcome.NOT_COMMITTED)
        store = bucket.beside.get(name)
        if store is None:
            runtime = self._parts.runtime
            store = await runtime.run_io(S3Store, name, "", runtime, bucket.settings)
            bucket.beside[name] = store
        return store

    def target(self, namespace: str, storage: Mapping[str, Any] | None) -> Target:
        """Where that is.  Raises `Invalid`."""
        return target(namespace, storage, self._parts.settings)

    def suspect(self, namespace: str, storage: Mapping[str, Any] | None) -> None:
        """Something failed there: the next who asks makes it be looked at again."""
        with contextlib.suppress(Invalid):
            bucket = self._buckets.get(target(namespace, storage, self._parts.settings))
            if bucket is not None:
                bucket.suspected = True

    def refused(self, namespace: str, storage: Mapping[str, Any] | None, pods: Iterable[str]) -> None:
        """Pods do not reach that place: it may be away for all, or their keys are old."""
        self.suspect(namespace, storage)
        secret = target(namespace, storage, self._parts.settings).secret
        if secret and self._mounts is not None:
            for pod in pods:
                self._mounts.doubt(namespace, secret, pod)

    def forget(self, user: Key) -> None:
        """A resource is gone."""
        place = self._places.pop(user, None)
        if place is not None and place in self._buckets:
            self._buckets[place].users.discard(user)

    def _used(self, user: Key, place: Target) -> None:
        if self._places.get(user) != place:
            self.forget(user)
            self._places[user] = place
        self._buckets[place].users.add(user)

    # ---------------------------------------------------------------- looking

    def _patience_s(self, bucket: _Bucket) -> float:
        """How old an answer may be for who asks now; `_watch` asks often enough by itself."""
        if bucket.suspected or not bucket.state.reachable:
            return FRESH_S
        return max(LOOK_S, IDLE_LOOK_S)

    def _pace_s(self, bucket: _Bucket) -> float:
        """Between looks by the watch."""
        active = self._is_active(bucket)
        if bucket.suspected or (active and self._is_silent(bucket)):
            return FRESH_S
        return LOOK_S if active else IDLE_LOOK_S

    def _is_silent(self, bucket: _Bucket) -> bool:
        return bucket.state.reason == SILENT

    async def _watch(self) -> None:
        pause_s = WATCH_S
        while True:
            await self._parts.runtime.sleep(pause_s)
            try:
                pause_s = self._begin()
                await self._release_unused()
            except Exception:
                logger.exception("cannot look at buckets: trying again")

    def _begin(self) -> float:
        """Look at every bucket that is due, each by itself.  How long until the next is due, at most `WATCH_S`."""
        pause_s = WATCH_S
        for bucket in self._buckets.values():
            if not bucket.users or bucket in self._looks:
                continue
            pace_s = self._pace_s(bucket)
            left_s = pace_s - self._age_s(bucket)
            if left_s > 0:
                pause_s = min(pause_s, max(left_s, INSTANT_S))
            else:
                url = bucket.target.url
                self._looks[bucket] = self._parts.runtime.spawn(
                    self._look_by_itself(bucket, pace_s), name=f"look {url}"
                )
        return pause_s

    async def _look_by_itself(self, bucket: _Bucket, patience_s: float) -> None:
        try:
            await self._look(bucket, patience_s)
        except Exception as error:
            if not isinstance(error, LakehouseError):
                logger.exception("cannot look at a bucket: trying again. url=%s", bucket.target.url)
            await self._parts.runtime.sleep(FRESH_S)
        finally:
            del self._looks[bucket]

    async def _release_unused(self) -> None:
        for place, bucket in list(self._buckets.items()):
            if not bucket.users and self._age_s(bucket) > IDLE_LOOK_S and not bucket.lock.locked():
                del self._buckets[place]
                await self._release(bucket)

    def _is_active(self, bucket: _Bucket) -> bool:
        found = (self._parts.cache.parsed(user) for user in bucket.users)
        return any(one is not None and not getattr(one.spec, "suspend", False) for one in found)

    def _age_s(self, bucket: _Bucket) -> float:
        return self._parts.runtime.monotonic() - bucket.looked_s

    async def _look(self, bucket: _Bucket, patience_s: float) -> None:
        """Look, unless the last look is recent enough; who lies there is called when the answer is another one.

        Raises what the API server's silence about the Secret raises, when nothing was known before.
        """
        async with bucket.lock:  # who waits for a look takes its answer
            if self._age_s(bucket) < (min(patience_s, FRESH_S) if bucket.suspected else patience_s):
                return
            found = await self._seen(bucket)
            before, bucket.state = bucket.state, found
            bucket.looked_s, bucket.suspected = self._parts.runtime.monotonic(), False
        if (before.reachable, before.reason) == (found.reachable, found.reason):
            return
        logger.info("bucket. url=%s reason=%s", bucket.target.url, found.reason)
        for user in list(bucket.users):
            self._parts.call(user)

    async def _seen(self, bucket: _Bucket) -> StoreState:
        """Whatever is wrong with a place is something seen of it, or nobody who lies there would get another turn."""
        try:
            async with self._secrets:
                credentials = await self._credentials(bucket.target)
        except _NoSecretError as error:
            return StoreState(False, error.reason, error.detail)
        except Unavailable:  # the API server is away: that says nothing about the bucket
            if bucket.store is None:
                raise
        except LakehouseError as error:  # we may not look, or no Secret can have that name
            if bucket.state.reason == "SecretNotFound":  # it was gone before we lost the right to look
                return bucket.state
            return StoreState(False, SECRET_NOT_READABLE, error.message)
        else:
            if bucket.store is None or credentials.version != bucket.version:
                try:
                    await self._open(bucket, credentials)
                except LakehouseError as error:
                    return _told(bucket.target, error)
        return await self._answer(bucket)

    async def _answer(self, bucket: _Bucket) -> StoreState:
        assert bucket.store is not None
        attempts = ATTEMPTS if bucket.state.reachable else 1
        try:
            await self._asking.listed(bucket.doors, bucket.store, attempts)
            if not bucket.proven:
                await self._prove(bucket.store, attempts)
        except LakehouseError as error:
            return _told(bucket.target, error)
        bucket.proven = True
        return REACHABLE

    async def _prove(self, store: S3Store, attempts: int) -> None:
        for left in reversed(range(attempts)):
            try:
                async with asyncio.timeout(PROVE_S):
                    await probe(store, self._parts.runtime)
            except TimeoutError as error:
                raise Unavailable(
                    f"the store was not proven within {PROVE_S:g} s. url=`{store.url}`"
                ) from error
            except LakehouseError:
                if not left:
                    raise
            else:
                return

    # ---------------------------------------------------------------- opening

    async def _credentials(self, place: Target) -> _Credentials:
        if not place.secret:
            return _Credentials()
        body = await self._parts.kube.get(SECRET, place.namespace, place.secret)
        if body is None:
            raise _NoSecretError(
                "SecretNotFound",
                f"there is no such Secret: create it with {' and '.join(SECRET_KEYS)}, or name another. "
                f"secret=`{place.namespace}/{place.secret}`",
            )
        version = str(body["metadata"]["resourceVersion"])
        if self._mounts is not None:
            self._mounts.seen(place.namespace, place.secret, version)
        data = body.get("data") or {}
        try:
            access, secret, token, region, other = (
                _decoded(data.get(name)) for name in (*SECRET_KEYS, TOKEN_KEY, REGION, OTHER_REGION)
            )
        except ValueError as error:
            raise _NoSecretError(
                "SecretInvalid", f"the Secret is not text. secret=`{place.secret}`"
            ) from error
        if not access or not secret:
            raise _NoSecretError(
                "SecretInvalid",
                f"the Secret needs the keys {' and '.join(SECRET_KEYS)}. secret=`{place.namespace}/{place.secret}`",
            )
        return _Credentials(version, access, secret, token or None, region or other or None)

    async def _open(self, bucket: _Bucket, credentials: _Credentials) -> None:
        place, runtime = bucket.target, self._parts.runtime
        if place.ca_bundle and bucket.certificates is None:
            bucket.certificates = await runtime.run_io(_written, place.ca_bundle)
        settings = S3Settings(
            endpoint=place.endpoint or None,
            region=place.region or credentials.region,
            access_key_id=credentials.access_key_id,
            secret_access_key=credentials.secret_access_key,
            session_token=credentials.session_token,
            ca_bundle=str(bucket.certificates) if bucket.certificates else None,
            read_timeout_s=READ_TIMEOUT_S,
        )
        await self._shut(bucket)
        bucket.settings = settings
        bucket.store = await runtime.run_io(S3Store, place.bucket, place.prefix, runtime, settings)
        bucket.version, bucket.proven = credentials.version, False

    async def _shut(self, bucket: _Bucket) -> None:
        """Close what is open; who is using it is told that it is closed, and looks again."""
        for store in (bucket.store, *bucket.beside.values()):
            if store is not None:
                await store.close()
        bucket.store = None
        bucket.beside.clear()

    async def _release(self, bucket: _Bucket) -> None:
        await self._shut(bucket)
        if bucket.certificates is not None:
            await self._parts.runtime.run_io(bucket.certificates.unlink, missing_ok=True)


def unreachable(error: LakehouseError) -> StoreState:
    """What a store's error says of it."""
    match error:
        case CredentialsRefused():
            reason = "AccessDenied"
        case BucketNotFound():
            reason = "BucketNotFound"
        case Unavailable():
            reason = SILENT
        case _:
            reason = "NotUsable"
    return StoreState(False, reason, _PROBED.sub(f"{PROBE}…", error.message))


def _told(place: Target, error: LakehouseError) -> StoreState:
    """The same with the endpoint, which not every store's error names."""
    found = unreachable(error)
    if not place.endpoint or place.endpoint in found.detail:
        return found
    return replace(found, detail=f"{found.detail} endpoint=`{place.endpoint}`")


def _decoded(value: str | None) -> str:
    try:
        return "" if value is None else base64.b64decode(value, validate=True).decode().strip()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError("not base64 of text") from error


def _written(text: str) -> Path:
    with tempfile.NamedTemporaryFile("w", suffix=".pem", prefix="lakehouse-", delete=False) as file:
        file.write(text)
    return Path(file.name)
