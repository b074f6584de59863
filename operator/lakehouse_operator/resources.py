"""The objects that a declared index is made of in a cluster, as plain bodies: the same for the same wish.

A Service for the index; for each shard a Deployment, a headless Service and, from two replicas up, a
PodDisruptionBudget.  Pods keep nothing: their disk is a cache, the bucket the truth.  They satisfy Pod Security
`restricted`.  What this module does not do: Jobs (`jobs`), or anything to a cluster (`children`).
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from lakehouse.control.kinds import API_VERSION, VECTOR_INDEX, VectorIndexSpec
from lakehouse.control.state import Meta, Resource
from lakehouse_operator import names
from lakehouse_operator.settings import Settings
from lakehouse_operator.targets import Target, target

Body = dict[str, Any]

DRAIN_S = 8
"""How long a pod that is to go still answers: until every node and gateway has heard of it."""
SHUTDOWN_S = 20
GRACE_S = DRAIN_S + SHUTDOWN_S + 7
"""Before the kubelet kills: what a pod takes by itself, and some seconds for a slow node."""
PROGRESS_S = 600
"""A rollout that has not moved for so long is stuck, and holds up no other index."""
SCRATCH = "/tmp"
"""The image's HOME and TMPDIR; nothing else in it can be written to."""
PLACEMENT = ("nodeSelector", "tolerations", "affinity", "priorityClassName")
CERTIFICATES = "/etc/lakehouse/ca"
PEM = "ca.crt"
CREDENTIALS = "/etc/lakehouse/s3"
"""The Secret as files: the kubelet replaces them when it changes, so who rotates a key restarts no pod."""
PEERS = "/etc/lakehouse/peers"
"""The same of the Secret with the key that index pods show each other; Jobs show nobody anything."""


def owner(resource: Resource[Any]) -> Body:
    """The reference that makes a child go with its resource."""
    return {
        "apiVersion": API_VERSION,
        "kind": resource.kind,
        "name": resource.meta.name,
        "uid": resource.meta.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def metadata(resource: Resource[Any], name: str, labels: Mapping[str, str], **annotations: str) -> Body:
    """Of a child."""
    found: Body = {
        "name": name,
        "namespace": resource.meta.namespace,
        "labels": dict(labels),
        "ownerReferences": [owner(resource)],
    }
    return found | ({"annotations": annotations} if annotations else {})


# ---- an index -------------------------------------------------------------------------------------------------------


def index(
    resource: Resource[VectorIndexSpec], where: Target, settings: Settings, *, suspended: bool
) -> list[Body]:
    """Everything that serves an index, in the order in which it is made; without pods while `suspended`."""
    shards = range(resource.spec.shards)
    return [
        *certificates(resource, where),
        _index_service(resource),
        *(_shard_service(resource, shard) for shard in shards),
        *(body for shard in shards for body in _budget(resource, shard)),
        *(_deployment(resource, shard, where, settings, suspended=suspended) for shard in shards),
    ]


def certificates(resource: Resource[Any], where: Target) -> Iterator[Body]:
    """The ConfigMap with the bucket's certificates, where it has its own."""
    if where.ca_bundle:
        component = "index" if resource.kind == VECTOR_INDEX else "ingest"
        name = names.certificates(resource.kind, resource.meta.name)
        yield {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(resource, name, labels(resource, component)),
            "data": {PEM: where.ca_bundle},
        }


def labels(resource: Resource[Any], component: str) -> dict[str, str]:
    """Of a child of an index or a dataset."""
    return names.labels(
        component, **{"index" if resource.kind == VECTOR_INDEX else "dataset": resource.meta.name}
    )


def _index_service(resource: Resource[VectorIndexSpec]) -> Body:
    name = resource.meta.name
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(resource, names.service(name), labels(resource, "index")),
        "spec": {"type": "ClusterIP", "selector": names.selector(name), "ports": [_port()]},
    }


def _shard_service(resource: Resource[VectorIndexSpec], shard: int) -> Body:
    name = resource.meta.name
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(resource, names.shard(name, shard), _of_shard(resource, shard)),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": False,
            "selector": names.selector(name, shard),
            "ports": [_port()],
        },
    }


def _budget(resource: Resource[VectorIndexSpec], shard: int) -> Iterator[Body]:
    if resource.spec.replicas < 2:
        return  # it would keep a node from ever being drained
    yield {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(resource, names.shard(resource.meta.name, shard), _of_shard(resource, shard)),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": names.selector(resource.meta.name, shard)},
        },
    }


def _of_shard(resource: Resource[VectorIndexSpec], shard: int) -> dict[str, str]:
    return labels(resource, "index") | {names.SHARD_LABEL: str(shard)}


def _port() -> Body:
    return {"name": "http", "port": names.PORT, "protocol": "TCP", "targetPort": "http"}


# ---- its pods -------------------------------------------------------------------------------------------------------


def _deployment(
    resource: Resource[VectorIndexSpec], shard: int, where: Target, settings: Settings, *, suspended: bool
) -> Body:
    spec = resource.spec
    told = {names.RELEASE_ANNOTATION: release(settings), names.ASKED_ANNOTATION: asked(resource)}
    if suspended:
        told[names.SUSPENDED_ANNOTATION] = "true"
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(
            resource, names.shard(resource.meta.name, shard), _of_shard(resource, shard), **told
        ),
        "spec": {
            "replicas": 0 if suspended else spec.replicas,
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": PROGRESS_S,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": names.selector(resource.meta.name, shard)},
            "template": _template(resource, shard, where, settings),
        },
    }


def release(settings: Settings) -> str:
    """A hash of what the operator itself decides about pods: its image, its settings, and the code of this module."""
    meta = Meta("reference", "reference", "uid", 1, datetime(2026, 1, 1, tzinfo=UTC))
    where = target("reference", {"s3": {"bucket": settings.default_s3_bucket or "reference"}}, settings)
    made = _template(Resource(VECTOR_INDEX, meta, VectorIndexSpec(1)), 0, where, settings)
    return names.digest_of(made)


def asked(resource: Resource[VectorIndexSpec]) -> str:
    """A hash of what an index's spec itself says about its pods, as it is written there."""
    spec = resource.spec
    follows = spec.source.dataset if spec.source is not None and spec.read_only else None
    return names.digest_of([spec.pod or {}, spec.storage or {}, follows])


def _template(resource: Resource[VectorIndexSpec], shard: int, where: Target, settings: Settings) -> Body:
    name = resource.meta.name
    wanted = {**settings.pod_defaults, **(resource.spec.pod or {})}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
    }
    of_shard = {"matchLabels": names.selector(name, shard)}
    made, serving = pod(resource, where, settings, wanted), container(where, settings, wanted)
    serving |= {
        "name": "lakehouse",
        "args": ["serve"],
        "ports": [{"name": "http", "containerPort": names.PORT, "protocol": "TCP"}],
        "env": [*environment(where), *_serving(resource, shard, settings), *(wanted.get("env") or ())],
        "volumeMounts": [
            *serving["volumeMounts"],
            {"name": "peer-key", "mountPath": PEERS, "readOnly": True},
        ],
        **_probes(),
    }
    return {
        "metadata": pod_metadata(_of_shard(resource, shard), wanted),
        "spec": {
            **made,
            "volumes": [*made["volumes"], _secret_files("peer-key", names.PEER_KEY_SECRET)],
            "terminationGracePeriodSeconds": GRACE_S,
            # One that says nothing of whom it spreads is about the shard: the installation cannot name it.
            "topologySpreadConstraints": [
                {**one, "labelSelector": one.get("labelSelector") or of_shard}
                for one in wanted.get("topologySpreadConstraints") or [spread]
            ],
            "containers": [serving],
        },
    }


def _serving(resource: Resource[VectorIndexSpec], shard: int, settings: Settings) -> list[Body]:
    meta, spec = resource.meta, resource.spec
    told = {
        "LAKEHOUSE_ROLES": "vectors",
        "LAKEHOUSE_HOST": "0.0.0.0",
        "LAKEHOUSE_PORT": str(names.PORT),
        "LAKEHOUSE_KEYS": settings.keys,
        "LAKEHOUSE_INSECURE": "" if settings.keys else "true",  # the whole installation is open then
        "LAKEHOUSE_PEER_KEY_FILE": f"{PEERS}/{names.PEER_KEY}",
        "LAKEHOUSE_INDEX": meta.name,
        "LAKEHOUSE_SHARD": str(shard),
        "LAKEHOUSE_SHARD_URL": names.shard_url(meta.name, str(meta.namespace)),
        "LAKEHOUSE_DECLARED": declared(resource),
        "LAKEHOUSE_READ_ONLY": f"it follows dataset {spec.source.dataset}"
        if spec.source and spec.read_only
        else "",
        "LAKEHOUSE_DRAIN_S": str(DRAIN_S),
        "LAKEHOUSE_SHUTDOWN_S": str(SHUTDOWN_S),
    }
    return variables(told)


def declared(resource: Resource[Any]) -> str:
    """What a refusal over HTTP names."""
    return f"{resource.kind}/{resource.meta.namespace}/{resource.meta.name}"


def _probes() -> Body:
    alive = {"httpGet": {"path": "/livez", "port": "http"}}
    return {
        # Two minutes: a cold node that reads the image's files for the first time.
        "startupProbe": {**alive, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 120},
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": "http"},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": 2,
        },
        # A minute: killing heals only what is stuck for good, and a busy node is not that.
        "livenessProbe": {**alive, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
    }


# ---- what pods and Jobs share ---------------------------------------------------------------------------------------


def pod_metadata(labels: Mapping[str, str], wanted: Mapping[str, Any]) -> Body:
    """Of a pod: our labels, and what else is `wanted` beside them."""
    annotations = wanted.get("annotations")
    found: Body = {"labels": {**(wanted.get("labels") or {}), **labels}}
    return found | ({"annotations": dict(annotations)} if annotations else {})


def pod(resource: Resource[Any], where: Target, settings: Settings, wanted: Mapping[str, Any]) -> Body:
    """The parts of a pod's spec that every pod of ours has; `wanted` may place it."""
    storage = resource.spec.storage or {}
    size = (storage.get("cache") or wanted.get("cache") or {}).get("size")
    volumes: list[Body] = [{"name": "scratch", "emptyDir": {"sizeLimit": size} if size else {}}]
    if where.ca_bundle:
        name = names.certificates(resource.kind, resource.meta.name)
        volumes.append({"name": "certificates", "configMap": {"name": name}})
    if where.secret:
        volumes.append(_secret_files("credentials", where.secret))
    secrets = [{"name": name} for name in settings.image_pull_secrets]
    placed = {name: wanted[name] for name in PLACEMENT if wanted.get(name)}
    return {
        # Always said: where it is taken back, an older field of the same meaning would stay and count.
        "serviceAccountName": wanted.get("serviceAccountName") or "default",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            **(wanted.get("podSecurityContext") or {}),
        },
        "volumes": volumes,
        **({"imagePullSecrets": secrets} if secrets else {}),
        **placed,
    }


def _secret_files(volume: str, secret: str) -> Body:
    """A volume of a Secret's files, which anybody in the pod may read: nobody there is root."""
    return {"name": volume, "secret": {"secretName": secret, "defaultMode": 0o444}}


def container(where: Target, settings: Settings, wanted: Mapping[str, Any]) -> Body:
    """The parts of a container that every container of ours has."""
    mounts: list[Body] = [{"name": "scratch", "mountPath": SCRATCH}]
    if where.ca_bundle:
        mounts.append({"name": "certificates", "mountPath": CERTIFICATES, "readOnly": True})
    if where.secret:
        mounts.append({"name": "credentials", "mountPath": CREDENTIALS, "readOnly": True})
    return {
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy.value,
        "resources": wanted.get("resources") or {},
        # For what else it says, such as AWS_REGION; its keys are taken from the files.
        "envFrom": [{"secretRef": {"name": where.secret}}] if where.secret else [],
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def environment(where: Target) -> list[Body]:
    """How every pod of ours finds the bucket."""
    told = {
        "LAKEHOUSE_DATA": where.url,
        "LAKEHOUSE_S3_ENDPOINT": where.endpoint,
        "LAKEHOUSE_S3_REGION": where.region,
        "LAKEHOUSE_S3_CREDENTIALS_DIR": CREDENTIALS if where.secret else "",
        "AWS_CA_BUNDLE": f"{CERTIFICATES}/{PEM}" if where.ca_bundle else "",
    }
    return variables(told)


def variables(told: Mapping[str, str]) -> list[Body]:
    """As a container has them; what is empty is left out."""
    return [{"name": name, "value": value} for name, value in told.items() if value]


def suspended(body: Mapping[str, Any]) -> bool:
    """Whether a Deployment has no pods because its index is suspended."""
    return (body["metadata"].get("annotations") or {}).get(names.SUSPENDED_ANNOTATION) == "true"
