"""The key that the processes of one namespace show to each other, and the operator to them.

One Secret per namespace, made once and never changed by us; pods have it as a file, so it never travels.  One that was
deleted is made again, with the same key where that is still known.  One that somebody changed reaches every pod within
90 s, and pods take the key before it for `PREVIOUS_S`; until well after the first and well before the second has
passed the old one is shown.  The release's namespace has its Secret from the start, as the chart's pods wait for it;
any other with the first object there that needs it.  What this module does not do: copy a Secret from one namespace to
another.
"""

import asyncio
import base64
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from lakehouse.core.errors import Invalid, LakehouseError, NotFound
from lakehouse.runtime import Runtime
from lakehouse_operator import names
from lakehouse_operator.kube import SECRET, Body, Exists, Kube
from lakehouse_operator.mounts import Mounts

logger = logging.getLogger(__name__)

KEY_BYTES = 32
KEY_MIN = 16
"""Characters: pods take none that is shorter, and keep the one before it."""
CHECK_S = 60.0
"""Between looks whether the Secret of a namespace, or the namespace itself, is still there."""
AGAIN_S = 2.0
"""Between attempts to make one: pods that have just been installed wait for it."""
PREVIOUS_S = 150.0
"""How long the key before this one is shown.  Pods have the new one after 90 s, and take the one before it for 300 s,
of which `CHECK_S` may have passed when the change is seen here."""


def secret(namespace: str, key: str, release: str = "") -> Body:
    """The Secret's body; `release`: a Helm release in whose manifest it stands too."""
    labels = {names.NAME_LABEL: "lakehouse", names.MANAGED_BY_LABEL: names.MANAGED_BY}
    # A release that had made the one before would delete this one at its next upgrade, as not its own.
    annotations = {"helm.sh/resource-policy": "keep"}
    if release:  # without these Helm refuses an object that it finds in the place of its own
        labels[names.MANAGED_BY_LABEL] = "Helm"
        annotations |= {"meta.helm.sh/release-name": release, "meta.helm.sh/release-namespace": namespace}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": names.PEER_KEY_SECRET,
            "namespace": namespace,
            "labels": labels,
            "annotations": annotations,
        },
        "type": "Opaque",
        "stringData": {names.PEER_KEY: key},
    }


@dataclass(frozen=True, slots=True)
class Known:
    """The key of one namespace."""

    key: str
    seen_s: float
    """When its Secret was last seen, on the monotonic clock."""
    previous: str = ""
    """The key before it."""
    until_s: float = 0.0
    """How long that one is shown."""
    doubted: bool = False
    """A pod refused it: the Secret is read before it is shown again."""

    def shown(self, now_s: float) -> str:
        """What pods are shown."""
        return self.previous if self.previous and now_s < self.until_s else self.key


def read_again(known: Known | None, key: str, now_s: float) -> Known:
    """After the Secret said `key`."""
    if known is None:
        return Known(key, now_s)
    if known.key == key:
        return Known(key, now_s, known.previous, known.until_s)
    return Known(key, now_s, known.key, now_s + PREVIOUS_S)


def refused(known: Known, now_s: float) -> Known:
    """After a pod refused what it was shown: one that started after the change knows only the new key."""
    if known.shown(now_s) != known.key:
        return Known(known.key, known.seen_s)
    return Known(known.key, known.seen_s, doubted=True)


class Peers:
    """The key of each namespace."""

    def __init__(
        self,
        kube: Kube,
        runtime: Runtime,
        releases: Mapping[str, str] | None = None,
        mounts: Mounts | None = None,
    ) -> None:
        """`releases`: by namespace, the Helm release in whose manifest the Secret stands too.  `mounts` is told which
        version the Secret has; None where nobody has it as files."""
        self._kube = kube
        self._mounts = mounts
        self._runtime = runtime
        self._releases = releases or {}
        self._known: dict[str, Known] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self, namespace: str) -> None:
        """Have the Secret of a namespace there from now on, whatever is declared in it."""
        self._task = self._runtime.spawn(self._keep(namespace), name="peer key")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self, namespace: str) -> None:
        told = ""
        while True:
            wait_s = CHECK_S
            try:
                await self.ensure(namespace)
                told = ""
            except LakehouseError as error:
                wait_s = AGAIN_S
                if error.message != told:
                    logger.warning(
                        "cannot make the peer key: trying again. namespace=%s error=%s", namespace, error
                    )
                told = error.message
            await self._runtime.sleep(wait_s)

    async def ensure(self, namespace: str) -> None:
        """Make the Secret if it is missing.  Raises what the API server does."""
        known = self._known.get(namespace)
        if known is not None and not known.doubted and self._runtime.monotonic() - known.seen_s < CHECK_S:
            return
        try:
            await self._read(namespace)
        except NotFound:
            made = secret(namespace, self._new() if known is None else known.key, self._release(namespace))
            with contextlib.suppress(Exists):  # another was faster, or the answer to us was lost
                await self._kube.create(made)
            await self._read(namespace)

    def _new(self) -> str:
        made = self._runtime.random().randbytes(KEY_BYTES)
        return base64.urlsafe_b64encode(made).decode().rstrip("=")

    def _release(self, namespace: str) -> str:
        return self._releases.get(namespace, "")

    async def key(self, namespace: str) -> str:
        """What pods are shown.  Raises `NotFound`, and `Invalid` for a Secret without it."""
        known = self._known.get(namespace)
        if known is None or known.doubted:
            known = await self._read(namespace)
        return known.shown(self._runtime.monotonic())

    async def _read(self, namespace: str) -> Known:
        body = await self._kube.get(SECRET, namespace, names.PEER_KEY_SECRET)
        if body is None:
            raise NotFound(f"there is no such Secret. secret=`{namespace}/{names.PEER_KEY_SECRET}`")
        data = (body.get("data") or {}).get(names.PEER_KEY, "")
        key = base64.b64decode(data).decode().strip()
        if len(key) < KEY_MIN:
            raise Invalid(
                f"the Secret has no {names.PEER_KEY} of {KEY_MIN} characters: delete it, and it is made anew. "
                f"secret=`{namespace}/{names.PEER_KEY_SECRET}`"
            )
        found = read_again(self._known.get(namespace), key, self._runtime.monotonic())
        self._known[namespace] = found
        if self._mounts is not None:
            self._mounts.seen(namespace, names.PEER_KEY_SECRET, str(body["metadata"]["resourceVersion"]))
        return found

    def refused(self, namespace: str) -> None:
        """A pod did not accept what it was shown."""
        known = self._known.get(namespace)
        if known is not None:
            self._known[namespace] = refused(known, self._runtime.monotonic())
