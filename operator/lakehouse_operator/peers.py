"""The key that the processes of one namespace show to each other, and the operator to them.

One Secret per namespace, made once and never changed by us; pods take it from there, so it never travels.  What this
module does not do: copy a Secret from one namespace to another.
"""

import base64
import contextlib

from lakehouse.core.errors import Invalid, NotFound
from lakehouse.runtime import Runtime
from lakehouse_operator import names
from lakehouse_operator.kube import SECRET, Body, Exists, Kube

KEY_BYTES = 32


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

    async def ensure(self, namespace: str) -> None:
        """Make the Secret if it is missing.  Raises what the API server does."""
        if namespace in self._keys:
            return
        try:
            await self.key(namespace)
        except NotFound:
            made = self._runtime.random().randbytes(KEY_BYTES)
            body = secret(namespace, base64.urlsafe_b64encode(made).decode().rstrip("="))
            with contextlib.suppress(Exists):  # another was faster, or the answer to us was lost
                await self._kube.create(body)
            await self.key(namespace)

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
        return key

    def refused(self, namespace: str) -> None:
        """A pod did not accept the key: read it again."""
        self._keys.pop(namespace, None)
