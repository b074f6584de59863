"""Waiting long for a pod's answer, for as long as the pod answers otherwise.

When a node dies nobody ends the connections to its pods: what they owe would be waited for until it is overdue, and
told of as under way.  What this module does not do: ask again; the next turn finds another pod.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from lakehouse.core.errors import LakehouseError, Outcome, Unavailable
from lakehouse.runtime import Runtime
from lakehouse_operator.pods import STATE_S, Pods, PodState

ASK_S = 3.0
"""Between an answer to how the pod is and the next question."""
SILENCES_MAX = 3
"""In a row, and the pod counts as gone: 15 s at most, with `ASK_S` and `STATE_S`."""


async def attended(
    runtime: Runtime, pods: Pods, namespace: str, pod: PodState, asked: Coroutine[Any, Any, Any]
) -> Any:
    """What `asked`, a call of that pod, returns.

    Raises what it does, and `Unavailable` (what was asked for may have happened) when the pod fell silent; the call is
    cancelled then.
    """
    answer = runtime.spawn(asked, name=f"attended {pod.name}")
    silences = 0
    try:
        while silences < SILENCES_MAX:
            await asyncio.wait((answer,), timeout=ASK_S)
            if answer.done():
                return answer.result()
            silences = 0 if await _answers(pods, namespace, pod) else silences + 1
    finally:
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
    raise Unavailable(
        f"the pod has stopped answering in the middle of work. pod=`{pod.name}`", outcome=Outcome.UNKNOWN
    )


async def _answers(pods: Pods, namespace: str, pod: PodState) -> bool:
    try:
        await pods.call(namespace, pod, "GET", "/internal/state", timeout_s=STATE_S)
    except LakehouseError:
        return False
    return True
