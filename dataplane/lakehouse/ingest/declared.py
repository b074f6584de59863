"""What a Dataset asks for, as an ingest takes it.

On one machine a source's path leads to a file.  In a cluster there is no such machine: a path there is a key of the
Dataset's own bucket, below its prefix, so that one document serves both.  What this module does not do: read anything.
"""

from lakehouse.control.kinds import DatasetSource, DatasetSpec, IngestMode
from lakehouse.core.errors import Invalid
from lakehouse.core.schema import SchemaPolicy
from lakehouse.ingest.formats import Format
from lakehouse.ingest.sources import FORMS, S3
from lakehouse.ingest.spec import IngestSpec, Mode, Source

IN_BUCKETS = "`s3://bucket/key`, or a key below the Dataset's own prefix"


def spec_of(name: str, spec: DatasetSpec, bucket: str | None = None) -> IngestSpec:
    """The ingest of a Dataset.

    `bucket` is the `s3://bucket/prefix` that keys are below; None: paths are this machine's files.  Raises `Invalid`
    for a local file where there is no machine to find it on.
    """
    return IngestSpec(
        name,
        tuple(_source(source, bucket) for source in spec.sources),
        spec.transform,
        SchemaPolicy(spec.schema_policy),
        spec.schema_fingerprint,
        Mode.APPEND if spec.mode is IngestMode.APPEND else Mode.REPLACE,
        max_rejects=spec.rejects_max,
    )


def _source(source: DatasetSource, bucket: str | None) -> Source:
    uri = source.uri if bucket is None else _in_bucket(source.uri, bucket)
    return Source(uri, Format(source.format) if source.format else None, source.options)


def _in_bucket(uri: str, bucket: str) -> str:
    """The address of what `uri` names in a cluster.  Raises `Invalid`."""
    if uri.startswith(S3):
        return uri
    key = uri.removeprefix("./")
    if "://" in key or key.startswith(("/", "~", "file:", "upload:")):
        raise Invalid(f"a source in a cluster is {IN_BUCKETS}. uri=`{uri}`")
    if not key or any(segment in ("", ".", "..") for segment in key.split("/")):
        raise Invalid(f"not a key: use {IN_BUCKETS}, each as {FORMS.partition(', each ')[2]}. uri=`{uri}`")
    return f"{bucket.rstrip('/')}/{key}"
