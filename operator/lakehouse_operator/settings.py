"""The operator's settings: `LAKEHOUSE_OPERATOR_*` variables, read once.

What is for the data plane's pods (image, keys, the bucket that a resource does not name) is handed on, never
interpreted here.  What settings do not hold: credentials; those are Secrets, read through the API when needed.
"""

import enum
import json
import socket
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from lakehouse.core.errors import Invalid

ENV_PREFIX = "LAKEHOUSE_OPERATOR_"
ALL_NAMESPACES = "*"
NAMESPACE_WORD = "{namespace}"
"""In the default prefix: the namespace of the resource."""
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


POD_DEFAULTS = frozenset(
    {
        "affinity",
        "annotations",
        "cache",
        "env",
        "labels",
        "nodeSelector",
        "podSecurityContext",
        "priorityClassName",
        "resources",
        "serviceAccountName",
        "tolerations",
        "topologySpreadConstraints",
    }
)
"""What may be said of all index pods and Jobs."""
OWN_VARIABLES = frozenset(
    {
        "AWS_CA_BUNDLE",
        "LAKEHOUSE_DATA",
        "LAKEHOUSE_DECLARED",
        "LAKEHOUSE_DRAIN_S",
        "LAKEHOUSE_HOST",
        "LAKEHOUSE_INDEX",
        "LAKEHOUSE_INSECURE",
        "LAKEHOUSE_KEYS",
        "LAKEHOUSE_PEER_KEY",
        "LAKEHOUSE_PEER_KEY_FILE",
        "LAKEHOUSE_PORT",
        "LAKEHOUSE_READ_ONLY",
        "LAKEHOUSE_ROLES",
        "LAKEHOUSE_S3_CREDENTIALS_DIR",
        "LAKEHOUSE_S3_ENDPOINT",
        "LAKEHOUSE_S3_REGION",
        "LAKEHOUSE_SHARD",
        "LAKEHOUSE_SHARD_URL",
        "LAKEHOUSE_SHUTDOWN_S",
        "LAKEHOUSE_TASK",
    }
)
"""What the operator tells its pods, some of it only at times; nobody else may."""


def _own_namespace() -> str:
    try:
        return NAMESPACE_FILE.read_text("utf-8").strip() or "default"
    except OSError:
        return "default"


class LogFormat(enum.StrEnum):
    """How log lines look."""

    JSON = "json"
    TEXT = "text"


class PullPolicy(enum.StrEnum):
    """As Kubernetes has it."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore")

    namespace: str = Field(
        default_factory=_own_namespace,
        min_length=1,
        description="The namespace of the release: of the lease and the routing table. Default: the pod's own.",
    )
    watch_namespaces: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Namespaces served, separated by commas; `*` is all. Default: the release's own.",
    )
    image: str = Field(default="", description="The data plane's image, for pods and Jobs.")
    image_pull_policy: PullPolicy = Field(
        default=PullPolicy.IF_NOT_PRESENT,
        description="`Always`, `IfNotPresent` or `Never`; of pods and Jobs.",
    )
    image_pull_secrets: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Names of Secrets to pull the image with, separated by commas; they must be in each namespace.",
    )
    default_s3_endpoint: str = Field(default="", description="For resources that name none. Empty: AWS.")
    default_s3_bucket: str = Field(default="", description="For resources that name none.")
    default_s3_region: str = Field(
        default="",
        description="For resources that name none. Empty: what their Secret says under AWS_REGION, else boto3 finds it "
        "in each pod.",
    )
    default_s3_prefix: str = Field(
        default=NAMESPACE_WORD,
        description="For resources that name none; `{namespace}` in it is the resource's, and `/` the whole bucket. "
        "Where several namespaces are served it must hold `{namespace}`: the same name in two of them is two things.",
    )
    default_s3_ca_bundle: str = Field(
        default="",
        description="PEM: what the default endpoint is checked against, for resources that name no endpoint.",
    )
    default_credentials_secret: str = Field(
        default="",
        description="A Secret, in each resource's own namespace, with the credentials of the default bucket. "
        "Empty: the pods' own identity.",
    )
    keys: str = Field(default="", description="JSON list of hashed keys, handed to pods as LAKEHOUSE_KEYS.")
    cluster: str = Field(
        default="",
        description="How this cluster signs what it owns in buckets. Default: what the ConfigMap says, which is made "
        "at the first start with the uid of the namespace kube-system, or where that may not be read, of the "
        "release's own.",
    )
    cluster_configmap: str = Field(
        default="lakehouse-cluster",
        min_length=1,
        description="The ConfigMap, in the release's namespace, that keeps how this cluster signs.",
    )
    routes_configmap: str = Field(
        default="lakehouse-routes",
        description="The ConfigMap, in the release's namespace, that tells the gateway where indexes are.",
    )
    helm_release: str = Field(
        default="",
        description="The Helm release that also makes the Secret with the peer key of its namespace: one that is made "
        "in its place says that it is the release's, so that helm can upgrade and roll back. Default: none does.",
    )
    lease_name: str = Field(
        default="lakehouse-operator", min_length=1, description="The Lease that makes one replica the leader."
    )
    identity: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        description="This replica in the Lease. Default: its host name.",
    )
    resync_s: float = Field(
        default=300.0, ge=1, description="Seconds in which everything is looked at again, spread evenly."
    )
    workers: int = Field(default=4, ge=1, le=64, description="Resources looked at, at the same time.")
    jobs_at_once: int = Field(default=4, ge=1, description="Jobs running at the same time, of all resources.")
    health_port: int = Field(
        default=8080,
        ge=0,
        le=65_535,
        description="Port of /healthz, /readyz and /metrics; 0 takes a free one.",
    )
    health_host: str = Field(default="0.0.0.0", description="Address of the same.")
    pod_defaults: Annotated[dict[str, Any], NoDecode] = Field(
        default_factory=dict,
        description="JSON object with what a resource's spec.pod, spec.job or spec.storage.cache leaves open: "
        "`resources`, `nodeSelector`, `tolerations`, `affinity`, `topologySpreadConstraints` and `cache`; and what is "
        "so for all pods and Jobs: `priorityClassName`, `serviceAccountName`, `podSecurityContext`, `annotations`, "
        "`labels`, and `env` of names and values.",
    )
    log_format: LogFormat = Field(default=LogFormat.JSON, description="`json` or `text`.")
    log_level: str = Field(
        default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="The least that is logged."
    )

    @field_validator("watch_namespaces", "image_pull_secrets", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
        return value

    @field_validator("default_s3_prefix")
    @classmethod
    def _apart(cls, value: str, info: ValidationInfo) -> str:
        watched = info.data.get("watch_namespaces", ())
        if NAMESPACE_WORD not in value and (len(watched) > 1 or ALL_NAMESPACES in watched):
            raise ValueError(
                f"several namespaces are served and would share one prefix: put {NAMESPACE_WORD} into it"
            )
        return value

    @field_validator("pod_defaults", mode="before")
    @classmethod
    def _object(cls, value: object) -> object:
        return json.loads(value or "{}") if isinstance(value, str) else value

    @field_validator("pod_defaults")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(value.keys() - POD_DEFAULTS)
        if unknown:
            raise ValueError(f"not known: {', '.join(unknown)}; there are {', '.join(sorted(POD_DEFAULTS))}")
        env = value.get("env") or ()
        if not all(isinstance(one, dict) and one.keys() == {"name", "value"} for one in env):
            raise ValueError("env is a list of names and values")
        given = [one["name"] for one in env]
        ours = sorted(OWN_VARIABLES.intersection(given))
        if ours:
            raise ValueError(f"the operator itself sets these variables: {', '.join(ours)}")
        if len(given) > len(set(given)):
            raise ValueError(f"a variable is given twice: {', '.join(sorted(given))}")
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @property
    def clusterwide(self) -> bool:
        """Whether every namespace is served."""
        return ALL_NAMESPACES in self.watch_namespaces

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Those served; empty when all are."""
        return () if self.clusterwide else self.watch_namespaces or (self.namespace,)

    def serves(self, namespace: str) -> bool:
        """Whether resources of a namespace are ours."""
        return self.clusterwide or namespace in self.namespaces


def load(**given: Any) -> Settings:
    """From the environment; what is `given` goes first.  Raises `Invalid` naming what cannot be right."""
    try:
        return Settings(**given)
    except ValidationError as error:
        found = "; ".join(_told(problem) for problem in error.errors())
        raise Invalid(f"settings cannot be right: {found}") from error
    except SettingsError as error:
        raise Invalid(f"settings cannot be read: {error}") from error


def _told(problem: ErrorDetails) -> str:
    name = f"{ENV_PREFIX}{'_'.join(map(str, problem['loc'])).upper()}"
    told = f"{name}: {problem['msg']}"
    if "pod_defaults" in problem["loc"]:  # what pods are given may be nobody's to read
        return told
    return f"{told}. {name}=`{problem['input']}`"
