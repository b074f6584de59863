"""A bucket on S3, or on what speaks its protocol; tested with MinIO.

`create` is a PUT with `If-None-Match: *`.  The client's own retries are off: they turn a lost answer into a
`PreconditionFailed` for the caller's own write.  So one call is one request (but for listings, downloads, multipart
uploads and denied writes), and `Unavailable.outcome` says what became of it.  Keys live under the bucket's `prefix`.

What it does not do: rely on conditions for DELETE or COPY (MinIO ignores them) or on `If-Match` for writing
(equal contents have equal ETags), use versions, or prove that the store honours `If-None-Match`: see `probe`.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

import boto3
import botocore.config
import botocore.exceptions as sdk
import botocore.session
import urllib3.exceptions

from lakehouse.core.errors import (
    BucketNotFound,
    Conflict,
    CredentialsRefused,
    Invalid,
    LakehouseError,
    NotFound,
    Outcome,
    StorageFull,
    Unavailable,
)
from lakehouse.core.names import checked_key
from lakehouse.runtime import IO_WORKERS, Runtime
from lakehouse.settings import Settings
from lakehouse.store.base import BytesLike, Children, ObjectInfo, checked_range, is_key_folder
from lakehouse.store.credentials import DirectoryProvider

P = ParamSpec("P")
T = TypeVar("T")

PAGE_KEYS = 1_000
"""Keys per LIST answer; S3's own maximum."""
PART_BYTES = 64 << 20
"""Files above this go up in parts and come down in ranges of this size; S3 takes 10,000 parts."""
PARTS_MAX = 10_000
CHUNK_BYTES = 1 << 20
DENIALS_MAX = 3
"""Requests of one PUT before AccessDenied is believed: MinIO answers it, and writes nothing, where another request
deletes the last object beside this one at the same moment (about 4 of 10,000 such writes)."""


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach a bucket; what is None comes from the environment as every AWS tool reads it."""

    endpoint: str | None = None
    """`https://host:port` of an S3-compatible store; requests are then path-style.  None: AWS."""
    region: str | None = None
    """None: the environment's, else `us-east-1`."""
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    credentials_dir: Path | None = None
    """Files with the keys, in place of those that boto3 finds: see `lakehouse.store.credentials`."""
    ca_bundle: str | None = None
    """A PEM file of the authorities to trust for TLS."""
    connect_timeout_s: float = 2.0
    read_timeout_s: float = 10.0
    """Longest silence within one request."""

    @classmethod
    def of(cls, settings: Settings) -> "S3Settings":
        """As a process was told."""
        return cls(
            endpoint=settings.s3_endpoint,
            region=settings.s3_region,
            credentials_dir=settings.s3_credentials_dir,
        )


REGION, OTHER_REGION = "AWS_REGION", "AWS_DEFAULT_REGION"
"""What names the region in an environment, the first first, as in AWS's own clients; boto3 knows the second alone."""


class S3Store:
    """An `ObjectStore` in `bucket`, below `prefix` (empty, or segments without a slash at either end)."""

    def __init__(
        self, bucket: str, prefix: str, runtime: Runtime, settings: S3Settings = S3Settings()
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{checked_key(prefix)}/" if prefix else ""
        self._runtime = runtime
        self._closed = False
        with _translated("open", bucket, ""):
            self._client = _client(settings)

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    @property
    def exclusive(self) -> bool:
        return False

    async def create(self, key: str, data: BytesLike) -> None:
        await self._run(self._put, checked_key(key), bytes(data), IfNoneMatch="*")

    async def put(self, key: str, data: BytesLike) -> None:
        await self._run(self._put, checked_key(key), bytes(data))

    async def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        checked_range(start, end)
        return await self._run(self._get, checked_key(key), start, end)

    async def head(self, key: str) -> ObjectInfo:
        return await self._run(self._head, checked_key(key))

    async def list(
        self, prefix: str, *, start_after: str = "", limit: int | None = None
    ) -> Sequence[ObjectInfo]:
        return await self._run(self._list, prefix, start_after, limit)

    async def children(self, prefix: str) -> Children:
        if prefix and not prefix.endswith("/"):
            raise Invalid(f"a prefix of children ends in `/` or is empty. prefix=`{prefix}`")
        return await self._run(self._children, prefix)

    async def delete(self, key: str) -> None:
        await self._run(self._delete, checked_key(key))

    async def download(self, key: str, path: "os.PathLike[str]") -> ObjectInfo:
        return await self._run(self._download, checked_key(key), Path(path))

    async def upload(self, key: str, path: "os.PathLike[str]") -> None:
        await self._run(self._upload, checked_key(key), Path(path))

    async def stream(self, key: str, chunk_bytes: int = 1 << 20) -> AsyncIterator[bytes]:
        body = await self._run(self._body, checked_key(key))
        try:
            while chunk := await self._run(self._chunk, key, body, chunk_bytes):
                yield chunk
        finally:
            body.close()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._runtime.run_io(self._client.close)

    async def _run(self, job: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise Unavailable(f"the store is closed. url=`{self.url}`", outcome=Outcome.NOT_COMMITTED)
        return await self._runtime.run_io(job, *args, **kwargs)

    # On an I/O worker.

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _put(self, key: str, data: bytes | IO[bytes], **condition: str) -> None:
        """One request, again if it is denied; a conflict with what a denied one may yet have written is in doubt."""
        for attempt in range(1, DENIALS_MAX + 1):
            if not isinstance(data, bytes):
                data.seek(0)
            try:
                with _translated("write", self._bucket, key):
                    self._client.put_object(**self._at(key), Body=data, **condition)
                return
            except CredentialsRefused as error:
                if attempt == DENIALS_MAX or _code(error.__cause__) != "AccessDenied":
                    raise
            except Conflict as error:
                if attempt == 1:
                    raise
                raise Unavailable(
                    f"the store denied a write and then holds an object. key=`{key}`"
                ) from error

    def _get(self, key: str, start: int, end: int | None) -> bytes:
        if end == start:
            self._head(key)
            return b""
        wanted = {} if start == 0 and end is None else {"Range": _range(start, end)}
        try:
            with _translated("read", self._bucket, key):
                answer = self._client.get_object(**self._at(key), **wanted)
                with contextlib.closing(answer["Body"]) as body:
                    data: bytes = body.read()
                    return data
        except _RangeBeyondEndError:
            return b""

    def _head(self, key: str) -> ObjectInfo:
        with _translated("read", self._bucket, key):
            answer = self._client.head_object(**self._at(key))
        return ObjectInfo(key, int(answer["ContentLength"]), str(answer["ETag"]).strip('"'))

    def _list(self, prefix: str, start_after: str, limit: int | None) -> Sequence[ObjectInfo]:
        found: list[ObjectInfo] = []
        after = {"StartAfter": self._prefix + start_after} if start_after else {}
        for page in self._pages(prefix, limit, **after):
            found.extend(self._objects(page))
            if limit is not None and len(found) >= limit:
                return found[:limit]
        return found

    def _children(self, prefix: str) -> Children:
        prefixes: list[str] = []
        objects: list[ObjectInfo] = []
        for page in self._pages(prefix, None, Delimiter="/"):
            prefixes += [self._own(each["Prefix"]) for each in page.get("CommonPrefixes", ())]
            objects += self._objects(page)
        return Children(tuple(sorted(prefixes)), tuple(objects))

    def _pages(self, prefix: str, limit: int | None, **how: str) -> Iterator[Mapping[str, Any]]:
        if (limit is not None and limit <= 0) or not is_key_folder(prefix[: prefix.rfind("/") + 1]):
            return
        size = PAGE_KEYS if limit is None else min(PAGE_KEYS, limit)
        while True:
            with _translated("list", self._bucket, prefix):
                page = self._client.list_objects_v2(
                    Bucket=self._bucket, Prefix=self._prefix + prefix, MaxKeys=size, **how
                )
            yield page
            if not page.get("IsTruncated"):
                return
            how["ContinuationToken"] = page["NextContinuationToken"]

    def _objects(self, page: Mapping[str, Any]) -> Iterator[ObjectInfo]:
        for each in page.get("Contents", ()):
            key = self._own(each["Key"])
            if key and not key.endswith("/"):  # consoles mark "folders" with empty objects
                yield ObjectInfo(key, int(each["Size"]), str(each["ETag"]).strip('"'))

    def _own(self, key: str) -> str:
        return key[len(self._prefix) :]

    def _delete(self, key: str) -> None:
        with contextlib.suppress(NotFound), _translated("delete", self._bucket, key):
            self._client.delete_object(**self._at(key))

    def _download(self, key: str, path: Path) -> ObjectInfo:
        found = self._head(key)
        file = _new_file(path)
        try:
            with file:
                for start in range(0, found.size, PART_BYTES):
                    self._copy_range(found, start, min(start + PART_BYTES, found.size), file)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return found

    def _copy_range(self, found: ObjectInfo, start: int, end: int, file: IO[bytes]) -> None:
        """Append one range of that very object: `IfMatch` refuses the parts of another."""
        with _translated("read", self._bucket, found.key):
            answer = self._client.get_object(
                **self._at(found.key), Range=_range(start, end), IfMatch=f'"{found.etag}"'
            )
            with contextlib.closing(answer["Body"]) as body:
                while chunk := body.read(CHUNK_BYTES):
                    file.write(chunk)

    def _upload(self, key: str, path: Path) -> None:
        try:
            file = path.open("rb")
        except OSError as error:
            raise Invalid(f"cannot read the local file. path=`{path}`") from error
        with file:
            size = os.fstat(file.fileno()).st_size
            if size <= PART_BYTES:
                self._put(key, file)
            else:
                with _translated("write", self._bucket, key):
                    self._upload_parts(key, file, max(PART_BYTES, -(-size // PARTS_MAX)))

    def _upload_parts(self, key: str, file: IO[bytes], part_bytes: int) -> None:
        upload = {"UploadId": self._client.create_multipart_upload(**self._at(key))["UploadId"]}
        try:
            parts: list[dict[str, object]] = []
            while data := file.read(part_bytes):
                number = len(parts) + 1
                done = self._client.upload_part(**self._at(key), **upload, PartNumber=number, Body=data)
                checksums = {name: value for name, value in done.items() if name.startswith("Checksum")}
                parts.append({"PartNumber": number, "ETag": done["ETag"], **checksums})
            self._client.complete_multipart_upload(
                **self._at(key), **upload, MultipartUpload={"Parts": parts}
            )
        except BaseException:
            with contextlib.suppress(sdk.BotoCoreError, sdk.ClientError):  # the store expires it in time
                self._client.abort_multipart_upload(**self._at(key), **upload)
            raise

    def _body(self, key: str) -> Any:
        with _translated("read", self._bucket, key):
            return self._client.get_object(**self._at(key))["Body"]

    def _chunk(self, key: str, body: Any, chunk_bytes: int) -> bytes:
        with _translated("read", self._bucket, key):
            data: bytes = body.read(chunk_bytes)
            return data


def _client(settings: S3Settings) -> Any:
    endpoint = (
        settings.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    core = botocore.session.Session()
    if settings.credentials_dir is not None:
        core.get_component("credential_provider").insert_before(
            "env", DirectoryProvider(settings.credentials_dir)
        )
    session = boto3.session.Session(
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        aws_session_token=settings.session_token,
        botocore_session=core,
    )
    return session.client(
        "s3",
        endpoint_url=endpoint,
        region_name=settings.region or os.environ.get(REGION) or session.region_name or "us-east-1",
        verify=settings.ca_bundle,
        config=botocore.config.Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=settings.connect_timeout_s,
            read_timeout=settings.read_timeout_s,
            max_pool_connections=IO_WORKERS,
            s3={"addressing_style": "path" if endpoint else "auto"},
            request_checksum_calculation="when_supported",
            response_checksum_validation="when_supported",
        ),
    )


def _range(start: int, end: int | None) -> str:
    return f"bytes={start}-{'' if end is None else end - 1}"


def _new_file(path: Path) -> IO[bytes]:
    try:
        return path.open("xb")
    except OSError as error:
        raise Invalid(f"cannot write the new local file. path=`{path}`") from error


class _RangeBeyondEndError(Exception):
    """The object is there and has no byte at or after the range's start."""


DENIED = frozenset(
    {
        "AccessDenied",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
UNFINISHED = frozenset({"IncompleteBody", "RequestTimeout", "BadDigest", "XAmzContentChecksumMismatch"})
"""The store did not receive what was sent; answered with 400, though the request was right."""
NAME_TAKEN = frozenset({"XMinioParentIsObject", "XMinioObjectExistsAsDirectory"})


@contextlib.contextmanager
def _translated(act: str, bucket: str, key: str) -> Iterator[None]:
    """The one place where the SDK's errors become ours."""
    try:
        yield
    except sdk.ClientError as error:
        raise _answered(error, act, bucket, key) from error
    except (sdk.NoCredentialsError, sdk.PartialCredentialsError, sdk.CredentialRetrievalError) as error:
        raise CredentialsRefused(
            "no credentials for the bucket: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. "
            f"bucket=`{bucket}`",
            outcome=Outcome.NOT_COMMITTED,
        ) from error
    except (sdk.EndpointConnectionError, sdk.ConnectTimeoutError) as error:
        # No connection was made, so nothing was sent.
        raise Unavailable(
            f"cannot connect to the store: {error}. bucket=`{bucket}`", outcome=Outcome.NOT_COMMITTED
        ) from error
    except (sdk.ParamValidationError, ValueError) as error:
        raise Invalid(
            "the store's client refuses the request; check endpoint, region, bucket and key: "
            f"{str(error).rstrip('.')}. bucket=`{bucket}`"
        ) from error
    except (sdk.BotoCoreError, sdk.HTTPClientError, urllib3.exceptions.HTTPError, ConnectionError) as error:
        raise Unavailable(
            f"the store did not answer a {act}: {error}. bucket=`{bucket}` key=`{key}`"
        ) from error


def _code(error: BaseException | None) -> str:
    """The store's own word for what is wrong; empty where it said none."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, sdk.ClientError) else ""


def _answered(error: sdk.ClientError, act: str, bucket: str, key: str) -> Exception:
    code = _code(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    where = f"bucket=`{bucket}` key=`{key}` code=`{code}`"
    if status == 416:
        return _RangeBeyondEndError()
    if code in DENIED or status in (401, 403):
        return CredentialsRefused(
            f"the store refuses the credentials or the act; check the access key and its policy. {where}",
            outcome=Outcome.NOT_COMMITTED,
        )
    if code == "NoSuchBucket":
        return BucketNotFound(
            f"there is no such bucket: create it, or name another. bucket=`{bucket}`",
            outcome=Outcome.NOT_COMMITTED,
        )
    if status == 404 and act in ("list", "write"):
        # No bucket that is there says so; a proxy that knows no backend does.
        return Unavailable(
            f"the store answers a {act} with 404: check the endpoint, and what stands before it. "
            f"bucket=`{bucket}` code=`{code}`"
        )
    if status == 404:
        return NotFound(f"no such object. key=`{key}`")
    if status == 507 or code == "XMinioStorageFull":
        return StorageFull(f"the store is full: free some space. {where}", retry_after_s=5.0)
    if code in UNFINISHED or status >= 500 or status == 408 or status == 429:
        return Unavailable(f"the store failed to {act}. {where} status=`{status}`")
    return _refused(status, code, act, where)


def _refused(status: int, code: str, act: str, where: str) -> LakehouseError:
    """A clear no: this request changed nothing and never will."""
    if status == 412 and act == "read":
        return Unavailable(
            f"the object was replaced while it was read. {where}", outcome=Outcome.NOT_COMMITTED
        )
    if status == 412:
        return Conflict(f"an object is already there. {where}")
    if code in NAME_TAKEN:
        return Conflict(f"this store holds an object or objects below it, not both. {where}")
    if (
        status == 409
    ):  # ConditionalRequestConflict: another write of this key is under way; send the same again
        return Unavailable(
            f"another write of this key was under way. {where}",
            outcome=Outcome.NOT_COMMITTED,
            retry_after_s=0.1,
        )
    return Invalid(
        f"the store refuses the request; check endpoint, region and key. {where} status=`{status}`"
    )
