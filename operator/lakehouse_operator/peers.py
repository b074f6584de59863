"""The key that the processes of one namespace show to each other, and the operator to them.

One Secret per namespace, made once and never changed by us; pods take it from there, so it never travels.  One that was
deleted is made again, with the same key, as running pods still know that.  What this module does not do: copy a Secret
from one namespace to another.
"""

import base64
import contextlib

from lakehouse.core.errors import Invalid, LakehouseError, NotFound
from lakehouse.runtime import Runtime
from lakehouse_operator import names
from lakehouse_operator.kube import SECRET, Body, Exists, Kube

KEY_BYTES = 32
CHECK_S = 60.0
"""Between looks whether the Secret of a namespace, or the namespace itself, is still there."""


def secret(namespace: str, key: str) -> Body:
    """The Secret's body."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": names.PEER_KEY_SECRET,
            "namespace": namespace,
            "labels": {names.NAME_LABEL: "lakehouse", names.MANAGED_BY_LABEL: names.MANAGED_BY},
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

    async def ensure(self, namespace: str) -> None:
        """Make the Secret if it is missing.  Raises what the API server does."""
        now_s = self._runtime.monotonic()
        if namespace in self._keys and now_s - self._seen_s.get(namespace, float("-inf")) < CHECK_S:
            return
        before = self._keys.pop(namespace, "")
        try:
            await self._there(namespace, before or self._new())
        except LakehouseError:
            if before:
                self._keys[namespace] = before
            raise

    async def _there(self, namespace: str, key: str) -> None:
        try:
            await self.key(namespace)
        except NotFound:
            with contextlib.suppress(Exists):  # another was faster, or the answer to us was lost
                await self._kube.create(secret(namespace, key))
            await self.key(namespace)

    def _new(self) -> str:
        made = self._runtime.random().randbytes(KEY_BYTES)
        return base64.urlsafe_b64encode(made).decode().rstrip("=")

    async def key(self, namespace: str) -> str:
        """The key.  Raises `NotFound`, and `Invalid` for a Secret without it."""
        known = self._keys.get(namespace)
        if known is not None:
            return known
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
