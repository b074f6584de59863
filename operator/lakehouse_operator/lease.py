"""One leader among replicas: a coordination.k8s.io Lease, as client-go's leader election keeps it.

The times are judged by this process's own monotonic clock from when it saw the Lease change, so clocks that differ do
no harm.  Losing the Lease ends the process; buckets are fenced by their logs, not by this.  What this module does not
do: start or stop what the leader does.
"""

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from lakehouse.core.errors import Conflict, LakehouseError, NotFound
from lakehouse.runtime import Runtime
from lakehouse_operator import names
from lakehouse_operator.kube import LEASE, Body, Kube

logger = logging.getLogger(__name__)

DURATION_S = 10.0
"""A leader that has not renewed for so long is taken over from: so that no status is behind for 15 s when one is
killed, with the start of the next and its first turns."""
RENEW_DEADLINE_S = 8.0
"""A leader that could not renew for so long gives up, before anybody may take over."""
RETRY_S = 2.0
STANDBY_S = 1.0
LABELS = {names.NAME_LABEL: "lakehouse", names.COMPONENT_LABEL: "operator"}
"""Those of the operator's pods, so that one question finds both."""


class LeaseLost(LakehouseError):
    """Somebody else leads, or the Lease could not be renewed in time: end the process."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """The Lease as last seen, and when it last changed for us."""

    version: str
    since_s: float


class Lease:
    """This replica's part in the election."""

    def __init__(self, kube: Kube, runtime: Runtime, namespace: str, name: str, identity: str) -> None:
        self._kube = kube
        self._runtime = runtime
        self._namespace = namespace
        self._name = name
        self._identity = f"{identity}_{runtime.uuid().hex[:8]}"
        """Unlike that of a container before this one in the same pod, whose Lease may not have run out."""
        self._seen: _Seen | None = None
        self._held: Body | None = None
        self.answered = False
        """Whether the API server has answered: this replica can take over."""

    @property
    def held(self) -> bool:
        return self._held is not None

    async def acquire(self) -> None:
        """Wait until this replica leads."""
        told = ""
        while True:
            try:
                holder = await self._try()
            except Conflict:
                holder = "another replica that was faster"
            except LakehouseError as error:
                holder = ""
                logger.warning("cannot ask for the lease: trying again. lease=%s error=%s", self._name, error)
            if self._held is not None:
                logger.info("leading. lease=%s/%s identity=%s", self._namespace, self._name, self._identity)
                return
            if holder and holder != told:
                logger.info("standing by. lease=%s/%s leader=%s", self._namespace, self._name, holder)
                told = holder
            await self._runtime.sleep(STANDBY_S * (1 + self._runtime.random().random() / 5))

    async def _try(self) -> str:
        """Take the Lease if it is free; else who holds it.  Raises what `Kube` raises."""
        there = await self._kube.get(LEASE, self._namespace, self._name)
        self.answered = True
        if there is None:
            self._held = await self._kube.create(self._body(None))
            return ""
        spec, now_s = there.get("spec") or {}, self._runtime.monotonic()
        version = there["metadata"]["resourceVersion"]
        if self._seen is None or self._seen.version != version:
            self._seen = _Seen(version, now_s)
        holder = str(spec.get("holderIdentity") or "")
        lasts_s = float(spec.get("leaseDurationSeconds") or DURATION_S)
        if holder and holder != self._identity and now_s - self._seen.since_s < lasts_s:
            return holder
        self._held = await self._kube.replace(self._body(there))
        return ""

    async def keep(self) -> None:
        """Renew for ever.  Raises `LeaseLost`."""
        renewed_s = self._runtime.monotonic()
        while True:
            await self._runtime.sleep(RETRY_S)
            if self._held is None:
                raise LeaseLost(f"the lease is held no more. lease=`{self._name}`")
            asked_s = self._runtime.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(renewed_s + RENEW_DEADLINE_S - asked_s):
                    if await self._renew(self._held):
                        renewed_s = asked_s
            if self._runtime.monotonic() - renewed_s >= RENEW_DEADLINE_S:
                self._held = None
                raise LeaseLost(
                    f"the lease could not be renewed in {RENEW_DEADLINE_S:g} s. lease=`{self._name}`"
                )

    async def _renew(self, held: Body) -> bool:
        """Whether it is ours from now.  Raises `LeaseLost`."""
        try:
            self._held = await self._kube.replace(self._body(held))
        except Conflict as error:
            await self._still_ours(error)
        except LakehouseError as error:
            logger.warning("the lease was not renewed. lease=%s error=%s", self._name, error)
        else:
            return True
        return False

    async def _still_ours(self, error: Conflict) -> None:
        """After a conflict: somebody took it over, or our own write landed and its answer did not."""
        try:
            there = await self._kube.get(LEASE, self._namespace, self._name)
        except LakehouseError:
            return
        if there is None or (there.get("spec") or {}).get("holderIdentity") != self._identity:
            self._held = None
            raise LeaseLost(f"another replica leads now. lease=`{self._name}`") from error
        self._held = there

    async def release(self) -> None:
        """Let a successor begin at once.  Raises nothing; then it begins when the Lease has run out."""
        held, self._held = self._held, None
        if held is None:
            return
        body = self._body(held)
        body["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            await self._kube.replace(body)
        except (Conflict, NotFound):
            return
        except LakehouseError as error:
            logger.warning("the lease was not released. lease=%s error=%s", self._name, error)

    def _body(self, there: Body | None) -> Body:
        """The Lease with us as holder, from now."""
        now = self._runtime.now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before: dict[str, Any] = dict((there or {}).get("spec") or {})
        ours = before.get("holderIdentity") == self._identity
        metadata: Body = there["metadata"] if there else {"namespace": self._namespace, "name": self._name}
        return {
            "apiVersion": LEASE.api_version,
            "kind": str(LEASE),
            "metadata": metadata | {"labels": {**(metadata.get("labels") or {}), **LABELS}},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": int(DURATION_S),
                "acquireTime": before.get("acquireTime", now) if ours else now,
                "renewTime": now,
                "leaseTransitions": int(before.get("leaseTransitions") or 0)
                + (there is not None and not ours),
            },
        }
