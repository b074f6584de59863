"""The routing table in a ConfigMap: followed through whatever an API server and the network do."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kube_api_server import KubeApiServer
from lakehouse.core.errors import Invalid
from lakehouse.runtime import SystemRuntime
from lakehouse.server import routing_watch
from lakehouse.server.config_map import ServiceAccount
from lakehouse.server.routing_watch import Routes

WHERE = "configmap:shop/lakehouse-routes"
SEEN_S_MAX = 120.0


def table(**ready: bool) -> str:
    indexes = {
        name: {
            "url": f"http://{name}.shop.svc:3110",
            "resource": f"VectorIndex/shop/{name}",
            "ready": is_ready,
        }
        for name, is_ready in ready.items()
    }
    return json.dumps({"version": 1, "indexes": indexes})


def config_map(version: str, text: str | None) -> dict[str, object]:
    data = {} if text is None else {"data": {"routes.json": text}}
    return {"metadata": {"name": "lakehouse-routes", "resourceVersion": version}, **data}


@dataclass
class ApiServer:
    """A server that speaks the watch protocol: what is listed, and for each watch the lines it answers with."""

    listed: list[object]
    """Answers to listings, the last one for all that follow; a number is a status."""
    watches: list[list[object]] = field(default_factory=list)
    """Events of each watch, which ends after them; when none is left, a watch stays open and silent."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path with query, and bearer token, of every request."""
    on_watch: Callable[[], object] = lambda: None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            token = next(
                (line[22:] for line in head.split("\r\n") if line.lower().startswith("authorization")), ""
            )
            self.asked.append((path, token))
            if "watch=1" not in path:
                answer = self.listed.pop(0) if len(self.listed) > 1 else self.listed[0]
                status = answer if isinstance(answer, int) else 200
                body = json.dumps({"message": "no"} if isinstance(answer, int) else answer).encode()
                writer.write(
                    f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
                    + body
                )
            else:
                self.on_watch()
                writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
                if not self.watches:
                    await reader.read()
                for event in self.watches.pop(0):
                    writer.write(json.dumps(event).encode() + b"\n")
            await writer.drain()
        writer.close()

    @property
    def watched_from(self) -> list[str]:
        return [
            path.split("resourceVersion=")[1].split("&")[0] for path, _ in self.asked if "watch=1" in path
        ]


class Impatient(SystemRuntime):
    """Pauses take next to no time."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def following(api: ApiServer, folder: Path) -> AsyncIterator[Routes]:
    (folder / "token").write_text("first\n")
    runtime = Impatient()
    server = await asyncio.start_server(api.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    routes = routing_watch.opened(WHERE, runtime, ServiceAccount(url, folder))
    routes.start()
    try:
        yield routes
    finally:
        await routes.close()
        server.close()
        runtime.close()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(SEEN_S_MAX):
        while not what():
            await asyncio.sleep(0.01)


def listing(version: str, *items: dict[str, object]) -> dict[str, object]:
    return {"metadata": {"resourceVersion": version}, "items": list(items)}


def ready_of(routes: Routes, name: str) -> bool | None:
    place = None if routes.table is None else routes.table.indexes.get(name)
    return None if place is None else place.ready


async def test_it_is_listed_once_then_watched_from_there(tmp_path: Path) -> None:
    api = ApiServer(
        [listing("7", config_map("5", table(products=False)))],
        [
            [{"type": "MODIFIED", "object": config_map("9", table(products=True))}],
            [{"type": "BOOKMARK", "object": config_map("12", None)}],
        ],
    )
    async with following(api, tmp_path) as routes:
        await until(lambda: len(api.watched_from) == 3)
        assert ready_of(routes, "products") is True
        assert (routes.ready, routes.detail) == (True, "ok")
    assert api.watched_from == ["7", "9", "12"]
    assert (
        api.asked[0][0] == "/api/v1/namespaces/shop/configmaps?fieldSelector=metadata.name%3Dlakehouse-routes"
    )


async def test_a_watch_that_is_too_old_begins_anew_with_a_listing(tmp_path: Path) -> None:
    gone: object = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}
    api = ApiServer(
        [
            listing("1", config_map("1", table(products=False))),
            listing("50", config_map("40", table(products=True))),
        ],
        [[gone]],
    )
    async with following(api, tmp_path) as routes:
        await until(lambda: api.watched_from == ["1", "50"])
        assert ready_of(routes, "products") is True


@pytest.mark.parametrize(
    "trouble",
    [
        [{"type": "MODIFIED", "object": config_map("9", "{")}],
        [{"type": "MODIFIED", "object": config_map("9", None)}],
        [{"type": "DELETED", "object": config_map("9", table(products=True))}],
        [{"type": "ERROR", "object": {"code": 500, "message": "etcd is away"}}],
        [{"neither": "event"}],
    ],
    ids=["unreadable", "emptied", "deleted", "error", "garbage"],
)
async def test_the_last_table_holds_whatever_comes(tmp_path: Path, trouble: list[object]) -> None:
    api = ApiServer([listing("1", config_map("1", table(products=True))), 503], [trouble])
    async with following(api, tmp_path) as routes:
        await until(lambda: routes.ready and routes.detail != "ok")
        assert ready_of(routes, "products") is True


async def test_without_a_table_yet_nothing_is_known_and_it_is_said_why(tmp_path: Path) -> None:
    later: list[object] = [{"type": "ADDED", "object": config_map("9", table(products=True))}]
    api = ApiServer([403, 500, listing("1")], [[], later])
    async with following(api, tmp_path) as routes:
        await until(lambda: "403" in routes.detail or routes.ready)
        await until(lambda: routes.ready)
        assert ready_of(routes, "products") is True
        assert ready_of(routes, "other") is None
    assert len(api.asked) >= 5


async def test_the_token_is_read_again_for_every_call(tmp_path: Path) -> None:
    """The kubelet replaces it in the file; who keeps the old one is refused an hour later."""
    api = ApiServer([listing("1", config_map("1", table()))], [[], []])
    api.on_watch = lambda: (tmp_path / "token").write_text("second")
    async with following(api, tmp_path):
        await until(lambda: len(api.asked) == 4)
    assert [token for _, token in api.asked] == ["first", "first", "second", "second"]


@pytest.mark.parametrize("where", ["configmap:", "configmap:shop", "configmap:shop/", "configmap:a/b/c"])
def test_a_config_map_has_a_namespace_and_a_name(where: str, tmp_path: Path) -> None:
    runtime = SystemRuntime()
    with pytest.raises(Invalid, match="LAKEHOUSE_ROUTES"):
        routing_watch.opened(where, runtime, ServiceAccount("http://127.0.0.1:1", tmp_path))
    runtime.close()


def test_outside_a_cluster_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    runtime = SystemRuntime()
    with pytest.raises(Invalid, match="KUBERNETES_SERVICE_HOST"):
        routing_watch.opened(WHERE, runtime)
    runtime.close()


@pytest.mark.parametrize(
    ("host", "url"), [("10.0.0.1", "https://10.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_the_server_is_where_every_pod_is_told(monkeypatch: pytest.MonkeyPatch, host: str, url: str) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    assert ServiceAccount.of_pod().url == url


async def test_a_real_api_server_is_followed_with_two_rights_on_one_name(
    kube_api: KubeApiServer, tmp_path: Path
) -> None:
    """Refused, absent, added, changed, away, changed again, deleted; by a user who may only list and watch it."""
    shop = ("--namespace", "watched")
    await asyncio.to_thread(kube_api.kubectl, "create", "namespace", "watched")
    login = kube_api.login("stranger")
    (tmp_path / "token").write_text(str(login.token))
    (tmp_path / "ca.crt").write_bytes(kube_api.certificate.read_bytes())
    runtime = Impatient()
    where = "configmap:watched/lakehouse-routes"
    routes = routing_watch.opened(where, runtime, ServiceAccount(kube_api.url, tmp_path))
    routes.start()

    async def put(text: str) -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", **config_map("", text)}
        body["metadata"] = {"name": "lakehouse-routes"}
        await asyncio.to_thread(kube_api.kubectl, "apply", *shop, "-f", "-", document=json.dumps(body))

    try:
        await until(lambda: "403" in routes.detail)
        named = ("--resource=configmaps", "--resource-name=lakehouse-routes", "--verb=list,watch")
        await asyncio.to_thread(kube_api.kubectl, "create", "role", "routes", *shop, *named)
        bound = ("--role=routes", "--user=stranger")
        await asyncio.to_thread(kube_api.kubectl, "create", "rolebinding", "routes", *shop, *bound)
        await until(lambda: "no such ConfigMap yet" in routes.detail)
        assert not routes.ready
        await put(table(products=False))
        await until(lambda: ready_of(routes, "products") is False)
        await put(table(products=True))
        await until(lambda: ready_of(routes, "products") is True)
        kube_api.kill()
        await until(lambda: routes.detail != "ok")
        assert ready_of(routes, "products") is True
        await asyncio.to_thread(kube_api.start)
        await put(table(products=False))
        await until(lambda: ready_of(routes, "products") is False)
        await asyncio.to_thread(kube_api.kubectl, "delete", "configmap", "lakehouse-routes", *shop)
        await until(lambda: "gone" in routes.detail)
        assert ready_of(routes, "products") is False
    finally:
        await routes.close()
        runtime.close()
