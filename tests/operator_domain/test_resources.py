"""The objects of an index against files that a person has read.

`python tests/operator_domain/test_resources.py` writes the files anew, to be read again.
"""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from cluster_samples import dataset, index, settings, where
from lakehouse.control import plan
from lakehouse.control.state import Resource
from lakehouse.core.types import IndexParams
from lakehouse_operator import jobs, names, resources
from lakehouse_operator.resources import Body

GOLDEN = Path(__file__).parent / "golden"
SOURCE = {"dataset": {"name": "catalog", "idColumn": "id", "vectorColumn": "embedding", "follow": "Latest"}}
OWN = {
    "s3": {
        "endpoint": "https://s3.example",
        "bucket": "mine",
        "prefix": "p",
        "region": "eu",
        "caBundle": "PEM",
    },
    "credentialsSecretRef": {"name": "mine"},
    "cache": {"size": "20Gi"},
}
POD = {
    "resources": {"limits": {"memory": "8Gi"}},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    ],
}


def one_pod() -> list[Body]:
    return resources.index(index(), where(), settings(), suspended=False)


def two_shards() -> list[Body]:
    made = index(shards=2, replicas=2, source=SOURCE, storage=OWN, pod=POD)
    return resources.index(made, where(OWN), settings(), suspended=False)


def build() -> list[Body]:
    resource = index(shards=2, replicas=2, source=SOURCE, pod=POD)
    params = IndexParams("products", 3)
    action = plan.BuildIndex(
        params, 2, "home/shop/products", "catalog", 7, "id", "embedding", ("price",), True, "key"
    )
    seeded = jobs.seed(resource, action, 1, 4, "")
    task = jobs.build_task(action, jobs.life(seeded), None)
    return [jobs.job(resource, action, task, where(), settings(), seeded=seeded, attempt=1)]


def ingest() -> list[Body]:
    resource = dataset(job={"activeDeadlineSeconds": 600, "resources": {"limits": {"memory": "2Gi"}}})
    action = plan.Ingest("shape-refresh")
    task = jobs.ingest_task(action, "catalog", {"sources": [{"uri": "s3://raw/a.csv"}]})
    seeded = jobs.seed(resource, action, 2, 0, "earlier")
    return [jobs.job(resource, action, task, where(), settings(), seeded=seeded, attempt=2)]


CASES = {"one-pod": one_pod, "two-shards": two_shards, "build": build, "ingest": ingest}


def rendered(bodies: list[Body]) -> str:
    yaml, text = YAML(), io.StringIO()
    yaml.width = 110
    yaml.explicit_start = True
    yaml.dump_all(bodies, text)
    return text.getvalue()


@pytest.mark.parametrize("case", CASES)
def test_objects_are_those_of_the_file(case: str) -> None:
    assert rendered(CASES[case]()) == (GOLDEN / f"{case}.yaml").read_text("utf-8")


def containers(bodies: list[Body]) -> list[tuple[Body, Body]]:
    found = []
    for body in bodies:
        if body["kind"] in ("Deployment", "Job"):
            spec = body["spec"]["template"]["spec"]
            found += [(spec, one) for one in spec["containers"]]
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_pod_is_restricted_and_has_no_token(case: str) -> None:
    made = containers(CASES[case]())
    assert made
    for spec, container in made:
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert spec["terminationGracePeriodSeconds"] > resources.DRAIN_S + resources.SHUTDOWN_S


def test_no_secret_is_written_into_a_pod() -> None:
    for _, container in containers(two_shards()):
        key = next(one for one in container["env"] if one["name"] == "LAKEHOUSE_PEER_KEY")
        assert "value" not in key
        assert container["envFrom"] == [{"secretRef": {"name": "mine"}}]


def test_a_budget_is_made_from_two_replicas_up() -> None:
    def budgets(replicas: int) -> int:
        made = resources.index(index(replicas=replicas, shards=3), where(), settings(), suspended=False)
        return sum(body["kind"] == "PodDisruptionBudget" for body in made)

    assert (budgets(1), budgets(2)) == (0, 3)


def test_suspended_pods_are_none_and_say_why() -> None:
    made = resources.index(index(replicas=3, suspend=True), where(), settings(), suspended=True)
    (deployment,) = (body for body in made if body["kind"] == "Deployment")
    assert deployment["spec"]["replicas"] == 0
    assert resources.suspended(deployment)
    assert not any(resources.suspended(body) for body in one_pod())


def release(resource: Resource[Any] | None = None, **changes: Any) -> str:
    made = resources.index(resource or index(), where(**changes), settings(**changes), suspended=False)
    return str(made[-1]["metadata"]["annotations"][names.RELEASE_ANNOTATION])


def test_the_release_is_the_operators_and_not_the_indexs() -> None:
    assert release() == release(index("other", replicas=5, pod=POD, storage=OWN))
    assert release() != release(image="registry.example/lakehouse:2")
    assert release() != release(keys="[]")
    assert release() == release(jobs_at_once=9, namespace="elsewhere")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, made in CASES.items():
        (GOLDEN / f"{name}.yaml").write_text(rendered(made()), "utf-8")
        sys.stdout.write(f"{name}\n")
