"""values.schema.json is closed: what it does not know, and what cannot be right, is refused with its place."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from chart.rendering import CHART, ROOT, Body, environment, loaded, objects, of_kind, template, text

HASH = "a" * 64
REFUSED = {
    # names that are not known, at every depth
    "replicas=1": "replicas",
    "gateway.replica=2": "replica",
    "gateway.service.nodePorts=30000": "nodePorts",
    "images.dataplane.name=x": "name",
    "storage.s3.secretKey=x": "secretKey",
    "storage.bucket=x": "bucket",
    "pool.cache.bytes=1Gi": "bytes",
    "operator.podDefaults.nodeSelectors.a=b": "nodeSelectors",
    "metrics.serviceMonitor.scrapeTimeout=1s": "scrapeTimeout",
    "minio.image.name=x": "name",
    "networkPolicy.ingress.enabled=true": "ingress",
    "securityContext.runAsUser=0": "securityContext",
    # values of another kind
    "gateway.replicas=two": "/gateway/replicas",
    "crds.keep=yes": "/crds/keep",
    "watchNamespaces=shop": "/watchNamespaces",
    "images.pullSecrets={Registry Key}": "/images/pullSecrets/0",
    "keys.extra=none": "/keys/extra",
    # values out of range
    "gateway.replicas=0": "/gateway/replicas",
    "gateway.service.port=70000": "/gateway/service/port",
    "gateway.service.type=ExternalName": "/gateway/service/type",
    "gateway.terminationGracePeriodSeconds=5": "/gateway/terminationGracePeriodSeconds",
    "operator.workers=0": "/operator/workers",
    "operator.logLevel=trace": "/operator/logLevel",
    "images.pullPolicy=Sometimes": "/images/pullPolicy",
    "images.registry=https://registry.example.com": "/images/registry",
    "images.dataplane.repository=Lake House": "/images/dataplane/repository",
    "images.dataplane.digest=sha256:123": "/images/dataplane/digest",
    "images.operator.tag=a:b": "/images/operator/tag",
    "storage.s3.bucket=My_Bucket": "/storage/s3/bucket",
    "storage.s3.endpoint=minio:9000": "/storage/s3/endpoint",
    "storage.credentialsSecretRef.name=A_B": "/storage/credentialsSecretRef/name",
    "pool.cache.size=lots": "/pool/cache/size",
    "pool.resources.limits.memory=lots": "/pool/resources/limits/memory",
    "fullnameOverride=Lake": "/fullnameOverride",
    "storage.s3.prefix=team/{name}": "/storage/s3/prefix",
    "gateway.service.nodePort=70000": "/gateway/service/nodePort",
    "gateway.service.externalTrafficPolicy=Far": "/gateway/service/externalTrafficPolicy",
    "operator.logFormat=xml": "/operator/logFormat",
    "global.imageRegistry=https://registry.example.com": "/global/imageRegistry",
    "tests.declared=perhaps": "/tests/declared",
    "tests.timeoutSeconds=1": "/tests/timeoutSeconds",
    "metrics.serviceMonitor.interval=often": "/metrics/serviceMonitor/interval",
    "metrics.prometheusRule.runbookUrl=RUNBOOKS.md": "/metrics/prometheusRule/runbookUrl",
    # what does not go together
    "watchNamespaces={*,shop}": "/watchNamespaces",
    "keys.required=false,keys.existingSecret=a": "/keys/existingSecret",
}
REFUSED_JSON = {
    f'keys.extra=[{{"name":"ci","right":"root","sha256":"{HASH}"}}]': "/keys/extra/0/right",
    'keys.extra=[{"name":"ci","right":"read","sha256":"secret"}]': "/keys/extra/0/sha256",
    f'keys.extra=[{{"name":"ci","right":"read","key":"secret","sha256":"{HASH}"}}]': "key",
    'pool.extraEnv=[{"value":"1"}]': "/pool/extraEnv/0",
    'networkPolicy.gatewayFrom=["10.0.0.0/8"]': "/networkPolicy/gatewayFrom/0",
    'pool.nodeSelector={"a":1}': "/pool/nodeSelector/a",
    'operator.podDefaults.env=[{"name":"A","valueFrom":{}}]': "/operator/podDefaults/env/0",
    'operator.podDefaults.env=[{"name":"LAKEHOUSE_DATA","value":"s3://a"}]': "/operator/podDefaults/env/0/name",
    'gateway.service.loadBalancerSourceRanges=["anybody"]': "/gateway/service/loadBalancerSourceRanges/0",
}
FAILS = {
    # what does not go together, and no schema can say
    "watchNamespaces={a,b},storage.s3.prefix=team": r"Put {namespace} into the prefix",
    "watchNamespaces={*},storage.s3.prefix=/": r"Put {namespace} into the prefix",
    "networkPolicy.enabled=true,metrics.prometheusRule.enabled=true": "networkPolicy.metricsFrom",
    "networkPolicy.enabled=true,metrics.serviceMonitor.enabled=true": "networkPolicy.metricsFrom",
}


@pytest.mark.parametrize("value", REFUSED)
def test_a_value_that_cannot_be_right_is_refused_and_named(value: str) -> None:
    refused(REFUSED[value], "--set", value)


@pytest.mark.parametrize("value", REFUSED_JSON)
def test_a_list_that_cannot_be_right_is_refused_and_named(value: str) -> None:
    refused(REFUSED_JSON[value], "--set-json", value)


@pytest.mark.parametrize("value", FAILS)
def test_values_that_do_not_go_together_are_refused_with_what_to_do(value: str) -> None:
    done = template("--set", value)
    assert done.returncode != 0, "it was taken"
    assert FAILS[value] in done.stderr


@pytest.mark.parametrize("release", ["1st", "1st.rel", "a.b"])
def test_a_release_that_no_service_can_be_called_after_is_refused_unless_it_has_another_name(
    release: str,
) -> None:
    done = template(release=release)
    assert done.returncode != 0, "it was taken"
    assert f"no Service can be called after the release `{release}`" in done.stderr
    assert "fullnameOverride" in done.stderr
    named = template("--set", "fullnameOverride=first", release=release)
    assert named.returncode == 0, named.stderr


def test_a_release_whose_name_looks_like_a_number_is_a_label_all_the_same() -> None:
    done = template("--set", "fullnameOverride=first,crds.enabled=false", release="123")
    assert done.returncode == 0, done.stderr
    instances = {body["metadata"]["labels"]["app.kubernetes.io/instance"] for body in loaded(done.stdout)}
    assert instances == {"123"}


def refused(place: str, *arguments: str) -> None:
    done = template(*arguments)
    assert done.returncode != 0, "it was taken"
    assert "don't meet the specifications of the schema" in done.stderr
    assert place in done.stderr


def test_every_object_of_the_schema_is_closed_or_means_any_name() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    open_ones = [where for where, one in _objects(schema, "") if not _closed(one)]
    assert open_ones == []


KUBERNETES_OWN = (
    "affinity",
    "valueFrom",
    "tolerations",
    "topologySpreadConstraints",
    "Selector",
    "ipBlock",
    "claims",
    "podSecurityContext",
    "extraEnvFrom",
    "extraVolume",
)
"""As Kubernetes has them; the API server checks those."""


def _closed(schema: Body) -> bool:
    return schema.get("additionalProperties", True) is not True


def _objects(schema: Any, where: str) -> Iterator[tuple[str, Body]]:
    if isinstance(schema, dict):
        known = any(name in where for name in KUBERNETES_OWN) or where.endswith(("/ports/items", "/global"))
        if schema.get("type") == "object" and not known:
            yield where, schema
        for name, inner in schema.items():
            if name != "allOf":
                yield from _objects(inner, f"{where}/{name}")


def test_every_value_is_in_the_schema_and_every_name_of_the_schema_is_a_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    (given,) = loaded((CHART / "values.yaml").read_text(encoding="utf-8"))
    known = {path for path in _paths(schema, schema["$defs"]) if not path.startswith("global")}
    assert known == set(_keys(given))


def _paths(schema: Body, definitions: Body, at: str = "") -> Iterator[str]:
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for name, inner in schema.get("properties", {}).items():
        path = f"{at}.{name}".lstrip(".")
        found = list(_paths(inner, definitions, path)) if not path.endswith("resources") else []
        yield from found or [path]


def _keys(values: Body, at: str = "") -> Iterator[str]:
    for name, value in values.items():
        path = f"{at}.{name}".lstrip(".")
        inner = isinstance(value, dict) and value and not path.endswith(("resources", "dashboard.labels"))
        yield from _keys(value, path) if inner else [path]


# --- what belongs together across the repository


def test_the_chart_is_of_the_projects_version() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (chart,) = loaded((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == chart["version"] == project["version"]


def test_the_charts_crds_are_those_of_the_repository() -> None:
    ours = {path.name: path.read_bytes() for path in (CHART / "files" / "crds").iterdir()}
    assert ours == {path.name: path.read_bytes() for path in (ROOT / "crds").glob("*.yaml")}, (
        "cp crds/*.yaml there"
    )


def test_rendered_crds_differ_in_being_kept_alone() -> None:
    kept = crds(text())
    assert len(kept) == 3
    for name, body in kept.items():
        assert body["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        (source,) = (one for one in _sources() if one["metadata"]["name"] == name)
        assert body == source
    assert list(crds(text("--set", "crds.keep=false")).values()) == _sources()
    assert crds(text("--set", "crds.enabled=false")) == {}


def crds(rendered: str) -> dict[str, Body]:
    return of_kind(tuple(loaded(rendered)), "CustomResourceDefinition")


def _sources() -> list[Body]:
    return [
        body
        for path in sorted((ROOT / "crds").glob("*.yaml"))
        for body in loaded(path.read_text(encoding="utf-8"))
    ]


def test_images_follow_registry_tag_and_digest() -> None:
    def image(*arguments: str) -> str:
        deployment = of_kind(objects(*arguments), "Deployment")["lake-query"]
        reference: str = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
        return reference

    assert image() == "lakehouse:0.1.0"
    assert image("--set", "images.registry=r.example.com:5000/a/") == "r.example.com:5000/a/lakehouse:0.1.0"
    assert image("--set", "global.imageRegistry=r.example.com") == "r.example.com/lakehouse:0.1.0"
    both = "global.imageRegistry=r.example.com,images.registry=mine.example.com"
    assert image("--set", both) == "mine.example.com/lakehouse:0.1.0"
    assert image("--set", "images.dataplane.tag=dev") == "lakehouse:dev"
    digest = f"sha256:{HASH}"
    assert image("--set", f"images.dataplane.digest={digest}") == f"lakehouse:0.1.0@{digest}"


def test_one_replica_has_no_budget_that_would_hold_up_a_drain() -> None:
    assert set(of_kind(objects(), "PodDisruptionBudget")) == {"lake-pool"}
    assert of_kind(objects("--set", "pool.replicas=1"), "PodDisruptionBudget") == {}
    assert of_kind(objects("--set", "pool.podDisruptionBudget=false"), "PodDisruptionBudget") == {}


def test_sql_may_have_credentials_of_its_own() -> None:
    arguments = ("--set", "storage.credentialsSecretRef.name=all,query.credentialsSecretRef.name=some")
    deployments = of_kind(objects(*arguments), "Deployment")
    specs = {name: body["spec"]["template"]["spec"] for name, body in deployments.items()}
    found = {
        name: (container["envFrom"][0]["secretRef"]["name"], volume["secret"]["secretName"])
        for name, spec in specs.items()
        for container in spec["containers"]
        for volume in spec["volumes"]
        if "envFrom" in container and volume["name"] == "credentials"
    }
    assert found == {"lake-pool": ("all", "all"), "lake-query": ("some", "some")}


def test_what_a_user_adds_to_the_environment_replaces_ours() -> None:
    arguments = ("--set-json", 'pool.extraEnv=[{"name":"LAKEHOUSE_DRAIN_S","value":"3"}]')
    (container,) = of_kind(objects(*arguments), "Deployment")["lake-pool"]["spec"]["template"]["spec"][
        "containers"
    ]
    names = [one["name"] for one in container["env"]]
    assert environment(container)["LAKEHOUSE_DRAIN_S"] == "3"
    assert names[-1] == "LAKEHOUSE_DRAIN_S"
    assert names.count("LAKEHOUSE_DRAIN_S") == 1
