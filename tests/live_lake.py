"""A real `lakehouse up` process: its files, its resources over HTTP, and waiting for what they become."""

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from live_server import LiveServer, command_line, environment

WAIT_S_MAX = 90.0
POLL_S = 0.05
REFRESH = "lakehouse.agentview.dev/refresh"


class UpServer(LiveServer):
    """`lakehouse up` instead of `lakehouse serve`."""

    verb = "up"


class LiveLake:
    """One data directory and the process that looks after it; `start` after `kill` is a restart."""

    def __init__(self, home: Path, texts: Sequence[str] = (), args: Sequence[str] = ()) -> None:
        self.home = home
        files = [self.file(f"{number}.yaml", text) for number, text in enumerate(texts)]
        given = [part for path in files for part in ("-f", str(path))]
        self.server = UpServer(str(home / "data"), home / "log", args=(*given, *args))
        self.http = httpx.Client(base_url=self.server.url, timeout=60)

    def start(self) -> "LiveLake":
        self.server.start()
        return self

    def kill(self) -> None:
        """kill -9."""
        self.server.kill()

    def stop(self) -> None:
        self.http.close()
        self.server.__exit__(None, None, None)

    def file(self, name: str, text: str) -> Path:
        path = self.home / name
        path.write_text(text)
        return path

    def parquet(
        self, name: str, ids: Sequence[str], vectors: Sequence[Any], **columns: Sequence[Any]
    ) -> Path:
        """Write a source file as a person would replace one: in one step."""
        table = pa.table(
            {"id": pa.array(ids), "embedding": pa.array(vectors, pa.list_(pa.float32())), **columns}
        )
        path, partial = self.home / name, self.home / f".{name}.partial"
        pq.write_table(table, partial)
        partial.replace(path)
        return path

    # --- resources

    def get(self, path: str) -> Any:
        answer = self.http.get(f"/v1{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def apply(self, document: Mapping[str, Any], **query: str) -> httpx.Response:
        kind, name = document["kind"], document["metadata"]["name"]
        return self.http.put(f"/v1/resources/{kind}/{name}", json=document, params=query)

    def condition(self, kind: str, name: str, wanted: str) -> tuple[str, str, str]:
        """Status, reason and message."""
        conditions = self.get(f"/resources/{kind}/{name}").get("status", {}).get("conditions", ())
        found: Mapping[str, str] = next((one for one in conditions if one["type"] == wanted), {})
        return found.get("status", ""), found.get("reason", ""), found.get("message", "")

    def refresh(self, name: str, asked: str) -> None:
        """Ask for a refresh now, as `kubectl annotate` does."""
        now = self.get(f"/resources/Dataset/{name}")
        wanted = {part: now[part] for part in ("apiVersion", "kind", "spec")}
        metadata = {"name": name, "annotations": {REFRESH: asked}}
        answer = self.apply({**wanted, "metadata": metadata})
        assert answer.status_code == 200, answer.text

    def until(self, holds: Callable[[], Any], what: str = "") -> Any:
        """What `holds` gives once it is true."""
        deadline = time.monotonic() + WAIT_S_MAX
        while time.monotonic() < deadline:
            found = holds()
            if found:
                return found
            assert self.server.process.poll() is None, self.server.log_tail()
            time.sleep(POLL_S)
        shown = json.dumps(self.get("/resources"), indent=1)
        raise AssertionError(f"never so: {what}\n{shown}\n{self.server.log_tail()}")

    def until_ready(self, *names: str, kind: str = "VectorIndex") -> None:
        for name in names:
            for wanted in ("Ready", "UpToDate") if kind == "VectorIndex" else ("Ready", "Fresh"):
                self.until(partial(self._holds, kind, name, wanted), f"{kind}/{name} {wanted}")

    def _holds(self, kind: str, name: str, wanted: str) -> bool:
        return self.condition(kind, name, wanted)[0] == "True"

    def version(self, dataset: str) -> int:
        status = self.get(f"/resources/Dataset/{dataset}").get("status", {})
        return int(status.get("current", {}).get("version", 0))

    # --- items

    def ids(self, index: str) -> set[str]:
        page = self.http.post(f"/v1/vectors/index/{index}/scroll", json={"limit": 1_000}).json()
        return {item["id"] for item in page["items"]}

    def add(self, index: str, *ids: str, dimension: int = 2) -> httpx.Response:
        items = [{"id": one, "vector": [1.0 + j] * dimension} for j, one in enumerate(ids)]
        return self.http.post(f"/v1/vectors/index/{index}/add", json={"items": items})

    # --- the command line

    def cli(self, *args: str) -> subprocess.CompletedProcess[str]:
        """`lakehouse …` against this process."""
        return subprocess.run(
            command_line(*args),
            env=environment({"LAKEHOUSE_URL": self.server.url}),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
