"""The calls on objects by key."""

from urllib.parse import quote

from lakehouse.client.wire import Call, Fresh, Request, json_of, nothing


def request(method: str, verb: str, key: str, content: bytes | None = None) -> Request:
    """A request for one object; slashes of its key separate segments."""
    path = f"/v1/storage/{verb}/{'/'.join(quote(part, safe='') for part in key.split('/'))}"
    return Request(method, path, content=content)


def storage_put(fresh: Fresh, key: str, data: bytes) -> Call[None]:
    """Write or overwrite an object."""
    return Call(request("PUT", "put", key, data), nothing)


def storage_get(fresh: Fresh, key: str) -> Call[bytes]:
    """An object's bytes."""
    return Call(request("GET", "get", key), lambda answer: answer.content)


def storage_delete(fresh: Fresh, key: str) -> Call[None]:
    """Remove an object; also well when it is missing."""
    return Call(request("DELETE", "delete", key), nothing)


def storage_list(fresh: Fresh, prefix: str = "") -> Call[tuple[tuple[str, int], ...]]:
    """(key, bytes) of every object under `prefix`."""
    return Call(
        Request("GET", "/v1/storage/list", params={"prefix": prefix}),
        lambda answer: tuple((entry["Key"], entry["Size"]) for entry in json_of(answer)["objects"]),
    )
