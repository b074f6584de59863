"""`lakehouse report` on a live server, and on a cluster's API: everything that helps, nothing that is secret."""

import json
import os
import subprocess
import tarfile
from pathlib import Path

import httpx
import orjson
import pytest

from kube_api_server import BIN, KubeApiServer
from lakehouse.server.auth import new_key
from live_server import LiveServer, command_line, environment
from ports import free_port

KEY, KEY_SHA256 = new_key()
KEYS = orjson.dumps([{"name": "tests", "right": "read", "sha256": KEY_SHA256}]).decode()
PLANTED = "Pl4nt3dS3cr3t"


def report(
    folder: Path, *args: str, path: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    made = environment(env)
    made["PATH"] = f"{path}{os.pathsep}{made['PATH']}" if path else made["PATH"]
    return subprocess.run(
        command_line("report", *args), env=made, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )  # fmt: skip


def contents(path: Path) -> dict[str, str]:
    """The files of a bundle by name, without its folder."""
    with tarfile.open(path) as archive:
        found = {}
        for info in archive.getmembers():
            file = archive.extractfile(info)
            assert file is not None
            assert info.mode == 0o600
            found[info.name.partition("/")[2]] = file.read().decode()
        return found


class Up(LiveServer):
    """Everything in one process, with declared resources."""

    verb = "up"


@pytest.fixture
def server(tmp_path: Path) -> "Up":
    env = {"LAKEHOUSE_KEYS": KEYS}
    (tmp_path / "d.yaml").write_text(
        "apiVersion: lakehouse.agentview.dev/v1alpha1\nkind: Dataset\nmetadata:\n  name: products\n"
        f"  annotations: {{note: 'https://b.example/x?X-Amz-Signature={PLANTED}'}}\n"
        "spec:\n  sources: [{uri: a.csv}]\n"
    )
    (tmp_path / "a.csv").write_text("id,price\na,1\n")
    return Up(str(tmp_path / "data"), tmp_path / "log", args=["-f", str(tmp_path / "d.yaml")], env=env)


def test_a_servers_bundle_tells_its_state_and_no_secret(server: Up, tmp_path: Path) -> None:
    with server.start():
        done = report(
            tmp_path, "--url", server.url, "-o", "r.tar.gz", LAKEHOUSE_API_KEY=KEY, AWS_SECRET_ACCESS_KEY=PLANTED
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "collecting metrics" in done.stderr
    path = tmp_path / "r.tar.gz"
    assert path.stat().st_mode & 0o777 == 0o600
    found = contents(path)
    assert {"versions.json", "server/health.json", "server/readyz.json", "server/metrics.txt"} <= set(found)
    assert json.loads(found["server/resources.json"])["items"][0]["metadata"]["name"] == "products"
    assert "server/events/Dataset-products.json" in found
    assert found["missing.txt"] == "nothing\n"
    assert set(found["contents.txt"].split()) == set(found) - {"contents.txt"}
    for name, text in found.items():
        assert PLANTED not in text, name
        assert KEY not in text, name


def test_what_a_key_does_not_open_is_noted_and_the_rest_is_there(server: Up, tmp_path: Path) -> None:
    with server.start():
        done = report(tmp_path, "--url", server.url, "-o", "r.tar.gz")
    assert done.returncode == 0, done.stderr
    found = contents(tmp_path / "r.tar.gz")
    assert "server/health.json" in found
    assert "metrics: the key does not allow it" in found["missing.txt"]
    assert "could not be had" in done.stderr


def test_nobody_there_no_file_and_a_clear_word(tmp_path: Path) -> None:
    done = report(tmp_path, "--url", f"http://127.0.0.1:{free_port()}", "-o", "r.tar.gz")
    assert done.returncode == 5
    assert "no server answers there" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(server: Up, tmp_path: Path) -> None:
    (tmp_path / "r.tar.gz").write_text("mine")
    with server.start():
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
        done = report(tmp_path, "--url", server.url, "-o", "r.tar.gz")
    assert done.returncode == 4
    assert (tmp_path / "r.tar.gz").read_text() == "mine"


def test_a_cluster_needs_kubectl_and_says_so(tmp_path: Path) -> None:
    env = {**environment(), "PATH": str(tmp_path)}
    done = subprocess.run(
        command_line("report", "-n", "shop"), env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 2
    assert "kubectl" in done.stderr
    assert report(tmp_path, "-n", "shop", "--url", "http://127.0.0.1:1").returncode == 2


def test_a_namespace_that_is_asked_for_goes_before_a_server_of_the_environment(tmp_path: Path) -> None:
    env = environment({"LAKEHOUSE_URL": "http://127.0.0.1:1"}) | {"PATH": str(tmp_path)}
    done = subprocess.run(
        command_line("report", "-n", "shop"), env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert "a report on a cluster needs kubectl" in done.stderr


OBJECTS = f"""
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: VectorIndex
metadata:
  name: products
  namespace: reported
  annotations: {{note: "Bearer {PLANTED}{PLANTED}"}}
spec: {{dimension: 3}}
---
apiVersion: v1
kind: Secret
metadata: {{name: creds, namespace: reported, labels: {{app.kubernetes.io/name: lakehouse}}}}
stringData: {{AWS_SECRET_ACCESS_KEY: {PLANTED}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: lakehouse-routes, namespace: reported, labels: {{app.kubernetes.io/name: lakehouse}}}}
data: {{routes.json: '{{"version":1,"indexes":{{}}}}'}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: other, namespace: reported, labels: {{app.kubernetes.io/name: lakehouse}}}}
data: {{note: {PLANTED}}}
---
apiVersion: v1
kind: Event
metadata: {{name: e, namespace: reported}}
involvedObject: {{kind: VectorIndex, name: products, namespace: reported}}
message: "cannot reach https://b.example/?X-Amz-Signature={PLANTED}"
reason: StorageUnreachable
---
apiVersion: v1
kind: Pod
metadata:
  name: products-shard-0-a
  namespace: reported
  labels: {{app.kubernetes.io/name: lakehouse, app.kubernetes.io/component: index}}
spec:
  nodeName: none
  containers:
    - name: serve
      image: none
      env: [{{name: AWS_SECRET_ACCESS_KEY, value: {PLANTED}}}, {{name: LAKEHOUSE_DATA, value: "s3://b/p"}}]
"""
STATUS = {
    "status": {
        "phase": "Running",
        "containerStatuses": [
            {"name": "serve", "restartCount": 1, "image": "none", "imageID": "", "ready": True, "state": {}}
        ],
    }
}


def test_a_clusters_bundle_holds_resources_children_and_events(
    kube_api: KubeApiServer, tmp_path: Path
) -> None:
    """There are no nodes, so logs cannot be had: that is noted for both the container and the one before it."""
    kube_api.kubectl("create", "namespace", "reported")
    kube_api.kubectl("apply", "-f", "-", document=OBJECTS)
    patch = ("patch", "pod", "products-shard-0-a", "-n", "reported", "--subresource=status", "--type=merge")
    kube_api.kubectl(*patch, "-p", json.dumps(STATUS))
    config = str(kube_api.kubeconfig())
    done = report(tmp_path, "-n", "reported", "--kubeconfig", config, "-o", "r.tar.gz", path=BIN)
    assert done.returncode == 0, done.stderr
    found = contents(tmp_path / "r.tar.gz")
    for kind, name in (
        ("vectorindexes", "products"),
        ("pods", "products-shard-0-a"),
        ("routes", "lakehouse-routes"),
    ):
        names = [one["metadata"]["name"] for one in json.loads(found[f"cluster/{kind}.json"])["items"]]
        assert names == [name]
    assert "StorageUnreachable" in found["cluster/events.json"]
    assert "s3://b/p" in found["cluster/pods.json"]
    assert "serverVersion" in found["cluster/version.json"]
    missing = found["missing.txt"]
    for part in (
        "log of products-shard-0-a serve",
        "log of products-shard-0-a serve.previous",
        "readyz of products",
    ):
        assert part in missing
    for name, text in found.items():
        assert PLANTED not in text, name


def test_who_may_see_nothing_gets_a_bundle_that_says_so(kube_api: KubeApiServer, tmp_path: Path) -> None:
    config = str(kube_api.kubeconfig("stranger"))
    done = report(tmp_path, "-n", "default", "--kubeconfig", config, "-o", "r.tar.gz", path=BIN)
    assert done.returncode == 0, done.stderr
    missing = contents(tmp_path / "r.tar.gz")["missing.txt"]
    assert "vectorindexes: kubectl: Error from server (Forbidden)" in missing


def test_a_cluster_that_is_away_is_told_before_anything_is_written(tmp_path: Path) -> None:
    if not (BIN / "kubectl").is_file():
        pytest.skip("there is no kubectl")
    (tmp_path / "config").write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nusers: [{name: u, user: {token: t}}]\n"
        f"clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{free_port()}'}}}}]\n"
        "contexts: [{name: c, context: {cluster: c, user: u}}]\n"
    )
    done = report(tmp_path, "--kubeconfig", str(tmp_path / "config"), "-o", "r.tar.gz", path=BIN)
    assert done.returncode == 5, done.stderr
    assert "refused" in done.stderr
    assert not (tmp_path / "r.tar.gz").exists()
