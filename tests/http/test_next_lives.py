"""Two processes on one bucket: the first read after a life began elsewhere finds it, whatever it reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from live_server import serving
from minio_server import MinioServer

PATH = "/v1/vectors/index/things"
READS: dict[str, tuple[Callable[[httpx.Client], httpx.Response], Callable[[Any], int]]] = {
    "item": (lambda http: http.get(f"{PATH}/items/a"), lambda body: body["metadata"]["life"]),
    "scroll": (lambda http: http.post(f"{PATH}/scroll", json={}), lambda body: life_of(body["items"])),
    "search": (
        lambda http: http.post(f"{PATH}/search", json={"vector": [1.0, 0.0], "k": 1}),
        lambda body: life_of(body["results"]),
    ),
    "search by id": (
        lambda http: http.post(f"{PATH}/search", json={"id": "b", "k": 1}),
        lambda body: life_of(body["results"]),
    ),
    "count": (
        lambda http: http.post(f"{PATH}/count", json={"filter": "life = 2"}),
        lambda body: int(body["count"]),
    ),
}
"""How to read, and which life the answer tells: 1, and 2 after it."""


def life_of(found: list[dict[str, Any]]) -> int:
    return int(found[0]["metadata"]["life"])


@pytest.mark.minio
def test_the_first_read_after_another_process_began_a_life_finds_it(
    minio: MinioServer, tmp_path: Path
) -> None:
    data = f"s3://{minio.bucket}/next-lives"
    env = minio.environment()
    with (
        serving(data, tmp_path / "one.log", env=env) as one,
        serving(data, tmp_path / "two.log", env=env) as two,
        httpx.Client(base_url=one.url, timeout=60) as writer,
        httpx.Client(base_url=two.url, timeout=60) as reader,
    ):
        for kind, (read, life_in) in READS.items():
            begin(writer, life=1)
            assert reader.get(f"{PATH}/items/a").json()["metadata"]["life"] == 1
            writer.delete(PATH).raise_for_status()
            begin(writer, life=2)
            answer = read(reader)
            assert answer.status_code == 200, f"{kind}: {answer.text}"
            assert life_in(answer.json()) == 2, kind
            writer.delete(PATH).raise_for_status()


def begin(http: httpx.Client, *, life: int) -> None:
    http.post("/v1/vectors/index", json={"name": "things", "dimension": 2}).raise_for_status()
    items = [{"id": name, "vector": [1.0, 0.0], "metadata": {"life": life}} for name in "ab"]
    http.post(f"{PATH}/add", json={"items": items}).raise_for_status()
