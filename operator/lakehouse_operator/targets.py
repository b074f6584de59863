"""Which bucket a resource lies in: what its spec says, over what the installation says.

Pure; two resources that say the same have equal targets, which is how they share one connection and one look at it.
What this module does not do: open a bucket, or read the Secret that a target names (`storage`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lakehouse.core.errors import Invalid
from lakehouse.core.names import checked_key
from lakehouse_operator.settings import NAMESPACE_WORD, Settings


@dataclass(frozen=True, slots=True)
class Target:
    """A place in a bucket, and how it is reached; holds no secret."""

    namespace: str
    """Of the resource, and of the Secret."""
    bucket: str
    prefix: str
    """Without a slash at either end; empty for the whole bucket."""
    endpoint: str = ""
    """Empty: AWS."""
    region: str = ""
    """Empty: what the environment of who reaches it says."""
    secret: str = ""
    """Empty: the pods' own identity."""
    ca_bundle: str = field(default="", repr=False)
    """PEM; empty: the system's."""

    @property
    def url(self) -> str:
        """As the data plane takes it."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def reached_alike(self, other: "Target") -> bool:
        """Whether who reaches one reaches the other, as far as addresses and credentials go."""
        return self._reached == other._reached

    @property
    def _reached(self) -> tuple[str, ...]:
        return self.namespace, self.endpoint, self.region, self.secret, self.ca_bundle


def target(namespace: str, storage: Mapping[str, Any] | None, settings: Settings) -> Target:
    """Where a resource of `namespace` with this `spec.storage` lies.

    Raises `Invalid` where nobody names a bucket, or the prefix can be none.
    """
    asked = storage or {}
    s3 = asked.get("s3") or {}
    bucket = s3.get("bucket") or settings.default_s3_bucket
    if not bucket:
        raise Invalid(
            "no bucket: give spec.storage.s3.bucket, or install the operator with a default bucket "
            f"(LAKEHOUSE_OPERATOR_DEFAULT_S3_BUCKET). namespace=`{namespace}`"
        )
    given = s3.get("prefix")
    default = settings.default_s3_prefix.replace(NAMESPACE_WORD, namespace)
    prefix = (default if given is None else given).strip("/")
    # The installation's credentials are for the installation's endpoint, and go nowhere else.
    own = bool(s3.get("endpoint")) and s3["endpoint"] != settings.default_s3_endpoint
    secret = (asked.get("credentialsSecretRef") or {}).get("name", "")
    return Target(
        namespace=namespace,
        bucket=bucket,
        prefix=_checked_prefix(prefix),
        endpoint=s3.get("endpoint") or settings.default_s3_endpoint,
        region=s3.get("region") or settings.default_s3_region,
        secret=secret or ("" if own else settings.default_credentials_secret),
        ca_bundle=s3.get("caBundle") or ("" if own else settings.default_s3_ca_bundle),
    )


def _checked_prefix(prefix: str) -> str:
    try:
        return checked_key(prefix) if prefix else ""
    except Invalid as error:
        raise Invalid(f"storage.s3.prefix cannot be used: {error.message}") from error
