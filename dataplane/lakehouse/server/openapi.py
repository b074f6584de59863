"""The OpenAPI document, made from the table of routes and the descriptions below.

Written by hand, because the hot routes decode their own bodies; a test drives every route from it, so a
description that is not true fails.  What this module does not do: validate requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from typing import Any

from lakehouse import __version__
from lakehouse.core.schema import SchemaPolicy
from lakehouse.core.types import (
    BATCH_ITEMS_MAX,
    DIMENSION_MAX,
    EF_MAX,
    K_DEFAULT,
    K_MAX,
    M_MAX,
    M_MIN,
    Distance,
)
from lakehouse.ingest.formats import Format
from lakehouse.server.catalog_api import REJECTS_DEFAULT, REJECTS_MAX
from lakehouse.server.ingest_api import FILES_MAX
from lakehouse.server.routes import ROUTES, VERSION_PREFIX, Route
from lakehouse.server.sql_api import WAIT_S_MAX
from lakehouse.server.vectors_api import (
    QUERIES_MAX,
    RECALL_SAMPLES_MAX,
    SCROLL_DEFAULT,
    SCROLL_MAX,
    SHARDS_MAX,
)
from lakehouse.sql import formats
from lakehouse.sql.execution import State
from lakehouse.sql.service import TIMEOUT_S_MIN
from lakehouse.sql.statement import SQL_BYTES_MAX

Schema = dict[str, Any]

JSON, BINARY, ARROW = "application/json", "application/octet-stream", "application/vnd.apache.arrow.stream"
PROBLEM, TEXT = "application/problem+json", "text/plain"
NDJSON = "application/x-ndjson"


def _object(required: str = "", /, **properties: Any) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    return schema | {"required": required.split()} if required else schema


def _array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items} | more


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _whole(low: int | None = None, high: int | None = None, **more: Any) -> Schema:
    bounds = {"minimum": low, "maximum": high}
    return {"type": "integer"} | {name: value for name, value in bounds.items() if value is not None} | more


STRING: Schema = {"type": "string"}
BYTES: Schema = {"type": "string", "format": "binary"}
ANY: Schema = {}
COUNT = _whole(0)
ITEM_ID: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 1024,
    "description": "1 to 1,024 bytes of UTF-8.",
}
CONSISTENCY: Schema = {
    "enum": ["strong", "eventual"],
    "default": "strong",
    "description": "`strong` sees every write acknowledged before the read began; `eventual` what this "
    "process has.",
}
FILTER: Schema = {
    "type": "string",
    "description": "A SQL predicate over metadata, such as `price < 50 AND country IN ('SE','DK')`.",
}
K: Schema = {
    "type": "integer",
    "description": f"How many; absent or not positive is {K_DEFAULT}, above {K_MAX} is {K_MAX}.",
}
EF = _whole(1, EF_MAX, description="Candidates a search keeps; more finds more and costs more.")
INCLUDE: Schema = _array(
    {"enum": ["vectors", "metadata"]},
    description="What comes back beside id and distance; metadata by default.",
)

CHANGE = _object(
    "change column old new", change=STRING, column=STRING, old=_or_null(STRING), new=_or_null(STRING)
)

SCHEMAS: dict[str, Schema] = {
    "Problem": _object(
        "title status detail request_id",
        title=STRING,
        status=_whole(400, 599),
        detail=STRING,
        request_id=STRING,
        outcome={
            "enum": ["not_committed", "unknown"],
            "description": "Of a write: `not_committed` never happens; `unknown` happened wholly or not at "
            "all.",
        },
        kind=STRING,
        line=_whole(1, description="Of a SQL statement, where it is wrong; `column` counts characters."),
        column=_whole(1),
        changes=_array(CHANGE, description="Of a schema that does not fit: what differs."),
        problems=_array(_object("path message", path=STRING, message=STRING)),
    ),
    "Vector": {
        "description": "A list of numbers, or base64 of float32 little-endian.",
        "anyOf": [
            _array({"type": "number"}, minItems=1, maxItems=DIMENSION_MAX),
            {"type": "string", "contentEncoding": "base64"},
        ],
    },
    "Metadata": {
        "description": "Any JSON, given back byte for byte.  Absent leaves the stored one, `{}` or `null` "
        "clears it."
    },
    "Item": _object("id vector", id=ITEM_ID, vector=_ref("Vector"), metadata=_ref("Metadata")),
    "Params": _object(
        "name dimension m ef_search distance",
        name=STRING,
        dimension=_whole(1, DIMENSION_MAX),
        m=_whole(M_MIN, M_MAX),
        ef_search=_whole(1, EF_MAX),
        distance={"enum": [distance.value for distance in Distance]},
    ),
    "Index": _object("params length", params=_ref("Params"), length=COUNT),
    "SearchOptions": _object(
        k=K,
        ef=EF,
        filter=FILTER,
        include=INCLUDE,
        consistency=CONSISTENCY,
        explain={"type": "boolean", "default": False, "description": "Answer with the plan."},
    ),
    "Hit": _object(
        "id distance metadata",
        id=STRING,
        distance={"type": ["number", "null"], "description": "Smaller is nearer."},
        metadata=ANY,
        vector=_or_null(_array({"type": "number"})),
    ),
    "Plan": _object(
        "strategy matched ef visited",
        strategy=STRING,
        matched=_or_null(COUNT),
        ef=COUNT,
        visited=COUNT,
    ),
    "StoredItem": _object("id", id=STRING, vector=_array({"type": "number"}), metadata=ANY),
    "Manifest": _object(
        "name version schema_fingerprint objects row_count",
        name=STRING,
        dataset_id=STRING,
        version=_whole(1),
        schema_fingerprint=STRING,
        objects=_array(_object()),
        row_count=_or_null(COUNT),
        created_at=STRING,
        first_version=_whole(1, description="Where this life of the dataset began; absent for 1."),
        schema=_array(_object("name type nullable", name=STRING, type=STRING, nullable={"type": "boolean"})),
        bytes=_or_null(COUNT),
        stats=_or_null(_object()),
        sources=_array(_object("uri etag size rows objects", uri=STRING, etag=STRING, size=COUNT)),
        rejects=_or_null(_object("count key", count=COUNT, key=STRING)),
        transform_sha256=_or_null(STRING),
        mode=_or_null({"enum": ["replace", "append"]}),
    ),
    "Reject": _object(
        "source line column error text",
        source=STRING,
        line=_or_null(_whole(1)),
        column=_or_null(STRING),
        error=STRING,
        text=STRING,
    ),
    "Ingested": _object(
        "manifest existing published rejects changes sample",
        manifest=_ref("Manifest"),
        existing={"type": "boolean"},
        published={"type": "boolean", "description": "False: nothing changed, or a dry run."},
        rejects=_object("count rows", count=COUNT, rows=_array(_ref("Reject"))),
        changes=_array(CHANGE),
        sample=_array(_object()),
    ),
    "Resource": _object(
        "apiVersion kind metadata spec",
        apiVersion={"const": "lakehouse.agentview.dev/v1alpha1"},
        kind={"enum": ["VectorIndex", "Dataset", "IndexSnapshot"]},
        metadata=_object("name", name=STRING),
        spec=_object(),
        status=_object(),
    ),
}

SCHEMAS["Rows"] = _object(
    "columns rows row_count truncated",
    columns=_array(_object("name type", name=STRING, type=STRING)),
    rows=_array({"type": "array"}),
    row_count=COUNT,
    truncated={"type": "boolean"},
    profile=_object("seconds plan", seconds={"type": "number"}, plan=STRING, operators=_object()),
)
SCHEMAS["Query"] = _object(
    "id status sql format began_at seconds bytes",
    id=STRING,
    status={"enum": [state.value for state in State]},
    sql=STRING,
    format={"enum": [form.value for form in formats.Format]},
    began_at=STRING,
    seconds={"type": "number"},
    bytes=COUNT,
    row_count=COUNT,
    truncated={"type": "boolean"},
    profile=_object(),
    error=_object("detail", detail=STRING, kind=STRING, line=_whole(1), column=_whole(1)),
)
RESULT_MEDIA = tuple(
    media.partition(";")[0] for form, media in formats.MEDIA_TYPES.items() if form is not formats.Format.JSON
)

INDEX_NAME: Schema = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"}
PATH_PARAMETERS: dict[str, tuple[Schema, str]] = {
    "name": (INDEX_NAME, "The index."),
    "id": (ITEM_ID, "The item, percent-encoded; it may hold slashes."),
    "dataset": ({"type": "string", "minLength": 1, "maxLength": 200}, "The dataset, percent-encoded."),
    "kind": (
        {"enum": ["vectorindexes", "datasets", "indexsnapshots"]},
        "The kind: its plural; singular, short name and the kind itself are taken too.",
    ),
    "key": (
        {"type": "string", "minLength": 1, "maxLength": 1024},
        (
            "Segments percent-encoded, slashes kept.  No empty, `.` or `..` segment.  A slash inside a "
            "segment (`%2F`) is kept as `%2F` in the stored key."
        ),
    ),
}


@dataclass(frozen=True)
class Operation:
    """What OpenAPI says of one route beside its path and right."""

    summary: str
    request: Mapping[str, Schema] = field(default_factory=dict)
    """Media type to schema."""
    answers: Mapping[int, Mapping[str, Schema]] = field(default_factory=dict)
    query: Mapping[str, tuple[Schema, str]] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    """Request headers."""
    written: bool = False
    """Whether the answer carries `Lakehouse-Position`."""
    read: bool = False
    """Whether the answer may carry `Lakehouse-Staleness`."""
    body_required: bool = True
    description: str = ""


DATASET_VERSION: tuple[Schema, str] = (_whole(1, 10**18 - 1), "The version; the newest by default.")
_YES_NO: Schema = {"type": "boolean"}
INGEST_QUERY: dict[str, tuple[Schema, str]] = {
    "name": ({"type": "string", "minLength": 1, "maxLength": 200}, "The dataset; required."),
    "filename": (STRING, "What the file is called: it tells the format, and rejected rows name it."),
    "mode": ({"enum": ["replace", "append"], "default": "replace"}, "What becomes of the rows there are."),
    "format": ({"enum": [each.value for each in Format]}, "Guessed when absent."),
    "schema_policy": (
        {"enum": [each.value for each in SchemaPolicy], "default": "Strict"},
        "What of the dataset's schema may change: nothing, columns may be added, anything.",
    ),
    "fingerprint": (STRING, "The only schema allowed, by its fingerprint."),
    "transform": (STRING, "One SELECT over the table `source`, applied before anything is stored."),
    "dry_run": (_YES_NO | {"default": False}, "Read and convert everything, publish nothing."),
    "max_rejects": (COUNT, "Most rows that may be unreadable; all but one by default."),
    "types": (STRING, "Types of columns, as in `id:BIGINT,day:DATE`."),
    "delimiter": (STRING, "Of CSV; found out when absent."),
    "quote": (STRING, "Of CSV."),
    "escape": (STRING, "Of CSV."),
    "header": (_YES_NO, "Whether the first line of a CSV file names the columns; found out when absent."),
    "encoding": ({"enum": ["utf-8", "utf-16", "latin-1"], "default": "utf-8"}, "Of CSV."),
    "null": (STRING, "The text that stands for null in CSV."),
    "skip": (COUNT, "Lines before the header of a CSV file."),
    "comment": (STRING, "The character that begins a comment in CSV."),
    "date_format": (STRING, "Of dates in text, as in `%d.%m.%Y`."),
    "timestamp_format": (STRING, "Of timestamps in text."),
    "decimal_separator": (STRING, "Of numbers in CSV."),
    "all_text": (_YES_NO, "Take every column of CSV as text."),
}

HEADERS: dict[str, tuple[Schema, str]] = {
    "Idempotency-Key": (
        {"type": "string", "pattern": "^[!-~]{1,255}$"},
        "A write repeated under the same key is done once; the same key with another body is 409.",
    ),
    "Lakehouse-Min-Position": (
        {"type": "string", "pattern": "^[0-9a-f]{32}:[0-9]{1,18}([.][0-9]{1,18})*$"},
        "A `Lakehouse-Position` that a write answered with; the read sees at least that.",
    ),
}
QUERY_OPTIONS: dict[str, tuple[Schema, str]] = {
    "k": ({"type": "integer"}, "For a binary body."),
    "ef": (_whole(1, EF_MAX), "For a binary body."),
    "filter": (FILTER, "For a binary body."),
    "include": (
        {"type": "string", "pattern": "^(vectors|metadata)(,(vectors|metadata))*$"},
        "For a binary body.",
    ),
    "consistency": ({"enum": ["strong", "eventual"]}, "For a binary body."),
}
READ_QUERY = {"consistency": (CONSISTENCY, "What the read must see.")}
WRITES = ("Idempotency-Key",)
READS = ("Lakehouse-Min-Position",)


def _json(schema: Schema) -> dict[str, Schema]:
    return {JSON: schema}


def _options(**more: Any) -> Schema:
    required = " ".join(name for name in more if name == "vectors")
    return {"allOf": [_ref("SearchOptions"), _object(required, **more)]}


DECLARED = "Only `lakehouse up` keeps declared resources; another server answers 404 and says so."
RESOURCES = _object("items count", items=_array(_ref("Resource")), count=COUNT)
APPLIED = _object(
    "result resource",
    result={"enum": ["created", "configured", "unchanged"]},
    resource=_ref("Resource"),
    before=_or_null(_ref("Resource")),
)
OPERATIONS: dict[str, Operation] = {
    "health.health": Operation(
        "Whether the process answers, and what it runs",
        answers={
            200: _json(_object("status version roles", status=STRING, version=STRING, roles=_array(STRING)))
        },
    ),
    "health.livez": Operation(
        "Liveness; never depends on the store", answers={200: _json(_object("status", status=STRING))}
    ),
    "health.readyz": Operation(
        "Readiness: loading at start has ended; `checks` tells of indexes not opened, the store and SQL",
        answers={
            200: _json(_object("status checks", status=STRING, checks=_object())),
            503: _json(_object("status checks", status=STRING, checks=_object())),
        },
    ),
    "health.metrics": Operation("Prometheus metrics", answers={200: {TEXT: STRING}}),
    "health.openapi": Operation("This document", answers={200: _json(_object("openapi"))}),
    "storage.put": Operation(
        "Write or overwrite an object",
        request={BINARY: BYTES},
        answers={200: _json(_object("key size", key=STRING, size=COUNT))},
        body_required=False,
        description="Keys under `_vectors/`, `_catalog/` and `_resources/` need the admin right.",
    ),
    "storage.get": Operation("Read an object", answers={200: {BINARY: BYTES}}),
    "storage.delete": Operation("Remove an object; also when it is missing", answers={204: {}}),
    "storage.list": Operation(
        "List objects by prefix",
        query={"prefix": (STRING, "Keys that start with this; all by default.")},
        answers={
            200: _json(
                _object(
                    "prefix objects",
                    prefix=STRING,
                    objects=_array(_object("Key Size", Key=STRING, Size=COUNT)),
                )
            )
        },
    ),
    "catalog.register": Operation(
        "Register a dataset's objects under the fingerprint of their schema",
        request=_json(
            _object(
                "name schema_fingerprint",
                name={"type": "string", "minLength": 1, "maxLength": 200},
                schema_fingerprint={"type": "string", "minLength": 1, "maxLength": 1024},
                objects=_or_null(_array(_object())),
                row_count=_or_null(_whole(0, (1 << 63) - 1)),
            )
        ),
        answers={
            200: _json(_object("manifest existing", manifest=_ref("Manifest"), existing={"type": "boolean"}))
        },
        description="The same fingerprint again is `existing`, with a new version where the objects "
        "differ; another fingerprint is 409.",
    ),
    "catalog.manifest": Operation(
        "The newest manifest of a dataset, or that of a version",
        query={"version": DATASET_VERSION},
        answers={200: _json(_ref("Manifest"))},
        description="`name@v3` in the path names a version, too.",
    ),
    "catalog.versions": Operation(
        "The manifests of a dataset, oldest first",
        answers={
            200: _json(
                _object("name versions count", name=STRING, versions=_array(_ref("Manifest")), count=COUNT)
            )
        },
    ),
    "catalog.rejects": Operation(
        "A page of the rows that could not be read",
        query={
            "version": DATASET_VERSION,
            "offset": (COUNT, "Rows to skip."),
            "limit": (_whole(0, REJECTS_MAX, default=REJECTS_DEFAULT), "Most rows in the answer."),
        },
        answers={
            200: {
                JSON: _object(
                    "name version count offset rejects",
                    name=STRING,
                    version=_whole(1),
                    count=COUNT,
                    offset=COUNT,
                    rejects=_array(_ref("Reject")),
                ),
                NDJSON: BYTES,
            }
        },
        description="As NDJSON, one row a line, where the Accept header asks for it.",
    ),
    "catalog.drop": Operation("Delete a dataset with all its versions", answers={204: {}}),
    "catalog.list": Operation(
        "The newest manifest of every dataset",
        answers={200: _json(_object("manifests count", manifests=_array(_ref("Manifest")), count=COUNT))},
    ),
    "ingest.ingest": Operation(
        "Make files a version of a dataset",
        request={
            BINARY: BYTES,
            "text/csv": BYTES,
            NDJSON: BYTES,
            JSON: ANY,
            "application/vnd.apache.parquet": BYTES,
            "multipart/form-data": _object(
                "file", file=_array(BYTES, minItems=1, description=f"At most {FILES_MAX:,}.")
            ),
        },
        query=INGEST_QUERY,
        answers={200: _json(_ref("Ingested"))},
        body_required=False,
        description="CSV, TSV, JSON, NDJSON or Parquet, also in gzip or zstd.  The same bytes again make no new "
        "version.  A schema that does not fit is 409 and tells the difference.  A form may hold several files, which "
        "become one version together; parameters may be fields of the form, too.",
    ),
    "ingest.running": Operation(
        "Every ingest under way in this process",
        answers={
            200: _json(
                _object(
                    "running count",
                    running=_array(
                        _object(
                            "id name step bytes_read bytes_total rows started_at",
                            id=STRING,
                            name=STRING,
                            step=STRING,
                            bytes_read=COUNT,
                            bytes_total=COUNT,
                            rows=COUNT,
                            started_at=STRING,
                        )
                    ),
                    count=COUNT,
                )
            )
        },
    ),
    "query.sql": Operation(
        "Run one SELECT over datasets",
        request=_json(
            _object(
                "sql",
                sql={"type": "string", "maxLength": SQL_BYTES_MAX},
                parameters={
                    "description": "A list for `?` and `$1`, or an object for `$name`.",
                    "anyOf": [_array({}), _object(), {"type": "null"}],
                },
                timeout_s=_or_null({"type": "number", "minimum": TIMEOUT_S_MIN}),
                row_limit=_or_null(_whole(1)),
                byte_limit=_or_null(_whole(1)),
                explain={"type": "boolean", "default": False},
                wait_s=_or_null({"type": "number", "minimum": 0, "maximum": WAIT_S_MAX}),
            )
        ),
        answers={
            200: {**_json(_ref("Rows")), **dict.fromkeys(RESULT_MEDIA, BYTES)},
            202: _json(_ref("Query")),
            406: {},
        },
        description=(
            'A dataset is named as a table, one of its versions as `"name@v3"`; '
            "`vector_search('index', q, k := 10, filter := '…')` is a table of `id`, `distance` and `metadata`, "
            "where q is a list of numbers, a parameter, an item's id, or a column of a table before it.  Accept "
            "chooses the form.  `Lakehouse-Truncated` says whether rows were cut off; `maybe` when the answer "
            "began before its end was known: then the query's status, and in JSON, Parquet and Arrow the result "
            "itself, tells.  With `wait_s` an answer that takes longer is 202, and the result is fetched by its id."
        ),
    ),
    "query.list": Operation(
        "The caller's queries that run or ended lately, newest first",
        answers={200: _json(_object("queries", queries=_array(_ref("Query"))))},
        description="A query belongs to the key that started it: another key gets 404 for it, and an admin key sees "
        "all.",
    ),
    "query.get": Operation(
        "The kept result of a query, or its status",
        query={
            "wait_s": (
                {"type": "number", "minimum": 0, "maximum": WAIT_S_MAX, "default": 0},
                "How long to wait for its end.",
            ),
            "status": ({"type": "boolean", "default": False}, "Answer with the status, never the result."),
        },
        answers={
            200: {
                JSON: {"anyOf": [_ref("Rows"), _ref("Query")]},
                **dict.fromkeys(RESULT_MEDIA, BYTES),
            },
            202: _json(_ref("Query")),
        },
        description="The result in the form asked at first, when the query was sent with `wait_s`; 202 while it "
        "runs; the problem that ended it.",
    ),
    "query.cancel": Operation("End a query, or forget its result", answers={204: {}}),
    "resources.list": Operation(
        "Every declared resource, with its status", answers={200: _json(RESOURCES)}, description=DECLARED
    ),
    "resources.of_kind": Operation(
        "The declared resources of one kind, with their status",
        answers={200: _json(RESOURCES)},
        description=DECLARED,
    ),
    "resources.get": Operation(
        "One declared resource: what is wanted, and what was seen", answers={200: _json(_ref("Resource"))}
    ),
    "resources.events": Operation(
        "What happened to a resource lately, oldest first",
        answers={200: _json(_object("events count", events=_array(_object()), count=COUNT))},
    ),
    "resources.apply": Operation(
        "Create a resource, or bring it in line with a document",
        request=_json(_ref("Resource")),
        query={"dry_run": ({"type": "boolean"}, "Check and tell, but change nothing.")},
        answers={200: _json(APPLIED), 201: _json(APPLIED)},
        description="A document that breaks a rule of its kind is 400, with every problem in `problems`.",
    ),
    "resources.delete": Operation(
        "Ask for a resource to go; its deletionPolicy says what becomes of its data",
        query={"wait": ({"type": "boolean"}, "Answer when it is gone, after two minutes at most.")},
        answers={200: _json(_object("result", result=STRING)), 202: _json(_object("result", result=STRING))},
    ),
    "resources.diff": Operation(
        "What applying each document would change",
        request=_json(_object("documents", documents=_array(_ref("Resource"), minItems=1))),
        answers={200: _json(_object("differences", differences=_array(APPLIED)))},
    ),
    "vectors.create": Operation(
        "Create an empty index",
        request=_json(
            _object(
                "name dimension",
                name=INDEX_NAME,
                dimension=_whole(1, DIMENSION_MAX),
                m=_or_null(
                    _whole(0, M_MAX, description="Neighbours per node; 0 is the default, 16; 1 is refused.")
                ),
                ef_search=_or_null(_whole(0, EF_MAX, description="0 is the default, 64.")),
                distance=_or_null({"enum": ["", *(distance.value for distance in Distance)]}),
                ef_construction=_or_null(_whole(0, EF_MAX, description="0 is the default, 200.")),
                shards=_or_null(_whole(0, SHARDS_MAX, description="0 is the default, 1.")),
            )
        ),
        answers={201: _json(_ref("Index"))},
        written=True,
    ),
    "vectors.list": Operation(
        "Names of all indexes",
        answers={200: _json(_object("names count", names=_array(STRING), count=COUNT))},
    ),
    "vectors.get": Operation(
        "Parameters and length",
        query=READ_QUERY,
        headers=READS,
        read=True,
        answers={200: _json(_ref("Index"))},
        written=True,
    ),
    "vectors.drop": Operation("Delete an index with all it holds", answers={204: {}}),
    "vectors.add": Operation(
        "Upsert a batch of items",
        request={
            JSON: _object("items", items=_array(_ref("Item"), minItems=1, maxItems=BATCH_ITEMS_MAX)),
            ARROW: BYTES,
            BINARY: BYTES,
        },
        answers={200: _json(_object("added length", added=COUNT, length=COUNT))},
        headers=WRITES,
        written=True,
        description=(
            "The whole batch is checked before anything changes; of an id that comes twice the last one "
            "wins.  `application/vnd.apache.arrow.stream` (IPC stream or file): columns `id` (string), "
            "`vector` (list of float) and either `metadata` (JSON text; null leaves the stored one) or "
            "any other columns, which become the fields of a metadata object; buffers not compressed, "
            "columns not dictionary-encoded.  `application/octet-stream`: uint32 little-endian length of "
            "a JSON header, the header "
            '`{"ids": [...], "metadata": [...]?}`, then one row of float32 little-endian per id; without '
            "`metadata` the stored one stays, `null` clears it."
        ),
    ),
    "vectors.search": Operation(
        "Nearest neighbours of a vector or of a stored item",
        request={
            JSON: _options(vector=_ref("Vector"), id=ITEM_ID),
            BINARY: BYTES,
        },
        query=QUERY_OPTIONS,
        headers=READS,
        answers={
            200: _json(_object("results", results=_array(_ref("Hit"), maxItems=K_MAX), plan=_ref("Plan")))
        },
        read=True,
        description="JSON gives either `vector` or `id` (whose own item is left out of the answer).  A "
        "binary body is one vector, float32 little-endian; its options come in the query string.  `plan` "
        "comes with a filter or with `explain`.",
    ),
    "vectors.search_batch": Operation(
        "Nearest neighbours of each of many vectors",
        request={
            JSON: _options(vectors=_array(_ref("Vector"), minItems=1, maxItems=QUERIES_MAX)),
            BINARY: BYTES,
        },
        query=QUERY_OPTIONS,
        headers=READS,
        answers={
            200: _json(
                _object("results", results=_array(_array(_ref("Hit"), maxItems=K_MAX)), plan=_ref("Plan"))
            )
        },
        read=True,
        description=f"At most {QUERIES_MAX} vectors.  A binary body is float32 little-endian, row by row.",
    ),
    "vectors.merge": Operation(
        "Copy every item into another index",
        request=_json(
            _object(
                "dest",
                dest=INDEX_NAME,
                clear_source=_or_null({"type": "boolean"}),
                on_conflict=_or_null({"enum": ["skip", "replace"]}),
            )
        ),
        answers={
            200: _json(
                _object(
                    "merged skipped_already_present failed length_dest length_source",
                    merged=COUNT,
                    skipped_already_present=COUNT,
                    failed=COUNT,
                    length_dest=COUNT,
                    length_source=COUNT,
                    first_error=STRING,
                )
            )
        },
        written=True,
        description="An id already in dest is skipped, or with `on_conflict: replace` overwritten.  "
        "`clear_source` then deletes from source what dest holds, and never a version written after it "
        "was copied.",
    ),
    "vectors.delete": Operation(
        "Delete items by id, or all that match a filter",
        request=_json(
            _object(
                ids=_or_null(_array(ITEM_ID, minItems=1, maxItems=BATCH_ITEMS_MAX)), filter=_or_null(FILTER)
            )
        ),
        answers={200: _json(_object("deleted length", deleted=COUNT, length=COUNT))},
        headers=WRITES,
        written=True,
        description="By filter, what matches when the request is taken is deleted, never a version written after "
        "that; an Idempotency-Key has no effect then.",
    ),
    "vectors.item": Operation(
        "One stored item",
        query=READ_QUERY,
        headers=READS,
        read=True,
        answers={200: {JSON: _ref("StoredItem"), BINARY: BYTES}},
        description="With `Accept: application/octet-stream` the vector alone, float32 little-endian.",
    ),
    "vectors.scroll": Operation(
        "A page of items in the order of their ids",
        request=_json(
            _object(
                after=_or_null(STRING),
                limit=_or_null(_whole(description=f"{SCROLL_DEFAULT} by default, {SCROLL_MAX} at most.")),
                filter=_or_null(FILTER),
                include=_or_null(INCLUDE),
                consistency=CONSISTENCY,
            )
        ),
        headers=READS,
        read=True,
        answers={
            200: _json(
                _object(
                    "items after",
                    items=_array(_ref("StoredItem"), maxItems=SCROLL_MAX),
                    after=_or_null(STRING),
                )
            )
        },
        body_required=False,
    ),
    "vectors.count": Operation(
        "How many items match",
        request=_json(_object(filter=_or_null(FILTER), consistency=CONSISTENCY)),
        headers=READS,
        read=True,
        answers={200: _json(_object("count", count=COUNT))},
        body_required=False,
    ),
    "vectors.stats": Operation(
        "What is in memory and in the log",
        answers={
            200: _json(_object("length position", length=COUNT, position=STRING, shards=_array(_object())))
        },
    ),
    "vectors.recall": Operation(
        "Sampled queries against the exact answer",
        request=_json(
            _object(samples=_whole(1, RECALL_SAMPLES_MAX, default=100), k=_or_null(K), ef=_or_null(EF))
        ),
        answers={
            200: _json(
                _object("samples k recall", samples=COUNT, k=COUNT, recall=_or_null({"type": "number"}))
            )
        },
        body_required=False,
    ),
    "vectors.snapshot": Operation(
        "Take a verified snapshot now; a name keeps it",
        query={
            "attended": (
                {"type": "boolean"},
                "Give it up when the client hangs up before the answer; not through a gateway.",
            )
        },
        request=_json(_object(name=_or_null({"type": "string", "minLength": 1}))),
        answers={
            200: _json(
                _object("files position", name=_or_null(STRING), files=_array(_object()), position=STRING)
            )
        },
        written=True,
        body_required=False,
    ),
}

PROBLEM_STATUSES = (400, 401, 403, 404, 409, 413, 415, 429, 500, 503)
"""Any route may answer any of these."""


@cache
def document() -> Mapping[str, Any]:
    """The whole document; built once."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        path = route.path.replace("...}", "}")
        path = path if route.role is None else VERSION_PREFIX + path
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, OPERATIONS[route.name])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lakehouse",
            "version": __version__,
            "description": "Vector search whose only durable state is a bucket.  Every error is a problem "
            "document.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": route.name,
        "summary": operation.summary,
        "tags": [route.name.partition(".")[0]],
        "parameters": _parameters(route, operation),
        "responses": _responses(operation),
        "x-lakehouse-right": route.right,
    }
    if operation.description:
        described["description"] = operation.description
    if operation.request:
        content = {media: {"schema": schema} for media, schema in operation.request.items()}
        described["requestBody"] = {"content": content, "required": operation.body_required}
    if route.right is not None:
        described["security"] = [{"key": []}]
    return described


def _parameters(route: Route, operation: Operation) -> list[dict[str, Any]]:
    named = [part.strip("{.}") for part in route.path.split("/") if part.startswith("{")]
    return [
        *(_parameter(name, "path", *PATH_PARAMETERS[name]) for name in named),
        *(_parameter(name, "query", *described) for name, described in operation.query.items()),
        *(_parameter(name, "header", *HEADERS[name]) for name in operation.headers),
    ]


def _parameter(name: str, where: str, schema: Schema, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "schema": schema,
        "description": description,
    }


def _responses(operation: Operation) -> dict[str, Any]:
    problem = {PROBLEM: {"schema": _ref("Problem")}}
    responses: dict[str, Any] = {
        str(status): {"description": HTTPStatus(status).phrase, "content": problem}
        for status in PROBLEM_STATUSES
    }
    for status, content in operation.answers.items():
        described = {media: {"schema": schema} for media, schema in content.items()}
        if status >= 400:
            described |= problem
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "headers": _headers(operation)}
        if described:
            responses[str(status)]["content"] = described
    return responses


def _headers(operation: Operation) -> dict[str, Any]:
    headers: dict[str, Any] = {"x-request-id": {"schema": STRING, "required": True}}
    if operation.written:
        headers["Lakehouse-Position"] = {"schema": STRING, "description": "What a later read can ask to see."}
    if operation.read:
        headers["Lakehouse-Staleness"] = {
            "schema": STRING,
            "description": "Seconds since this process last knew it had everything; absent when it does.",
        }
    return headers
