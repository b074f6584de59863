"""A client that creates, fills and drops the same few indexes over and over, and what may be left of each.

A name is reused at once, so an index that replayed an earlier life's log would show that life's items.
"""

import random
from collections.abc import Mapping
from typing import Any

import httpx

Contents = frozenset[str] | None
"""The ids in an index, None when there is no index."""
NAMES = ("life-a", "life-b")
STATES_MAX = 64


class Lives:
    """Every state that each index may be in, given what was answered."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._items = 0
        self.possible: dict[str, set[Contents]] = {name: {None} for name in NAMES}
        self._created: set[str] = set()
        """Names whose creation was acknowledged, so their file must lie where the old system's tools look."""

    async def step(self, http: httpx.AsyncClient) -> bool:
        """One request, chosen by chance; whether it was answered."""
        name = self._rng.choice([name for name in NAMES if len(self.possible[name]) < STATES_MAX])
        kind = self._rng.random()
        if kind < 0.35:
            return await self._create(http, name)
        if kind < 0.75:
            return await self._add(http, name)
        return await self._drop(http, name)

    async def check(self, http: httpx.AsyncClient) -> None:
        """What is there now is one of the possible states, in every way of asking."""
        listed = (await http.get("/v1/vectors/index")).json()["names"]
        for name in NAMES:
            state = await self._observed(http, name)
            assert state in self.possible[name], f"{name} holds {state}, possible: {self.possible[name]}"
            assert (state is not None) == (name in listed), f"{name}: {state}, listed: {listed}"
            copy = await http.get(f"/v1/storage/get/_vectors/{name}.lhv1")
            if state is None:
                assert copy.status_code == 404, f"{name} is gone, its file is not"
            elif name in self._created:
                assert copy.status_code == 200, f"{name} was created, and its file is not there"
            self.possible[name] = {state}

    async def _observed(self, http: httpx.AsyncClient, name: str) -> Contents:
        # A write first, as it fences: nothing of an earlier process may still be on its way.
        await self._post(http, f"/{name}/delete", {"ids": ["nobody"]})
        found = await self._post(http, f"/{name}/scroll", {"limit": 1_000, "include": []})
        assert found is not None
        if found.status_code == 404:
            return None
        assert found.status_code == 200, found.text
        return frozenset(item["id"] for item in found.json()["items"])

    async def _create(self, http: httpx.AsyncClient, name: str) -> bool:
        answer = await self._post(http, "", {"name": name, "dimension": 2})
        before = self.possible[name]
        match _status(answer):
            case 201:
                self._become(name, {frozenset[str]()} if None in before else set(), "created")
                self._created.add(name)
            case 409:
                self._become(name, before - {None}, "there already")
            case 503:
                self._become(name, before | ({frozenset[str]()} if None in before else set()), "in doubt")
        return answer is not None

    async def _add(self, http: httpx.AsyncClient, name: str) -> bool:
        self._items += 2
        batch = frozenset({f"i{self._items}", f"i{self._items + 1}"})
        items = [{"id": item_id, "vector": [1.0, 2.0]} for item_id in batch]
        answer = await self._post(http, f"/{name}/add", {"items": items})
        before = self.possible[name]
        grown: set[Contents] = {state | batch for state in before if state is not None}
        match _status(answer):
            case 200:
                self._become(name, grown, "added to")
            case 404:
                self._become(name, before & {None}, "missing")
            case 503:
                self._become(name, before | grown, "in doubt")
        return answer is not None

    async def _drop(self, http: httpx.AsyncClient, name: str) -> bool:
        self._created.discard(name)
        try:
            answer = await http.delete(f"/v1/vectors/index/{name}")
        except httpx.TransportError:
            answer = None
        before = self.possible[name]
        match _status(answer):
            case 204:
                self._become(name, {None} if before - {None} else set(), "dropped")
            case 404:
                self._become(name, before & {None}, "missing")
            case 503:
                self._become(name, before | {None}, "in doubt")
        return answer is not None

    def _become(self, name: str, states: set[Contents], what: str) -> None:
        assert states, f"{name} was {what}, but could only be {self.possible[name]}"
        self.possible[name] = states

    async def _post(
        self, http: httpx.AsyncClient, path: str, body: Mapping[str, Any]
    ) -> httpx.Response | None:
        try:
            return await http.post(f"/v1/vectors/index{path}", json=body)
        except httpx.TransportError:
            return None


def _status(answer: httpx.Response | None) -> int:
    """No answer counts as 503: it may have happened."""
    if answer is None:
        return 503
    assert answer.status_code in (200, 201, 204, 404, 409, 503), answer.text
    return answer.status_code
