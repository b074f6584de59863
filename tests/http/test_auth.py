"""Every route without a key, and with a read, a write and an admin key, answers as its right says."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from lakehouse.server.auth import new_key
from lakehouse.server.routes import ROUTES, VERSION_PREFIX, Route
from lakehouse.settings import Right
from live_server import LiveServer, serving

KEYS = {right: new_key() for right in Right}
OLD_ADMIN = new_key()
CONFIGURED = orjson.dumps(
    [{"name": right, "right": right, "sha256": digest} for right, (_, digest) in KEYS.items()]
    + [{"name": "before", "right": "admin", "sha256": OLD_ADMIN[1]}]
).decode()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    home: Path = tmp_path_factory.mktemp("guarded")
    with serving("memory:", home / "log", env={"LAKEHOUSE_KEYS": CONFIGURED}) as server:
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def ask(server: LiveServer, route: Route, headers: dict[str, str]) -> httpx.Response:
    path = route.path.replace("{key...}", "some/key").replace("{name}", "missing").replace("{id}", "x")
    path = path.replace("{dataset}", "missing")
    prefix = "" if route.role is None else VERSION_PREFIX
    return httpx.request(route.method, f"{server.url}{prefix}{path}", headers=headers, timeout=60)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
@pytest.mark.parametrize("held", [None, *Right], ids=str)
def test_a_route_answers_as_its_right_says(guarded: LiveServer, route: Route, held: Right | None) -> None:
    status = ask(guarded, route, bearer(KEYS[held][0]) if held else {}).status_code
    if route.right is None:
        assert status == 200
    elif held is None:
        assert status == 401
    elif held.allows(route.right):
        assert status not in (401, 403, 500)
    else:
        assert status == 403


def test_only_health_routes_are_open() -> None:
    assert {route.path for route in ROUTES if route.right is None} == {"/health", "/livez", "/readyz"}
    changing = {
        route.name for route in ROUTES if route.right is Right.READ and route.method not in ("GET", "POST")
    }
    assert changing == {"query.cancel"}, "whoever may ask a query may end it"


def test_a_query_belongs_to_the_key_that_started_it(guarded: LiveServer) -> None:
    def call(held: Right, method: str, path: str, **body: object) -> httpx.Response:
        url, headers = f"{guarded.url}/v1/sql{path}", bearer(KEYS[held][0])
        return httpx.request(method, url, headers=headers, json=body or None, timeout=60)

    def listed(held: Right) -> set[str]:
        return {query["id"] for query in call(held, "GET", "").json()["queries"]}

    asked = {held: call(held, "POST", "", sql="SELECT 1 AS one", wait_s=20) for held in Right}
    ids = {held: answer.headers["lakehouse-query-id"] for held, answer in asked.items()}
    assert ids[Right.READ] in listed(Right.READ)
    assert not {ids[Right.WRITE], ids[Right.ADMIN]} & listed(Right.READ)
    assert set(ids.values()) <= listed(Right.ADMIN)
    for method in ("GET", "DELETE"):
        others = call(Right.READ, method, f"/{ids[Right.WRITE]}")
        nobodys = call(Right.READ, method, "/" + "0" * 32)
        assert others.status_code == nobodys.status_code == 404
        assert others.json()["detail"].partition(" id=")[0] == nobodys.json()["detail"].partition(" id=")[0]
    assert call(Right.WRITE, "GET", f"/{ids[Right.WRITE]}").json()["rows"] == [[1]]
    assert call(Right.READ, "DELETE", f"/{ids[Right.READ]}").status_code == 204
    assert call(Right.ADMIN, "DELETE", f"/{ids[Right.WRITE]}").status_code == 204
    assert call(Right.WRITE, "GET", f"/{ids[Right.WRITE]}").status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {KEYS[Right.ADMIN][0]}"},
        {"authorization": KEYS[Right.ADMIN][0]},
        bearer(KEYS[Right.ADMIN][1]),
        bearer(KEYS[Right.ADMIN][0][:-1]),
        bearer("lh_" + "A" * 43),
    ],
)
def test_without_a_valid_key_the_answer_is_401_with_a_challenge(
    guarded: LiveServer, headers: dict[str, str]
) -> None:
    answer = httpx.get(f"{guarded.url}/v1/vectors/index", headers=headers, timeout=60)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["status"] == 401


def test_several_keys_of_one_right_are_live_at_once(guarded: LiveServer) -> None:
    for key in (KEYS[Right.ADMIN][0], OLD_ADMIN[0]):
        assert httpx.get(f"{guarded.url}/metrics", headers=bearer(key), timeout=60).status_code == 200


@pytest.mark.parametrize("prefix", ["_vectors", "_catalog", "_resources"])
def test_reserved_prefixes_are_read_by_all_and_written_by_admins(guarded: LiveServer, prefix: str) -> None:
    url = f"{guarded.url}/v1/storage"
    statuses = {}
    for right, (key, _) in KEYS.items():
        put = httpx.put(f"{url}/put/{prefix}/x-{right}", content=b"x", headers=bearer(key), timeout=60)
        got = httpx.get(f"{url}/get/{prefix}/x-{right}", headers=bearer(key), timeout=60)
        deleted = httpx.delete(f"{url}/delete/{prefix}/x-{right}", headers=bearer(key), timeout=60)
        statuses[right] = (put.status_code, got.status_code, deleted.status_code)
    assert statuses == {
        Right.READ: (403, 404, 403),
        Right.WRITE: (403, 404, 403),
        Right.ADMIN: (200, 200, 204),
    }
    write = bearer(KEYS[Right.WRITE][0])
    assert httpx.put(f"{url}/put/{prefix}-not/x", content=b"x", headers=write, timeout=60).status_code == 200


def test_a_refused_write_changes_nothing(guarded: LiveServer) -> None:
    read, admin = (bearer(KEYS[right][0]) for right in (Right.READ, Right.ADMIN))
    body = {"name": "refused", "dimension": 2}
    assert (
        httpx.post(f"{guarded.url}/v1/vectors/index", json=body, headers=read, timeout=60).status_code == 403
    )
    assert httpx.get(f"{guarded.url}/v1/vectors/index/refused", headers=admin, timeout=60).status_code == 404
