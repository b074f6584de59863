"""Every object that the chart renders is one that Kubernetes knows, and its pods are as Pod Security wants them."""

import base64
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chart.openapi import validator
from chart.rendering import NAMESPACE, Body, environment, loaded, objects, of_kind, pods, sets, text, values

OTHERS = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator; see test_watching."""


@pytest.mark.parametrize("name", sets())
def test_kubernetes_knows_every_object_and_field(name: str) -> None:
    seen = 0
    for body in objects(*values(name)):
        if body["kind"] not in OTHERS:
            problems = [
                error.message for error in validator(body["apiVersion"], body["kind"]).iter_errors(body)
            ]
            assert problems == [], f"{body['kind']}/{body['metadata']['name']}"
            seen += 1
    assert seen > 15


def test_kubernetes_knows_every_field_of_the_crds() -> None:
    crds = [body for body in loaded(text()) if body["kind"] == "CustomResourceDefinition"]
    for body in crds:
        problems = validator(body["apiVersion"], body["kind"]).iter_errors(body)
        assert [error.message for error in problems] == []
    assert len(crds) == 3


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    body = copy.deepcopy(of_kind(objects(), "Deployment")["lake-pool"])
    body["spec"]["template"]["spec"]["containers"][0]["imagepullPolicy"] = "Always"
    assert "imagepullPolicy" in next(validator("apps/v1", "Deployment").iter_errors(body)).message


# --- Pod Security `restricted`, as https://kubernetes.io/docs/concepts/security/pod-security-standards/ has it

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def violations(pod: Body) -> list[str]:
    """What the level `restricted` refuses in a pod's spec."""
    found = [f"{field} is set" for field in ("hostNetwork", "hostPID", "hostIPC") if pod.get(field)]
    for volume in pod.get("volumes", ()):
        found += [f"volume {kind}" for kind in volume.keys() - {"name"} - VOLUMES]
    whole = pod.get("securityContext", {})
    for container in [*pod.get("initContainers", ()), *pod["containers"]]:
        found += [f"{container['name']}: {text}" for text in _refused(container, whole)]
    return found


def _refused(container: Body, whole: Body) -> list[str]:
    own = container.get("securityContext", {})
    merged = whole | own
    found = [] if merged.get("runAsNonRoot") is True else ["runAsNonRoot is not true"]
    if merged.get("runAsUser") == 0:
        found.append("runAsUser is 0")
    if merged.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        found.append("no seccompProfile")
    if own.get("allowPrivilegeEscalation") is not False:
        found.append("allowPrivilegeEscalation is not false")
    capabilities = own.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        found.append("capabilities")
    if own.get("privileged") or any("hostPort" in port for port in container.get("ports", ())):
        found.append("privileged or on a host's port")
    return found


@pytest.mark.parametrize("name", sets())
def test_every_pod_satisfies_restricted_and_writes_only_where_it_may(name: str) -> None:
    found = list(pods(objects(*values(name))))
    for pod, spec in found:
        assert violations(spec) == [], pod
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, pod
            assert container["resources"]["requests"], pod
            assert container["resources"]["limits"]["memory"], pod
        assert all(
            "sizeLimit" in volume.get("emptyDir", {"sizeLimit": ""}) for volume in spec.get("volumes", ())
        )
    assert len(found) >= 4


def _no_seccomp(pod: Body) -> None:
    del pod["securityContext"]["seccompProfile"]


def _root(pod: Body) -> None:
    pod["securityContext"]["runAsUser"] = 0


def _escalates(pod: Body) -> None:
    del pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"]


def _host_path(pod: Body) -> None:
    pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}})


@pytest.mark.parametrize("spoil", [_no_seccomp, _root, _escalates, _host_path])
def test_a_pod_that_violates_restricted_is_found(spoil: Callable[[Body], None]) -> None:
    pod = copy.deepcopy(dict(pods(objects()))["Deployment/lake-gateway"])
    spoil(pod)
    assert len(violations(pod)) == 1


# --- what belongs together


@pytest.mark.parametrize("name", sets())
def test_every_service_selects_one_deployment_and_a_port_that_it_has(name: str) -> None:
    bodies = objects(*values(name))
    deployments = of_kind(bodies, "Deployment").values()
    for service in of_kind(bodies, "Service").values():
        selector = service["spec"]["selector"].items()
        chosen = [
            one for one in deployments if selector <= one["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert len(chosen) == 1, service["metadata"]["name"]
        (container,) = chosen[0]["spec"]["template"]["spec"]["containers"]
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= {
            one["name"] for one in container["ports"]
        }


@pytest.mark.parametrize("name", sets())
def test_what_pods_refer_to_is_there_or_was_named_by_the_user(name: str) -> None:
    bodies = objects(*values(name))
    there = {(body["kind"], body["metadata"]["name"]) for body in bodies}
    given = {"default", "lake-keys", "lake-s3", "lake-s3-read", "lake-proxies", "lakehouse-peer-key"}
    for pod, spec in pods(bodies):
        for kind, referred in _references(spec):
            assert (kind, referred) in there or referred in given, f"{pod} → {kind}/{referred}"


def _references(spec: Body) -> list[tuple[str, str]]:
    found = [("ServiceAccount", spec["serviceAccountName"])] if "serviceAccountName" in spec else []
    for volume in spec.get("volumes", ()):
        if "configMap" in volume:
            found.append(("ConfigMap", volume["configMap"]["name"]))
        if "secret" in volume:
            found.append(("Secret", volume["secret"]["secretName"]))
        if "persistentVolumeClaim" in volume:
            found.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
    for container in spec["containers"]:
        sources = [one["valueFrom"]["secretKeyRef"] for one in container["env"] if "secretKeyRef" in str(one)]
        sources += [one["secretRef"] for one in container.get("envFrom", ()) if "secretRef" in one]
        maps = [
            one["valueFrom"]["configMapKeyRef"] for one in container["env"] if "configMapKeyRef" in str(one)
        ]
        found += [("ConfigMap", source["name"]) for source in maps]
        found += [("Secret", source["name"]) for source in sources]
    return found


@pytest.mark.parametrize("name", sets())
def test_only_pods_that_ask_kubernetes_have_a_token(name: str) -> None:
    with_token = {pod for pod, spec in pods(objects(*values(name))) if spec["automountServiceAccountToken"]}
    assert {pod.rpartition("-")[2] for pod in with_token} <= {"gateway", "operator", "test"}


def test_settings_of_pods_are_settings() -> None:
    from lakehouse.settings import ENV_PREFIX, Settings

    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for name in sets():
        for deployment in of_kind(objects(*values(name)), "Deployment").values():
            (container,) = deployment["spec"]["template"]["spec"]["containers"]
            if container["name"] == "lakehouse":
                told = {one["name"] for one in container["env"] if one["name"].startswith(ENV_PREFIX)}
                assert told <= known, deployment["metadata"]["name"]


def test_settings_of_the_operator_are_settings() -> None:
    from lakehouse_operator.settings import ENV_PREFIX, Settings

    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for name in sets():
        for deployment, body in of_kind(objects(*values(name)), "Deployment").items():
            if deployment.endswith("-operator"):
                (container,) = body["spec"]["template"]["spec"]["containers"]
                told = [one["name"] for one in container["env"] if one["name"].startswith(ENV_PREFIX)]
                assert set(told) <= known
                assert len(told) == len(set(told)) >= 12


def operator_settings(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """As the operator itself reads them."""
    from lakehouse_operator.settings import load

    deployments = of_kind(objects(*values(name)), "Deployment")
    (body,) = (body for key, body in deployments.items() if key.endswith("-operator"))
    (container,) = body["spec"]["template"]["spec"]["containers"]
    for key, value in environment(container).items():
        monkeypatch.setenv(key, value)
    return load(namespace=NAMESPACE)


def test_the_operator_reads_what_the_chart_says(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = operator_settings(monkeypatch, "production")
    assert settings.image == f"registry.example.com/data/lakehouse:0.1.0@sha256:{'1' * 64}"
    assert settings.image_pull_secrets == ("registry-key",)
    assert settings.namespaces == (NAMESPACE,)
    assert settings.default_s3_endpoint == "https://s3.example.com"
    assert (settings.default_s3_bucket, settings.default_s3_prefix) == ("lake-data", "team/a/")
    assert settings.default_credentials_secret == "lake-s3"
    assert settings.pod_defaults == {
        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}},
        "nodeSelector": {"example.com/disk": "fast"},
        "cache": {"size": "50Gi"},
        "serviceAccountName": "lake-index",
        "labels": {"example.com/team": "data"},
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"}],
    }
    assert (settings.routes_configmap, settings.lease_name) == ("vectors-routes", "vectors-operator")
    assert settings.log_level == "WARNING"


def test_who_reaches_the_store_checks_it_against_the_certificates_that_were_given() -> None:
    bodies = objects(*values("cluster"))
    assert of_kind(bodies, "ConfigMap")["lake-ca"]["data"]["ca.crt"].startswith(
        "-----BEGIN CERTIFICATE-----\n"
    )
    for name, body in of_kind(bodies, "Deployment").items():
        template = body["spec"]["template"]
        (container,) = template["spec"]["containers"]
        given = {one["name"]: one for one in container["env"]}
        mounts = [one["mountPath"] for one in container["volumeMounts"]]
        reaches = name.endswith(("-pool", "-query"))
        assert ("AWS_CA_BUNDLE" in given, "/etc/lakehouse/ca" in mounts) == (reaches, reaches), name
        asked = "LAKEHOUSE_OPERATOR_DEFAULT_S3_CA_BUNDLE" in given
        assert asked == name.endswith("-operator"), name
        stamped = "lakehouse.agentview.dev/ca" in template["metadata"]["annotations"]
        assert stamped == (reaches or asked), name


@pytest.mark.parametrize("name", sets())
def test_who_reaches_the_store_has_its_secret_as_files_that_anybody_in_the_pod_may_read(name: str) -> None:
    for pod, spec in pods(objects(*values(name))):
        (container,) = spec["containers"]
        given = [one["secretRef"]["name"] for one in container.get("envFrom", ()) if "secretRef" in one]
        volumes = [one for one in spec.get("volumes", ()) if one["name"] != "peer-key"]
        mounted = [one for one in volumes if "secret" in one]
        if "-minio" not in pod:
            assert [one["secret"] for one in mounted] == [
                {"secretName": secret, "defaultMode": 0o444} for secret in given
            ], pod
        mounts = {one["name"]: one for one in container.get("volumeMounts", ())}
        told = environment(container).get("LAKEHOUSE_S3_CREDENTIALS_DIR") if mounted else None
        for volume in mounted:
            assert (mounts[volume["name"]]["mountPath"], True) == (
                told,
                mounts[volume["name"]]["readOnly"],
            ), pod


def test_a_cluster_is_called_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = operator_settings(monkeypatch, "cluster")
    assert (settings.cluster, settings.cluster_configmap) == ("north-1", "lake-cluster")


@pytest.mark.parametrize("prefix", ["", "/", "/team/a/", "team/{namespace}", "{namespace}"])
def test_the_operator_and_the_pool_read_a_prefix_alike(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    from lakehouse_operator.settings import load
    from lakehouse_operator.targets import target

    given = {}
    for name, body in of_kind(objects("--set-json", f'storage.s3.prefix="{prefix}"'), "Deployment").items():
        given[name] = environment(body["spec"]["template"]["spec"]["containers"][0])
    for key, value in given["lake-operator"].items():
        monkeypatch.setenv(key, value)
    where = target(NAMESPACE, None, load(namespace=NAMESPACE))
    assert where.url == given["lake-pool"]["LAKEHOUSE_DATA"] == given["lake-query"]["LAKEHOUSE_DATA"]
    assert (where.prefix == "") is (prefix == "/")


def test_every_object_and_pod_has_the_labels_that_are_common_to_all() -> None:
    for body in objects(*values("namespaces")):
        labels = [body["metadata"]["labels"]]
        if "template" in body.get("spec", {}):
            labels.append(body["spec"]["template"]["metadata"]["labels"])
        assert all(one["example.com/team"] == "data" for one in labels), body["metadata"]["name"]


def test_a_label_that_a_user_adds_takes_no_selectors_place() -> None:
    mine = '{"app.kubernetes.io/component":"mine","example.com/team":"data"}'
    arguments = ("--set-json", f"commonLabels={mine},pool.podLabels={mine},operator.podLabels={mine}")
    rendered = text("--set", "crds.enabled=false", *arguments)
    bodies = tuple(loaded(rendered))  # a name that is there twice would be refused
    for component in ("pool", "operator"):
        body = of_kind(bodies, "Deployment")[f"lake-{component}"]
        labels = body["spec"]["template"]["metadata"]["labels"]
        assert body["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert labels["example.com/team"] == "data"


def test_a_component_may_be_somebody_of_its_own() -> None:
    bodies = objects(*values("production"))
    account = of_kind(bodies, "ServiceAccount")["lake-writer"]
    assert account["metadata"]["annotations"] == {
        "example.com/identity": "writer",
        "eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/lake",
    }
    who = {name: spec.get("serviceAccountName") for name, spec in pods(bodies)}
    assert who["Deployment/vectors-pool"] == "lake-writer"
    assert who["Deployment/vectors-query"] == "vectors-query"
    named = objects("--set", "serviceAccount.create=false,operator.serviceAccount.name=keeper")
    assert of_kind(named, "ServiceAccount") == {}
    who = {name: spec.get("serviceAccountName") for name, spec in pods(named)}
    assert (who["Deployment/lake-operator"], who["Deployment/lake-pool"]) == ("keeper", "default")
    subjects = of_kind(named, "RoleBinding")["lake-operator"]["subjects"]
    assert [one["name"] for one in subjects] == ["keeper"]


def test_components_may_share_a_service_account() -> None:
    shared = "query.serviceAccount.name=s3,pool.serviceAccount.name=s3,gateway.serviceAccount.name=default"
    bodies = objects("--set", shared + ",query.serviceAccount.annotations.role=reader")
    accounts = [one["metadata"] for one in bodies if one["kind"] == "ServiceAccount"]
    assert sorted(one["name"] for one in accounts) == ["lake-operator", "lake-test", "s3"]
    (s3,) = (one for one in accounts if one["name"] == "s3")
    assert s3["annotations"] == {"role": "reader"}


@pytest.mark.parametrize(
    ("size", "kept"), [("20Gi", 15032385536), ("1.5Gi", 1127428915), ("500M", 350000000)]
)
def test_files_are_kept_for_sql_within_what_a_pod_may_take_of_the_disk(size: str, kept: int) -> None:
    pod = dict(pods(objects("--set", f"query.cache.size={size}")))["Deployment/lake-query"]
    assert environment(pod["containers"][0])["LAKEHOUSE_CACHE_BYTES_MAX"] == str(kept)
    assert {"name": "tmp", "emptyDir": {"sizeLimit": size}} in pod["volumes"]


def test_a_minio_takes_its_key_from_a_secret_of_the_users() -> None:
    bodies = objects("--set", "minio.enabled=true,minio.existingSecret=mine")
    assert "lake-minio" not in of_kind(bodies, "Secret")
    for name, spec in pods(bodies):
        assert "lake-minio'" not in str(spec), name
        assert ("'mine'" in str(spec)) == (name.split("-")[1] not in ("gateway", "test")), name


def test_what_is_said_of_every_pod_is_said_of_those_that_the_operator_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lakehouse_operator.settings import load

    bodies = objects("--set", "podSecurityContext.fsGroup=2000")
    for name, spec in pods(bodies):
        assert spec["securityContext"]["fsGroup"] == 2000, name
        assert violations(spec) == [], name
    (container,) = of_kind(bodies, "Deployment")["lake-operator"]["spec"]["template"]["spec"]["containers"]
    for key, value in environment(container).items():
        monkeypatch.setenv(key, value)
    assert load(namespace=NAMESPACE).pod_defaults["podSecurityContext"] == {"fsGroup": 2000}


def test_the_test_declares_where_somebody_watches() -> None:
    def declared(*arguments: str) -> tuple[str, str, list[str]]:
        bodies = objects(*arguments)
        told = environment(of_kind(bodies, "Pod")["lake-test"]["spec"]["containers"][0])
        roles = [one for one in bodies if one["kind"] == "Role" and one["metadata"]["name"] == "lake-test"]
        return told["DECLARED"], told["NAMESPACE"], [one["metadata"]["namespace"] for one in roles]

    assert declared() == ("true", "shop", ["shop"])
    assert declared("--set", "watchNamespaces={search,shop}") == ("true", "shop", ["shop"])
    assert declared("--set", "watchNamespaces={*}") == ("true", "shop", ["shop"])
    assert declared("--set", "watchNamespaces={search,find}") == ("false", "search", [])
    told = ("--set", "watchNamespaces={search,find},tests.declared=true")
    assert declared(*told) == ("true", "search", ["search"])
    pod = dict(pods(objects(*told)))["Pod/lake-test"]
    assert (
        environment(pod["containers"][0])["GATEWAY_NAMESPACE"] == "shop"
    )  # whose gateway knows not of `search`
    assert declared("--set", "tests.declared=false") == ("false", "shop", [])
    assert declared("--set", "rbac.create=false") == ("false", "shop", [])
    assert declared("--set", "rbac.create=false,tests.declared=true") == ("true", "shop", [])


def test_the_operator_keeps_the_namespaces_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert operator_settings(monkeypatch, "namespaces").namespaces == ("shop", "search")
    assert operator_settings(monkeypatch, "cluster").clusterwide


def test_the_pool_and_declared_indexes_share_the_namespaces_prefix() -> None:
    for name, data in (("default", "s3://lake-data/shop"), ("production", "s3://lake-data/team/a")):
        deployments = of_kind(objects(*values(name)), "Deployment")
        (pool,) = (body for key, body in deployments.items() if key.endswith("-pool"))
        (container,) = pool["spec"]["template"]["spec"]["containers"]
        assert environment(container)["LAKEHOUSE_DATA"] == data


@pytest.mark.parametrize("component", ["gateway", "pool", "query"])
@pytest.mark.parametrize("name", ["default", "production", "cluster"])
def test_a_server_starts_with_what_its_pod_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, component: str
) -> None:
    from lakehouse.settings import load

    bodies = objects(*values(name))
    deployments = of_kind(bodies, "Deployment")
    (body,) = (body for key, body in deployments.items() if key.endswith(f"-{component}"))
    (container,) = body["spec"]["template"]["spec"]["containers"]
    for key, value in environment(container).items():
        monkeypatch.setenv(key, value)
    for secret in (one for one in container["env"] if "secretKeyRef" in str(one)):
        chosen = secret["valueFrom"]["secretKeyRef"]
        there = of_kind(bodies, "Secret").get(chosen["name"], {"data": {}})["data"]
        given = {"keys.json": "W10=" if name == "cluster" else GIVEN}
        data = there.get(chosen["key"], given[chosen["key"]])
        monkeypatch.setenv(secret["name"], base64.b64decode(data).decode())
    settings = load()
    assert settings.host == "0.0.0.0"
    assert settings.insecure is (name == "cluster")
    assert bool(settings.keys) is (name != "cluster")
    assert (settings.peer_key_file is not None) is (component != "query")  # who asks its like, and is asked
    if settings.peer_key_file is not None:
        (mount,) = (one for one in container["volumeMounts"] if one["name"] == "peer-key")
        assert settings.peer_key_file == Path(mount["mountPath"]) / "peer-key"
    assert (
        settings.drain_s + settings.shutdown_s
        < body["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    )
    assert (settings.peers is not None) is (component == "pool")
    assert (settings.routes is not None) is (component == "gateway")


GIVEN = base64.b64encode(b'[{"name": "app", "right": "read", "sha256": "' + b"4" * 64 + b'"}]').decode()
"""What the user's own Secret holds."""
