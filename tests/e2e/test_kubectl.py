"""What people do with kubectl and helm, and what they read there."""

import json
import os
import subprocess
import sys

from e2e.release import Release, index_snapshot, vector_index

DIMENSION = 4


def test_get_wait_scale_and_explain(lakehouse: Release) -> None:
    cluster, namespace = lakehouse.cluster, lakehouse.namespace
    lakehouse.apply(vector_index("shown", DIMENSION))
    cluster.kubectl("wait", "--for=condition=Ready", "vix/shown", "--timeout=120s", namespace=namespace)
    header, row = cluster.kubectl("get", "vix", "shown", namespace=namespace).splitlines()
    assert header.split() == ["NAME", "READY", "REASON", "REPLICAS", "ITEMS", "UP-TO-DATE", "SNAPSHOT", "AGE"]
    assert row.split()[:2] == ["shown", "True"]

    cluster.kubectl("scale", "vix/shown", "--replicas=2", namespace=namespace)
    path = "--for=jsonpath={.status.readyReplicas}=2"
    cluster.kubectl("wait", path, "vix/shown", "--timeout=120s", namespace=namespace)
    scale = json.loads(
        cluster.kubectl("get", "vix", "shown", "--subresource=scale", "-o", "json", namespace=namespace)
    )
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2)
    pods = cluster.all("Pod", namespace, scale["status"]["selector"])
    assert len(pods) == 2

    lakehouse.apply(index_snapshot("shown-now", "shown"))
    cluster.kubectl(
        "wait", "--for=condition=Complete", "isnap/shown-now", "--timeout=60s", namespace=namespace
    )
    listed = cluster.kubectl("get", "lakehouse", namespace=namespace)
    assert "vectorindex.lakehouse.agentview.dev/shown" in listed
    assert "indexsnapshot.lakehouse.agentview.dev/shown-now" in listed

    for kind in ("vix", "dset", "isnap"):
        told = cluster.kubectl("explain", f"{kind}.spec", "--recursive")
        assert "FIELDS:" in told
    assert "efConstruction" in cluster.kubectl("explain", "vix.spec.hnsw")
    assert "<no description>" not in cluster.kubectl("explain", "vix.spec")
    cluster.delete("IndexSnapshot", namespace, "shown-now")
    cluster.delete("VectorIndex", namespace, "shown")


def test_helm_test_passes(lakehouse: Release) -> None:
    said = lakehouse.cluster.helm(
        "test", lakehouse.name, "--namespace", lakehouse.namespace, "--timeout", "240s", "--logs"
    )
    assert "Phase:          Succeeded" in said, said


def test_the_report_holds_no_secret(lakehouse: Release, tmp_path: object) -> None:
    """`lakehouse report` collects what a maintainer asks for, with keys and credentials taken out."""
    import tarfile
    from pathlib import Path

    target = Path(str(tmp_path)) / "report.tar.gz"
    kubectl, *reaching = (
        lakehouse.cluster.engine.kubectl
    )  # --kubeconfig or --context, which the report takes, too
    command = [sys.executable, "-m", "lakehouse", "report", "--namespace", lakehouse.namespace, *reaching]
    done = subprocess.run(
        [*command, "--output", str(target)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": f"{Path(kubectl).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(target) as bundle:
        content = b"".join(
            file.read() for member in bundle if (file := bundle.extractfile(member)) is not None
        )
    assert lakehouse.namespace.encode() in content
    for secret in (*lakehouse.keys.values(), lakehouse.store.secret_key):
        assert secret.encode() not in content
