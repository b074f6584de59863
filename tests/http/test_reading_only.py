"""SQL with credentials that may only read: the role starts, answers, and asks the bucket for nothing more."""

from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from bucket_keys import Mounted, for_reading
from live_server import serving
from minio_server import MinioServer
from sql_lake import PACKAGES

ASKED = {
    "SELECT count(*) AS n FROM packages": [[5115]],
    'SELECT count(*) AS n FROM "packages@v1"': [[5115]],
    "SELECT id FROM vector_search('near', [1.0, 0.0], k := 1)": [["a"]],
}


@pytest.mark.minio
def test_sql_reads_with_keys_that_may_not_write(minio: MinioServer, tmp_path: Path) -> None:
    data = f"s3://{minio.bucket}/{uuid4().hex}"
    whole = minio.environment()
    mounted = Mounted(tmp_path / "s3", *for_reading(minio))
    with serving(data, tmp_path / "whole.log", env=whole) as server:
        with httpx.Client(base_url=f"{server.url}/v1", timeout=60) as client:
            client.put("/storage/put/p.parquet", content=PACKAGES.read_bytes()).raise_for_status()
            packages = {"name": "packages", "schema_fingerprint": "f", "objects": [{"key": "p.parquet"}]}
            client.post("/catalog/register", json=packages).raise_for_status()
            client.post("/vectors/index", json={"name": "near", "dimension": 2}).raise_for_status()
            items = [{"id": "a", "vector": [1.0, 0.0]}]
            client.post("/vectors/index/near/add", json={"items": items}).raise_for_status()
        reading = {
            "AWS_ENDPOINT_URL_S3": minio.endpoint,
            "LAKEHOUSE_S3_CREDENTIALS_DIR": str(mounted.path),
            "LAKEHOUSE_VECTORS_URL": server.url,
        }
        keys = objects(minio, data)
        with serving(data, tmp_path / "query.log", args=("--roles", "query"), env=reading) as query:
            for sql, rows in ASKED.items():
                answer = httpx.post(f"{query.url}/v1/sql", json={"sql": sql}, timeout=60)
                assert (answer.status_code, answer.json().get("rows")) == (200, rows), answer.text
            metrics = httpx.get(f"{query.url}/metrics", timeout=60).text
    asked = {line for line in metrics.splitlines() if line.startswith("lakehouse_store_operations_total")}
    assert asked
    assert not [line for line in asked if 'outcome="ok"' not in line]
    assert objects(minio, data) == keys


def objects(minio: MinioServer, data: str) -> set[str]:
    client = minio.client()
    found = client.list_objects_v2(Bucket=minio.bucket, Prefix=data.split("/", 3)[3])
    client.close()
    return {one["Key"] for one in found.get("Contents", ())}
