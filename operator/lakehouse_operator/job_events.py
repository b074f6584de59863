"""Why a Job has no pods: what the cluster's own Events say of a quota, Pod Security or a webhook that refuses them.

A Deployment tells that in a condition; a Job tells it nowhere else.  What this module does not do: look at Jobs that
have pods; those tell for themselves (`jobs`).
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from lakehouse.core.errors import LakehouseError
from lakehouse_operator.jobs import MESSAGE_MAX, Ledger
from lakehouse_operator.kube import EVENT
from lakehouse_operator.parts import Parts

PATIENCE = timedelta(seconds=3)
"""Pods that take longer than that to be made are refused, or the cluster is slow; one LIST tells which."""
REASON = "FailedCreate"


class JobEvents:
    """Reads Events."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def told(self, ledger: Ledger) -> Ledger:
        """The ledger, with the reason where what runs has no pods.  Raises nothing."""
        running = ledger.running
        if running is None or running.pods or running.progress:
            return ledger
        if self._parts.runtime.now() - running.started_at < PATIENCE:
            return ledger
        fields = {"involvedObject.uid": running.uid, "reason": REASON}
        try:
            found = await self._parts.kube.list(EVENT, running.namespace, fields=fields)
        except LakehouseError as error:
            return replace(
                ledger, running=replace(running, progress=f"no pods yet, and why is not known: {error}")
            )
        return replace(ledger, running=replace(running, progress=newest(found)))


def newest(events: list[dict[str, Any]]) -> str:
    """The last of them, for people; empty for none."""
    last = max(events, key=_when, default=None)
    return "" if last is None else f"{REASON}: {last.get('message', '')}"[:MESSAGE_MAX]


def _when(event: Mapping[str, Any]) -> str:
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")
