"""An index's pods: which there are, what each says it serves, and how they are asked to do something.

Every pod is asked directly, all at once and with a short patience, because what counts is what answers now.  What this
module does not do: decide anything from the answers (`looks`), or remember them.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from lakehouse.core.errors import (
    Busy,
    Conflict,
    Denied,
    Invalid,
    LakehouseError,
    NotFound,
    Outcome,
    Unavailable,
)
from lakehouse_operator import jobs, names
from lakehouse_operator.kube import POD
from lakehouse_operator.mounts import Mounts
from lakehouse_operator.parts import Parts
from lakehouse_operator.peers import Peers

STATE_S = 2.0
"""A pod that takes longer to say how it is serves nobody well."""
HUNG_S = 8.0
HUNG_STATE_S = 0.4
"""The same for a pod that hung within the last `HUNG_S`: all indexes of a node that has died are told of in time."""
CALL_S = 30.0
CONNECTIONS_MAX = 1_024
"""Above any number of pods that hang at once: who waits for a connection would count as one of them."""
KEPT_MAX = 8
"""Connections kept open: most pods are asked so seldom that one would only be in the way."""
DETAIL_MAX = 500


@dataclass(frozen=True, slots=True)
class ShardState:
    """One shard in a pod's memory."""

    shard: int
    items: int
    position: int
    damage: str = ""


@dataclass(frozen=True, slots=True)
class IndexState:
    """What a pod says of the index."""

    life: str
    """The uuid, hex."""
    record: int
    ef_search: int
    serving: bool
    detail: str = ""
    shards: tuple[ShardState, ...] = ()


@dataclass(frozen=True, slots=True)
class PodState:
    """One pod, as the cluster and itself tell."""

    name: str
    shard: int
    address: str = ""
    """Empty: it has none yet, or is about to go."""
    ready: bool = False
    """The cluster sends requests to it."""
    answers: bool = False
    index: IndexState | None = None
    """None: it does not answer, or has nothing of the index."""
    detail: str = field(default="", compare=False)
    """Why it does not serve."""
    cut_off: str = ""
    """Why it does not reach its store; empty when it does, or does not answer."""


def state_of(said: Mapping[str, Any], index: str) -> IndexState | None:
    """What `GET /internal/state` says of one index.  Raises `KeyError`, `TypeError`, `ValueError` for what is none."""
    for one in said["indexes"]:
        if one["name"] == index:
            shards = tuple(
                ShardState(
                    int(part["shard"]), int(part["items"]), int(part["position"]), part.get("damage") or ""
                )
                for part in one["shards"]
            )
            serving = bool(one["serving"]) and bool(said["ready"])
            detail = one.get("detail") or said.get("detail") or ""
            return IndexState(
                one["life"], int(one["record"]), int(one["ef_search"]), serving, str(detail), shards
            )
    return None


def cut_off(said: Mapping[str, Any]) -> str:
    """Why the pod that says so does not reach its store; a release before this one does not tell."""
    return str((said.get("store") or {}).get("trouble") or "")[:DETAIL_MAX]


class Pods:
    """Asks the pods of indexes."""

    def __init__(self, parts: Parts, peers: Peers, mounts: Mounts | None = None) -> None:
        """`mounts` is told of pods that refuse the key; None where nobody has it as a file."""
        self._parts = parts
        self._peers = peers
        self._mounts = mounts
        self._client = httpx.AsyncClient(
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=KEPT_MAX),
            trust_env=False,
        )
        self._hung: dict[str, float] = {}
        """By address, when a pod last did not answer in time, on the monotonic clock."""

    async def close(self) -> None:
        await self._client.aclose()

    def known(self, namespace: str, index: str) -> list[PodState]:
        """The pods there are, by name, without asking them; those that are to go are left out."""
        bodies = self._parts.cache.children(POD, namespace, names.selector(index))
        found = [_seen(body) for body in bodies if not body["metadata"].get("deletionTimestamp")]
        return sorted((one for one in found if one is not None), key=lambda one: one.name)

    async def states(self, namespace: str, index: str) -> list[PodState]:
        """The pods there are, each with what it says now.  Raises nothing that a pod does."""
        return list(
            await asyncio.gather(
                *(self._asked(namespace, index, one) for one in self.known(namespace, index))
            )
        )

    async def _asked(self, namespace: str, index: str, pod: PodState) -> PodState:
        if not pod.address:
            return pod
        patience_s = self._patience_s(pod.address)
        try:
            said = await self.call(namespace, pod, "GET", "/internal/state", timeout_s=patience_s)
            found, trouble = state_of(said, index), cut_off(said)
        except LakehouseError as error:
            if isinstance(error.__cause__, (TimeoutError, httpx.TimeoutException)):
                self._hung.setdefault(pod.address, self._parts.runtime.monotonic())
            detail = pod.detail or _told(error)
            return replace(pod, answers=False, detail=detail[:DETAIL_MAX])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return replace(pod, answers=False, detail=f"its state cannot be read: {error!r}"[:DETAIL_MAX])
        detail = "" if found is not None and found.serving else str(said.get("detail") or "")
        detail = detail or (found.detail if found else "") or pod.detail
        return replace(pod, answers=True, index=found, cut_off=trouble, detail=detail[:DETAIL_MAX])

    def _patience_s(self, address: str) -> float:
        """For an answer; the whole of it again `HUNG_S` after a pod hung."""
        now_s = self._parts.runtime.monotonic()
        self._hung = {one: since_s for one, since_s in self._hung.items() if now_s - since_s < HUNG_S}
        return HUNG_STATE_S if address in self._hung else STATE_S

    async def each(
        self,
        namespace: str,
        pods: Sequence[PodState],
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout_s: float = CALL_S,
    ) -> list[LakehouseError]:
        """Ask every one of `pods` that has an address for the same; what went wrong."""
        asked = [
            self.call(namespace, pod, method, path, body, timeout_s=timeout_s)
            for pod in pods
            if pod.address and pod.answers
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for one in answers:
            if isinstance(one, BaseException) and not isinstance(one, LakehouseError):
                raise one
        return [one for one in answers if isinstance(one, LakehouseError)]

    async def call(
        self,
        namespace: str,
        pod: PodState,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout_s: float = CALL_S,
    ) -> Any:
        """A pod's answer, JSON.  Raises what its error says: `Conflict`, `NotFound`, `Invalid`, `Unavailable`, …"""
        key = await self._peers.key(namespace)
        host = f"[{pod.address}]" if ":" in pod.address else pod.address
        url = f"http://{host}:{names.PORT}{path}"
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._client.request(
                    method, url, json=body, headers={"authorization": f"Bearer {key}"}, timeout=timeout_s
                )
        except (TimeoutError, httpx.TransportError) as error:
            why = str(error) or type(error).__name__
            sent = not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
            raise Unavailable(
                f"the pod does not answer: {why}. pod=`{pod.name}`",
                outcome=Outcome.UNKNOWN if sent and method != "GET" else Outcome.NOT_COMMITTED,
            ) from error
        if response.status_code == httpx.codes.UNAUTHORIZED:
            self._peers.refused(namespace)
            if self._mounts is not None:
                self._mounts.doubt(namespace, names.PEER_KEY_SECRET, pod.name)
        if not response.is_success:
            raise _error(response, pod)
        return response.json()


def _told(error: LakehouseError) -> str:
    """Why a pod does not say how it is, and what becomes of one that has not read a changed key yet."""
    if not isinstance(error, Denied):
        return error.message
    return f"it does not know the key in the Secret {names.PEER_KEY_SECRET} yet, which it reads within 90 s of a change"


def _error(response: httpx.Response, pod: PodState) -> LakehouseError:
    try:
        detail = str(response.json().get("detail", ""))
    except (ValueError, AttributeError):
        detail = response.text[:DETAIL_MAX]
    message, code = f"{detail or response.reason_phrase}. pod=`{pod.name}`", response.status_code
    plain: Mapping[int, type[LakehouseError]] = {404: NotFound, 409: Conflict, 429: Busy}
    if code in plain:
        return plain[code](message)
    if code in (401, 403):
        return Denied(message, authenticated=code == httpx.codes.FORBIDDEN)
    if response.is_client_error:
        return Invalid(message)
    committed = "not_committed" not in response.text
    return Unavailable(message, outcome=Outcome.UNKNOWN if committed else Outcome.NOT_COMMITTED)


def _seen(body: Mapping[str, Any]) -> PodState | None:
    metadata, status = body["metadata"], body.get("status") or {}
    shard = (metadata.get("labels") or {}).get(names.SHARD_LABEL, "")
    if not shard.isdigit() or status.get("phase") in ("Succeeded", "Failed"):
        return None
    running = status.get("phase") == "Running"
    conditions = {one["type"]: one["status"] for one in status.get("conditions") or ()}
    return PodState(
        name=metadata["name"],
        shard=int(shard),
        address=str(status.get("podIP") or "") if running else "",
        ready=conditions.get("Ready") == "True",
        detail=jobs.waiting_for(body),
    )
