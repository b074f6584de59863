"""The ingest routes: files come in as a body, go through scratch, and become a version of a dataset.

The body is one file, or a form with one or more of them as fields `file`; how to read them is in the query string or
in other fields of the form.  Files that were taken before make no new version, so repeating a request is harmless.
What this module does not do: read files that lie elsewhere; a Dataset does.
"""

import asyncio
import contextlib
import hashlib
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from lakehouse import ingest
from lakehouse.catalog import Catalog
from lakehouse.core.errors import Busy, Invalid, TooLarge
from lakehouse.core.schema import SchemaPolicy
from lakehouse.ingest import Format, IngestResult, IngestSpec, Mode, Progress, Source, Step
from lakehouse.ingest.formats import OPTIONS
from lakehouse.ingest.sources import UPLOAD
from lakehouse.runtime import Runtime
from lakehouse.server.declared import check_dataset_not_declared, no_resource
from lakehouse.server.http import Request, Response, while_there, whole_json_response
from lakehouse.server.storage_api import spool_failed
from lakehouse.settings import Settings
from lakehouse.store.base import ObjectStore

AT_ONCE = 2
"""Ingests that convert at the same time; each may take `ingest_memory_bytes_max` and all cores."""
RUNNING_MAX = 16
"""Ingests under way, those that still receive or wait included; one more is answered 429."""
INGEST_S_MAX = 3_600.0
"""An uploaded file is converted within this time or not at all: a transform may have no end."""
WRITE_BYTES = 1 << 20
FILES_MAX = 1_000
"""Files in one form; a Dataset reads more from where they lie."""
FORM = b"multipart/form-data"
FIELD_BYTES_MAX = 1 << 20
"""Form fields that are no files, together; a transform is the longest."""
FILENAME_CHARACTERS_MAX = 200
PARAMETERS = frozenset(
    (
        "name",
        "filename",
        "mode",
        "format",
        "schema_policy",
        "fingerprint",
        "transform",
        "dry_run",
        "max_rejects",
    )
)


@dataclass
class Running:
    """An ingest under way, as `GET /v1/ingest` shows it."""

    id: str
    name: str
    started_at: str
    progress: Progress
    step: str = "receiving"

    def to_json(self) -> dict[str, Any]:
        now = self.progress
        return {
            "id": self.id,
            "name": self.name,
            "step": self.step,
            "bytes_read": now.bytes_read,
            "bytes_total": now.bytes_total,
            "rows": now.rows,
            "started_at": self.started_at,
        }


@dataclass
class Spooled:
    """One file that a request brought, on its way into scratch."""

    filename: str = ""
    content_type: str = ""
    path: Path | None = None
    """None until the first write."""
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    waiting: bytearray = field(default_factory=bytearray)
    _file: Any = None

    def write(self, scratch: Path | None) -> None:
        """Put what waits into the file.  Blocks on the disk."""
        if self._file is None:
            descriptor, name = tempfile.mkstemp(".upload", "ingest-", scratch)
            self.path, self._file = Path(name), os.fdopen(descriptor, "wb")
        self.digest.update(self.waiting)
        self._file.write(self.waiting)
        self.size += len(self.waiting)
        self.waiting.clear()

    def close(self) -> None:
        """No more comes.  Blocks on the disk."""
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Blocks on the disk."""
        with contextlib.suppress(OSError):
            self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@dataclass
class Body:
    """What a request brought: files in scratch, and what its form said besides."""

    scratch: Path | None
    files: list[Spooled] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)
    _whole: int = 0
    """Files at the front of the list that are written and closed."""

    @property
    def waiting_bytes(self) -> int:
        return sum(len(each.waiting) for each in self.files[self._whole :])

    @property
    def size(self) -> int:
        return sum(each.size for each in self.files)

    def write(self) -> None:
        """Put what waits into the files, and close all that are followed by another.  Blocks on the disk."""
        for each in self.files[self._whole :]:
            each.write(self.scratch)
        for each in self.files[self._whole : -1]:
            each.close()
        self._whole = max(0, len(self.files) - 1)

    def end(self) -> None:
        """Write the rest and close everything.  Blocks on the disk."""
        self.write()
        for each in self.files[self._whole :]:
            each.close()

    def forget(self) -> None:
        """Drop what waits: nobody here wants the files."""
        for each in self.files:
            each.waiting.clear()

    def remove(self) -> None:
        """Blocks on the disk."""
        for each in self.files:
            each.remove()


class IngestApi:
    """Handlers named as the routes are."""

    def __init__(
        self,
        catalog: Catalog,
        store: ObjectStore,
        runtime: Runtime,
        settings: Settings,
        scratch: Path | None,
        declares: Callable[[str], str | None] = no_resource,
    ) -> None:
        """`declares` tells the resource that declares a dataset."""
        self._catalog = catalog
        self._store = store
        self._runtime = runtime
        self._settings = settings
        self._scratch = scratch
        self._declares = declares
        self._running: dict[str, Running] = {}
        self._numbers = itertools.count(1)
        self._places = asyncio.Semaphore(AT_ONCE)

    async def ingest(self, request: Request) -> Response:
        """Make the body a version of a dataset."""
        asked = request.query()
        self._check_name(asked.get("name", ""))  # before everything is sent
        with self._noted(asked.get("name", "")) as running:
            async with self._received(request, running) as body:
                asked = {**body.fields, **asked}
                spec = spec_of(asked, body)
                self._check_name(spec.name)
                running.name = spec.name
                running.step = "waiting"
                result = await while_there(request, self._runtime, self._in_turn(spec, running), "ingest")
                return whole_json_response(answer(result))

    async def _in_turn(self, spec: IngestSpec, running: Running) -> IngestResult:
        async with self._places:
            return await self._run(spec, running)

    def _check_name(self, name: str) -> None:
        check_dataset_not_declared(self._declares(name), name)

    async def running(self, request: Request) -> Response:
        """Every ingest under way in this process, the oldest first."""
        running = [each.to_json() for each in self._running.values()]
        return whole_json_response({"running": running, "count": len(running)})

    async def _run(self, spec: IngestSpec, running: Running) -> IngestResult:
        def told(progress: Progress) -> None:
            running.progress, running.step = progress, progress.step.value

        return await ingest.run(
            spec,
            self._catalog,
            self._store,
            self._runtime,
            self._settings,
            told,
            scratch=self._scratch,
            deadline_s=INGEST_S_MAX,
        )

    @contextlib.contextmanager
    def _noted(self, name: str) -> Any:
        if len(self._running) >= RUNNING_MAX:
            raise Busy(
                f"too many ingests at once: try again. running=`{len(self._running)}`", retry_after_s=5.0
            )
        number = str(next(self._numbers))
        started_at = self._runtime.now().isoformat()
        running = Running(number, name, started_at, Progress(Step.RESOLVING))
        self._running[number] = running
        try:
            yield running
        finally:
            del self._running[number]

    # --- bodies

    @contextlib.asynccontextmanager
    async def _received(self, request: Request, running: Running) -> AsyncIterator[Body]:
        """The body in scratch for as long as this lasts.  Raises `Invalid`, `TooLarge`, `StorageFull`."""
        body = Body(self._scratch)
        try:
            try:
                await self._receive(request, body, running)
            except OSError as error:
                raise spool_failed(error) from error
            yield body
        finally:
            await self._runtime.run_io(body.remove)

    async def _receive(self, request: Request, body: Body, running: Running) -> None:
        form = _form(request, body) if request.media_type == FORM else None
        take = form or _raw(request, body)
        announced = request.check_body(self._settings.ingest_body_bytes_max)
        running.progress = Progress(Step.RESOLVING, 0, announced or 0)
        async for chunk in request.stream(self._settings.ingest_body_bytes_max):
            take(chunk)
            if body.waiting_bytes >= WRITE_BYTES:
                await self._runtime.run_io(body.write)
                running.progress = Progress(Step.RESOLVING, body.size, announced or 0)
        if form is not None:
            form.finish()
        await self._runtime.run_io(body.end)
        if form is None and body.size == 0:
            raise Invalid("the body is empty: send a file as the body, or files as form fields `file`")


async def checked_form(
    request: Request, bytes_max: int, check: Callable[[str], None]
) -> AsyncIterator[bytes]:
    """A form on its way to whoever ingests it; `check` is told its dataset before the last of it goes on.

    So nobody ingests what `check` refuses.  Raises what it does, and `Invalid` or `TooLarge` for the form itself.
    """
    body = Body(None)
    form = _form(request, body)
    async for chunk in request.stream(bytes_max):
        form(chunk)
        body.forget()
        if form.is_whole:
            check(body.fields.get("name", ""))
        yield chunk


def _raw(request: Request, body: Body) -> Callable[[bytes], None]:
    """The body is the file."""
    content_type = request.headers.get(b"content-type", b"").decode("latin-1")
    body.files.append(Spooled(content_type=content_type))
    return body.files[0].waiting.extend


def _form(request: Request, body: Body) -> "_Form":
    boundary = parse_options_header(request.headers.get(b"content-type", b""))[1].get(b"boundary")
    if not boundary:
        raise Invalid("the form's content-type has no boundary")
    return _Form(boundary, body)


class _Form:
    """Takes a form apart as it arrives: each field `file` is a file of the body, the others are parameters."""

    def __init__(self, boundary: bytes, body: Body) -> None:
        self._body = body
        self._header = [bytearray(), bytearray()]
        self._headers: dict[bytes, bytes] = {}
        self._into = bytearray()
        self._name = ""
        self.is_whole = False
        self._fields_size = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._headers.clear,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._part_begin,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def __call__(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise Invalid(f"the form cannot be read: {error}") from error

    def finish(self) -> None:
        """Raises `Invalid` when the form is cut off or has no files."""
        if not self.is_whole:
            raise Invalid("the form is cut off before its end")
        if not self._body.files:
            raise Invalid("the form has no field `file`")

    def _end(self) -> None:
        self.is_whole = True

    def _header_end(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        name.clear()
        value.clear()

    def _part_begin(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name != "file":
            self._into = bytearray()
            return
        if len(self._body.files) >= FILES_MAX:
            raise TooLarge(f"the form has over {FILES_MAX} files: declare a Dataset that reads them")
        filename = options.get(b"filename", b"").decode("utf-8", "replace") or "file"
        file = Spooled(filename, self._headers.get(b"content-type", b"").decode("latin-1"))
        self._body.files.append(file)
        self._into = file.waiting

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name != "file":
            self._fields_size += end - start
            if self._fields_size > FIELD_BYTES_MAX:
                raise TooLarge(f"the form's fields besides the files are over {FIELD_BYTES_MAX} bytes")
        self._into += data[start:end]

    def _part_end(self) -> None:
        if self._name != "file":
            try:
                self._body.fields[self._name] = self._into.decode()
            except UnicodeDecodeError as error:
                raise Invalid(f"a form field is not UTF-8. field=`{self._name}`") from error


# --- what is asked, what is answered


def spec_of(asked: Mapping[str, str], body: Body) -> IngestSpec:
    """The request as a spec.  Raises `Invalid` on an unknown parameter or a bad value."""
    unknown = sorted(set(asked) - PARAMETERS - OPTIONS)
    if unknown:
        known = ", ".join(sorted(PARAMETERS | OPTIONS))
        raise Invalid(f"no such parameter; there are {known}. parameter=`{unknown[0]}`")
    if len(body.files) > 1 and asked.get("filename"):
        raise Invalid("filename is of one file, and the form has several, each with its own")
    return IngestSpec(
        asked.get("name", ""),
        tuple(_source(asked, each) for each in body.files),
        asked.get("transform") or None,
        SchemaPolicy(_one_of("schema_policy", asked.get("schema_policy") or "Strict", SchemaPolicy)),
        asked.get("fingerprint") or None,
        Mode(_one_of("mode", asked.get("mode") or "replace", Mode)),
        dry_run=_flag("dry_run", asked.get("dry_run", "false")),
        max_rejects=_whole("max_rejects", asked.get("max_rejects")),
    )


def _source(asked: Mapping[str, str], file: Spooled) -> Source:
    """A file that came, named by its digest: the same bytes under the same name are the same source."""
    digest = file.digest.hexdigest()
    return Source(
        f"{UPLOAD}{digest[:12]}/{_filename(asked.get('filename') or file.filename)}",
        Format(_one_of("format", asked["format"], Format)) if asked.get("format") else None,
        {name: asked[name] for name in sorted(OPTIONS & set(asked))},
        file.path,
        digest,
        file.content_type,
    )


def _filename(name: str) -> str:
    """The last part of a name, whatever system it comes from; it is shown, never opened."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(sign for sign in last if sign.isprintable())[-FILENAME_CHARACTERS_MAX:] or "body"


def _one_of(name: str, value: str, kind: Any) -> str:
    """`value` in the kind's own spelling."""
    known = {str(each.value).lower(): str(each.value) for each in kind}
    if value.lower() not in known:
        raise Invalid(f"{name} is one of {', '.join(known.values())}. {name}=`{value}`")
    return known[value.lower()]


def _flag(name: str, value: str) -> bool:
    if value.lower() not in ("", "true", "false", "1", "0"):
        raise Invalid(f"{name} is true or false. {name}=`{value}`")
    return value.lower() not in ("false", "0")


def _whole(name: str, value: str | None) -> int | None:
    if value is None or value == "":
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 19):
        raise Invalid(f"{name} is a whole number from 0. {name}=`{value}`")
    return int(value)


def answer(result: IngestResult) -> dict[str, Any]:
    """What came of it, as JSON."""
    rejected = [
        {"source": r.source, "line": r.line, "column": r.column, "error": r.error, "text": r.text}
        for r in result.rejected
    ]
    return {
        "manifest": result.manifest.to_json(),
        "existing": not result.published or result.manifest.version > result.manifest.first_version,
        "published": result.published,
        "rejects": {"count": result.rejects, "rows": rejected},
        "changes": [change.to_json() for change in result.changes],
        "sample": list(result.sample),
    }
