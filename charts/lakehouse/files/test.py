"""`helm test`: everything an application does, once, through the gateway; then an index that is declared.

Leaves nothing behind.  Exits with the first thing that was not as it should be.
"""

import http.client
import json
import math
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

URL = os.environ["URL"]
KEY = os.environ.get("KEY", "")
NAMESPACE = os.environ["NAMESPACE"]
GATEWAY_NAMESPACE = os.environ["GATEWAY_NAMESPACE"]
DEADLINE = time.monotonic() + float(os.environ["SECONDS"]) - 30
TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount")
NAME = f"helm-test-{time.time_ns() // 1_000_000:x}"
ITEMS = 200
DIMENSION = 8
GROUP = f"/apis/lakehouse.agentview.dev/v1alpha1/namespaces/{NAMESPACE}"


def say(text: str) -> None:
    print(text, flush=True)


def check(holds: bool, text: str) -> None:
    if not holds:
        raise SystemExit(f"FAILED: {text}")
    say(f"ok: {text}")


def call(
    method: str, path: str, body: Any = None, *, media: str = "application/json", url: str = URL
) -> tuple[int, Any]:
    """Ask the gateway, or who else is at `url`.  503, and connections that fail, are tried again until the deadline."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    headers = {"Content-Type": media} | ({"Authorization": f"Bearer {KEY}"} if KEY else {})
    return asked(urllib.request.Request(url + path, data, headers, method=method), None)


def kubernetes(method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Ask the API server, as this pod's ServiceAccount."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    headers = {
        "Authorization": f"Bearer {(TOKEN / 'token').read_text()}",
        "Content-Type": "application/json",
    }
    data = None if body is None else json.dumps(body).encode()
    trusted = ssl.create_default_context(cafile=str(TOKEN / "ca.crt"))
    return asked(
        urllib.request.Request(f"https://{host}:{port}{path}", data, headers, method=method), trusted
    )


def asked(request: urllib.request.Request, trusted: ssl.SSLContext | None) -> tuple[int, Any]:
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30, context=trusted) as answer:
                return answer.status, decoded(answer.read())
        except urllib.error.HTTPError as error:
            answered = error.code, decoded(error.read())
            if error.code not in (429, 503) or time.monotonic() > DEADLINE:
                return answered
            why = str(answered[1])
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > DEADLINE:
                raise SystemExit(f"FAILED: {request.full_url} does not answer: {error}") from error
            why = str(error)
        say(f"waiting: {request.method} {request.full_url}: {why}")
        time.sleep(1)


def decoded(data: bytes) -> Any:
    try:
        return json.loads(data) if data else None
    except ValueError:
        return data.decode(errors="replace")


def vector(number: int) -> list[float]:
    return [round(math.sin(number * (place + 1)) + 0.01 * place, 6) for place in range(DIMENSION)]


def searched(name: str, number: int, url: str = URL) -> None:
    asked = {"vector": vector(number), "k": 3}
    status, found = call("POST", f"/v1/vectors/index/{name}/search", asked, url=url)
    check(
        status == 200 and found["results"][0]["id"] == f"item-{number}",
        f"{name} finds item-{number} ({status})",
    )


def filled(name: str, url: str = URL) -> None:
    items = [{"id": f"item-{n}", "vector": vector(n), "metadata": {"number": n}} for n in range(ITEMS)]
    status, answer = call("POST", f"/v1/vectors/index/{name}/add", {"items": items}, url=url)
    check(status == 200 and answer["length"] == ITEMS, f"{name} takes {ITEMS} items ({status})")


def over_http() -> None:
    """An index of the pool, a dataset, and SQL over it."""
    status, _ = call("POST", "/v1/vectors/index", {"name": NAME, "dimension": DIMENSION})
    check(status == 201, f"an index is made over HTTP ({status})")
    filled(NAME)
    searched(NAME, 7)
    body = {"vector": vector(3), "k": 5, "filter": "number >= 100"}
    status, found = call("POST", f"/v1/vectors/index/{NAME}/search", body)
    filtered = status == 200 and len(found["results"]) == 5
    check(filtered and all(one["metadata"]["number"] >= 100 for one in found["results"]), "a filter holds")
    status, _ = call("POST", f"/v1/vectors/index/{NAME}/snapshot")
    check(status == 200, f"a snapshot is taken ({status})")
    rows = b"id,price\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(100))
    table = NAME.replace("-", "_")
    status, answer = call("POST", f"/v1/ingest?name={table}", rows, media="text/csv")
    check(status == 200, f"a file is ingested ({status}: {'' if status == 200 else answer})")
    status, answer = call("POST", "/v1/sql", {"sql": f"SELECT count(*), max(price) FROM {table}"})
    check(status == 200 and answer["rows"] == [[100, 9801]], f"SQL counts its rows ({status}: {answer})")


def declared() -> None:
    """A VectorIndex, a snapshot of it, and another one restored from that."""
    first, snapshot, second = f"{NAME}-a", f"{NAME}-s", f"{NAME}-b"
    spec: dict[str, Any] = {"dimension": DIMENSION, "deletionPolicy": "Delete"}
    make("VectorIndex", first, spec)
    wait("VectorIndex", first, "Ready")
    filled(first, url_of(first))
    searched(first, 11, url_of(first))
    make("IndexSnapshot", snapshot, {"indexRef": {"name": first}, "deletionPolicy": "Delete"})
    wait("IndexSnapshot", snapshot, "Complete")
    make("VectorIndex", second, spec | {"bootstrap": {"snapshot": {"name": snapshot}}})
    wait("VectorIndex", second, "Ready")
    searched(second, 11, url_of(second))


def url_of(name: str) -> str:
    """Who serves a VectorIndex: the gateway those of its own namespace, their own Service any other."""
    return URL if NAMESPACE == GATEWAY_NAMESPACE else f"http://{name}.{NAMESPACE}.svc:3110"


def make(kind: str, name: str, spec: dict[str, Any]) -> None:
    body = {
        "apiVersion": "lakehouse.agentview.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }
    status, answer = kubernetes("POST", f"{GROUP}/{plural(kind)}", body)
    check(status == 201, f"{kind}/{name} is declared ({status}: {'' if status == 201 else answer})")


def wait(kind: str, name: str, condition: str) -> None:
    shown = ""
    while True:
        _, body = kubernetes("GET", f"{GROUP}/{plural(kind)}/{name}")
        found = {one["type"]: one for one in (body.get("status") or {}).get("conditions", ())}
        it = found.get(condition, {})
        if it.get("status") == "True":
            say(f"ok: {kind}/{name} is {condition}")
            return
        text = f"{it.get('reason', 'not seen yet')} {it.get('message', '')}"
        if time.monotonic() > DEADLINE:
            raise SystemExit(f"FAILED: {kind}/{name} is not {condition}: {text}")
        if text != shown:
            say(f"waiting for {kind}/{name} {condition}: {text}")
            shown = text
        time.sleep(1)


def plural(kind: str) -> str:
    return {"VectorIndex": "vectorindexes", "IndexSnapshot": "indexsnapshots"}[kind]


def clean() -> None:
    """What is missing already is well."""
    call("DELETE", f"/v1/vectors/index/{NAME}")
    call("DELETE", f"/v1/catalog/dataset/{NAME.replace('-', '_')}")
    if os.environ["DECLARED"] == "true":
        kubernetes("DELETE", f"{GROUP}/indexsnapshots/{NAME}-s")
        for end in ("a", "b"):
            kubernetes("DELETE", f"{GROUP}/vectorindexes/{NAME}-{end}")


def main() -> None:
    status, health = call("GET", "/v1/health")
    check(status == 200, f"the gateway answers ({status}: {health})")
    try:
        over_http()
        if os.environ["DECLARED"] == "true":
            declared()
    finally:
        clean()
    say("everything works")


if __name__ == "__main__":
    sys.exit(main())
