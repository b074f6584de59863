"""The key that the processes of one namespace show to each other, and the operator to them.

One Secret per namespace, made once and never changed by us; pods take it from there, so it never travels.  One that was
deleted is made again, with the same key, as running pods still know that.  The release's namespace has its own from
the start, as the chart's pods wait for it; any other with the first object there that needs it.  What this module does
not do: copy a Secret from one namespace to another.
"""

import asyncio
import base64
import contextlib
import logging

from lakehouse.core.errors import Invalid, LakehouseError, NotFound
from lakehouse.runtime import Runtime
from lakehouse_operator import names
from lakehouse_operator.kube import SECRET, Body, Exists, Kube

logger = logging.getLogger(__name__)

KEY_BYTES = 32
CHECK_S = 60.0
"""Between looks whether the Secret of a namespace, or the namespace itself, is still there."""
AGAIN_S = 2.0
"""Between attempts to make one: pods that have just been installed wait for it."""


def secret(namespace: str, key: str) -> Body:
    """The Secret's body."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": names.PEER_KEY_SECRET,
            "namespace": namespace,
            "labels": {names.NAME_LABEL: "lakehouse", names.MANAGED_BY_LABEL: names.MANAGED_BY},
            # A release that had made the one before would delete this one at its next upgrade, as not its own.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "type": "Opaque",
        "stringData": {names.PEER_KEY: key},
    }


class Peers:
    """The key of each namespace."""

    def __init__(self, kube: Kube, runtime: Runtime) -> None:
        self._kube = kube
        self._runtime = runtime
        self._keys: dict[str, str] = {}
        self._seen_s: dict[str, float] = {}
        """When the Secret of a namespace was last seen, on the monotonic clock."""
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
        now_s = self._runtime.monotonic()
        known = self._keys.get(namespace)
        if known is not None and now_s - self._seen_s.get(namespace, float("-inf")) < CHECK_S:
            return
        try:
            await self._read(namespace)
        except NotFound:
            with contextlib.suppress(Exists):  # another was faster, or the answer to us was lost
                await self._kube.create(secret(namespace, known or self._new()))
            await self._read(namespace)

    def _new(self) -> str:
        made = self._runtime.random().randbytes(KEY_BYTES)
        return base64.urlsafe_b64encode(made).decode().rstrip("=")

    async def key(self, namespace: str) -> str:
        """The key.  Raises `NotFound`, and `Invalid` for a Secret without it."""
        known = self._keys.get(namespace)
        return await self._read(namespace) if known is None else known

    async def _read(self, namespace: str) -> str:
        body = await self._kube.get(SECRET, namespace, names.PEER_KEY_SECRET)
        if body is None:
            raise NotFound(f"there is no such Secret. secret=`{namespace}/{names.PEER_KEY_SECRET}`")
        data = (body.get("data") or {}).get(names.PEER_KEY, "")
        key = base64.b64decode(data).decode()
        if not key:
            raise Invalid(
                f"the Secret has no {names.PEER_KEY}: delete it, and it is made anew. "
                f"secret=`{namespace}/{names.PEER_KEY_SECRET}`"
            )
        self._keys[namespace] = key
        self._seen_s[namespace] = self._runtime.monotonic()
        return key

    def refused(self, namespace: str) -> None:
        """A pod did not accept the key: read it again."""
        self._keys.pop(namespace, None)
