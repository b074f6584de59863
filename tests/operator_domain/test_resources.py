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
from lakehouse_operator.settings import OWN_VARIABLES, Settings

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
    seeded = jobs.seed(resource, action, 1, 4, "", "make")
    task = jobs.build_task(action, jobs.life(seeded), None)
    return [jobs.job(resource, action, task, where(), settings(), seeded=seeded, attempt=1)]


def ingest() -> list[Body]:
    resource = dataset(job={"activeDeadlineSeconds": 600, "resources": {"limits": {"memory": "2Gi"}}})
    action = plan.Ingest("shape-refresh")
    task = jobs.ingest_task(action, "catalog", {"sources": [{"uri": "s3://raw/a.csv"}]})
    seeded = jobs.seed(resource, action, 2, 0, "earlier", "make")
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
        assert "LAKEHOUSE_PEER_KEY" not in {one["name"] for one in container["env"]}
        assert container["envFrom"] == [{"secretRef": {"name": "mine"}}]


@pytest.mark.parametrize("case", CASES)
def test_index_pods_have_the_peer_key_as_a_file_and_jobs_have_none(case: str) -> None:
    for spec, container in containers(CASES[case]()):
        told = {one["name"]: one.get("value") for one in container["env"]}
        mounted = {one["name"]: one for one in container["volumeMounts"]}
        volumes = {one["name"]: one for one in spec["volumes"]}
        if container["args"] == ["work"]:
            assert "peer-key" not in volumes.keys() | mounted.keys()
            assert "LAKEHOUSE_PEER_KEY_FILE" not in told
            continue
        assert volumes["peer-key"]["secret"] == {"secretName": "lakehouse-peer-key", "defaultMode": 0o444}
        assert mounted["peer-key"]["readOnly"] is True
        assert told["LAKEHOUSE_PEER_KEY_FILE"] == mounted["peer-key"]["mountPath"] + "/peer-key"


@pytest.mark.parametrize("case", CASES)
def test_who_has_a_secret_has_it_as_files_that_anybody_in_the_pod_may_read(case: str) -> None:
    for spec, container in containers(CASES[case]()):
        (secret,) = (one["secretRef"]["name"] for one in container["envFrom"])
        (volume,) = (one for one in spec["volumes"] if one["name"] == "credentials")
        (mount,) = (one for one in container["volumeMounts"] if one["name"] == volume["name"])
        assert volume["secret"] == {"secretName": secret, "defaultMode": 0o444}
        assert mount["readOnly"] is True
        told = {one["name"]: one.get("value") for one in container["env"]}
        assert told["LAKEHOUSE_S3_CREDENTIALS_DIR"] == mount["mountPath"]


def test_pods_with_an_identity_of_their_own_have_no_secret() -> None:
    own = settings(default_credentials_secret="")
    made = resources.index(index(), where(default_credentials_secret=""), own, suspended=False)
    for spec, container in containers(made):
        assert [one["name"] for one in spec["volumes"] if "secret" in one] == ["peer-key"]
        assert container["envFrom"] == []
        assert "LAKEHOUSE_S3_CREDENTIALS_DIR" not in {one["name"] for one in container["env"]}


def test_a_region_that_nobody_names_is_left_to_the_pods_environment() -> None:
    """AWS_REGION of the Secret, or of the pods' identity, would not count beside ours."""
    own = {"default_s3_region": Settings.model_fields["default_s3_region"].default}
    for _, container in containers(resources.index(index(), where(**own), settings(**own), suspended=False)):
        assert "LAKEHOUSE_S3_REGION" not in {one["name"] for one in container["env"]}


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


ALL = {
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
    "serviceAccountName": "lake-index",
    "annotations": {"example.com/team": "data"},
    "labels": {"example.com/team": "data", names.COMPONENT_LABEL: "mine"},
    "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "cache": {"size": "5Gi"},
}
"""What an installation may say of every pod."""


def templates(**pod_defaults: Any) -> list[Body]:
    """Of a Deployment, of a build and of an ingest."""
    told = settings(pod_defaults=pod_defaults)
    rebuild = plan.RebuildIndex(IndexParams("products", 3))
    task = jobs.rebuild_task(rebuild, jobs.life("s"))
    refresh = plan.Ingest("key")
    bodies = [
        resources.index(index(), where(), told, suspended=False)[-1],
        jobs.job(index(), rebuild, task, where(), told, seeded="s", attempt=1),
        jobs.job(
            dataset(), refresh, jobs.ingest_task(refresh, "c", {}), where(), told, seeded="s", attempt=1
        ),
    ]
    return [body["spec"]["template"] for body in bodies]


def test_what_is_said_of_all_pods_is_so_for_indexes_builds_and_ingests() -> None:
    components = []
    for template in templates(**ALL):
        spec, metadata = template["spec"], template["metadata"]
        placed = ("nodeSelector", "tolerations", "affinity", "priorityClassName", "serviceAccountName")
        assert {name: spec[name] for name in placed} == {name: ALL[name] for name in placed}
        assert metadata["annotations"] == {"example.com/team": "data"}
        assert metadata["labels"]["example.com/team"] == "data"
        components.append(metadata["labels"][names.COMPONENT_LABEL])
        assert spec["volumes"][0]["emptyDir"] == {"sizeLimit": "5Gi"}
        assert spec["containers"][0]["env"][-1] == {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}
        assert spec["automountServiceAccountToken"] is False
    assert components == ["index", "build", "ingest"]


def test_what_an_index_says_itself_goes_before_what_is_said_of_all() -> None:
    told = settings(pod_defaults=ALL)
    own = index(pod={"nodeSelector": {"disk": "slow"}}, storage={"cache": {"size": "9Gi"}})
    spec = resources.index(own, where(), told, suspended=False)[-1]["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"disk": "slow"}
    assert spec["tolerations"] == ALL["tolerations"]
    assert spec["volumes"][0]["emptyDir"] == {"sizeLimit": "9Gi"}


def test_pods_are_spread_within_their_shard_unless_it_was_said_otherwise() -> None:
    zone = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    own = zone | {"labelSelector": {"matchLabels": {"a": "b"}}}
    spec = templates(topologySpreadConstraints=[zone, own])[0]["spec"]
    of_shard = {"matchLabels": names.selector("products", 0)}
    assert spec["topologySpreadConstraints"] == [zone | {"labelSelector": of_shard}, own]


def test_variables_that_the_operator_sets_are_those_that_nobody_else_may() -> None:
    follows = index(shards=2, source=SOURCE, storage=OWN)
    bodies = [
        *resources.index(follows, where(OWN), settings(), suspended=False),
        *resources.index(index(), where(), settings(keys=""), suspended=False),
        *build(),
        *ingest(),
    ]
    told = {one["name"] for _, container in containers(bodies) for one in container["env"]}
    assert told | {"LAKEHOUSE_PEER_KEY"} == OWN_VARIABLES  # which would be a second place for that key


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
