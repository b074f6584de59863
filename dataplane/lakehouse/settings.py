"""One frozen `Settings`, read once: the configuration file, overridden by the environment, overridden by
the caller.

`load()` reads `lakehouse.toml`, then `LAKEHOUSE_*` variables, then what the command line gave.  A setting
that cannot be right ends start-up with a message that names it.  What settings do not hold: secrets of the
object store, which come from files or from boto3's own chain (`AWS_ACCESS_KEY_ID` and its kin), and components
such as stores and clocks.
"""

import enum
import ipaddress
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from lakehouse.core.errors import Invalid
from lakehouse.core.names import checked_index_name

ENV_PREFIX = "LAKEHOUSE_"
CONFIG_FILE = "lakehouse.toml"

SHARD_FIELD = "{shard}"
"""What stands for a shard's number in `shard_url`."""
PEER_KEY_MIN = 16
"""Characters of a peer key."""
UNSAID = ("keys", "peer_key")
"""Settings whose values no message repeats: somebody may have put a key there."""
MIB = 1 << 20
GIB = 1 << 30


class Role(enum.StrEnum):
    """A part of the server that can run in a process of its own."""

    GATEWAY = "gateway"
    STORAGE = "storage"
    CATALOG = "catalog"
    INGEST = "ingest"
    QUERY = "query"
    VECTORS = "vectors"


ALL_ROLES = tuple(Role)
PROXIED_ROLES = (Role.STORAGE, Role.CATALOG, Role.INGEST, Role.QUERY, Role.VECTORS)
"""Roles that have routes, so a gateway without them in its process needs their address."""


class Right(enum.StrEnum):
    """What a bearer key may do; each includes the one before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    @property
    def level(self) -> int:
        """0, 1 or 2."""
        return _LEVELS[self]

    def allows(self, needed: "Right") -> bool:
        """Whether a key with this right may do what needs `needed`."""
        return self.level >= needed.level


_LEVELS = {right: level for level, right in enumerate(Right)}


class ApiKey(BaseModel):
    """One live bearer key: its hash, never the key itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="Who holds the key; for logs.")
    right: Right = Field(description="`read`, `write` or `admin`; each includes the one before it.")
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description=(
            "Lower-case hex SHA-256 of the key.  A key is 256 random bits, so no slow hash is needed."
        ),
    )


_toml: ContextVar[Path | None] = ContextVar("lakehouse_toml", default=None)


class Settings(BaseSettings):
    """Everything a server process can be told."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True
    )

    data: str = Field(
        "./lakehouse-data",
        description="Where everything durable lives: a directory, `s3://bucket/prefix`, or `memory:` "
        "(keeps nothing). A directory by default, because it needs nothing else.",
    )
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on.  Loopback by default; any other needs `keys` or `insecure`.",
    )
    port: int = Field(
        3110,
        ge=0,
        le=65_535,
        description="TCP port; 0 takes a free one and prints it.  3110 is the old system's gateway port.",
    )
    roles: Annotated[tuple[Role, ...], NoDecode] = Field(
        ALL_ROLES,
        description="Roles this process runs, comma-separated: `gateway`, `storage`, `catalog`, "
        "`ingest`, `query`, `vectors`.  All of them by default: one process is the simplest thing that "
        "works.",
    )
    storage_url: str | None = Field(
        None,
        description=(
            "Where a gateway finds the storage role when its own process does not run it; no default."
        ),
    )
    catalog_url: str | None = Field(
        None,
        description=(
            "Where a gateway finds the catalog role when its own process does not run it; no default."
        ),
    )
    ingest_url: str | None = Field(
        None,
        description=(
            "Where a gateway finds the ingest role when its own process does not run it; no default."
        ),
    )
    query_url: str | None = Field(
        None,
        description=(
            "Where a gateway finds the query role when its own process does not run it; no default."
        ),
    )
    vectors_url: str | None = Field(
        None,
        description=(
            "Where a gateway finds the vectors role when its own process does not run it, and where "
            "`vector_search` in SQL finds the indexes; no default."
        ),
    )
    routes: str | None = Field(
        None,
        description="Where a gateway finds the table of what is declared, datasets and indexes, these with the address "
        "that serves each: `configmap:NAMESPACE/NAME`, which the operator writes and the gateway watches, or a file's "
        "path.  Without it every index is behind `vectors_url`; a gateway with it does not run the vectors role "
        "itself.",
    )
    index: str | None = Field(
        None,
        description="The one index this process serves, as a pod does; requests for others are answered 404.  Default: "
        "all of them.",
    )
    shard: int | None = Field(
        None,
        ge=0,
        description="The one shard of `index` that this process keeps in memory; the others are asked for at "
        "`shard_url`.  Default: all of them.",
    )
    shard_url: str | None = Field(
        None,
        description="Where the processes of each shard of `index` are: a URL in which `{shard}` stands for the number, "
        "such as `http://products-shard-{shard}:3110`.  Its host is resolved again every second, to all of them; "
        "several hosts stand as `http://host:port,host:port`.",
    )
    peers: str | None = Field(
        None,
        description="Where all processes are that serve what this one serves, this one among them: a URL as "
        "`shard_url`.  One of them writes for each shard, as the others then do not take its log over in turns.  "
        "Default: with `shard` what `shard_url` says of it, else nobody.",
    )
    peer_key: SecretStr | None = Field(
        None,
        min_length=PEER_KEY_MIN,
        description="What the processes of one deployment show each other: taken with the right `admin`, and sent on "
        "their calls.  A secret of 16 characters at least, in place of `peer_key_file`; no default.",
    )
    peer_key_file: Path | None = Field(
        None,
        description="A file with the same, as a mounted Secret has it, in place of `peer_key`.  It is read again when "
        "it changes, and the key before that is taken for another 300 s, so the key is rotated without a restart; a "
        "file that is gone or empty then leaves the last one in force.  Default: none.",
    )
    declared: str = Field(
        "",
        description="The resource that declares `index`, such as `VectorIndex/shop/products`: creating and deleting it "
        "over HTTP is answered 409 and names it.  Default: nobody's.",
    )
    read_only: str = Field(
        "",
        description="Why nobody may write to `index` over HTTP, such as `it follows a dataset`; answered 409.  "
        "Default: everybody with the right may.",
    )
    keys: tuple[ApiKey, ...] = Field(
        (),
        description="Bearer keys, each `{name, right, sha256}`; `lakehouse key new` prints one.  Several "
        "may be live, so a key can be replaced without a gap.  In the environment: a JSON list.  None by "
        "default: every caller on loopback is an admin.  The same in every process: a gateway passes the "
        "caller's key on.",
    )
    insecure: bool = Field(
        False,
        description=(
            "Listen on an address that is not loopback without keys.  Off: an open port is never an accident."
        ),
    )
    s3_endpoint: str | None = Field(
        None, description="URL of an S3-compatible store such as MinIO.  Default: AWS's own endpoints."
    )
    s3_region: str | None = Field(
        None, description="S3 region.  Default: `AWS_REGION`, else what boto3's own chain finds."
    )
    s3_credentials_dir: Path | None = Field(
        None,
        description="Directory with the files `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, if there is one, "
        "`AWS_SESSION_TOKEN`, as a mounted Secret has them.  They are read again when they change, so keys are rotated "
        "without a restart.  Default: what boto3's own chain finds once.",
    )
    scratch_dir: Path | None = Field(
        None,
        description="Directory for files of passage: mapped index segments and request bodies on their "
        "way to the store.  Nothing in it outlives the process.  Default: inside a local data directory "
        "(the system's temporary directory may be memory); for a bucket, a temporary directory.",
    )
    vectors_body_bytes_max: int = Field(
        64 * MIB,
        ge=1,
        description=(
            "Largest body of a vectors request, in bytes; above it 413.  64 MiB is the old contract's limit."
        ),
    )
    storage_body_bytes_max: int = Field(
        5 * GIB,
        ge=1,
        description=(
            "Largest object that storage put takes, in bytes; above it 413.  5 GiB is S3's limit for one PUT."
        ),
    )
    ingest_body_bytes_max: int = Field(
        5 * GIB,
        ge=1,
        description="Largest file that ingest takes as a request body, in bytes; above it 413.  Larger files are "
        "read from where they lie, by a Dataset.",
    )
    ingest_memory_bytes_max: int = Field(
        512 * MIB,
        ge=64 * MIB,
        description="Memory that reading and converting one dataset may take, in bytes.  512 MiB keeps the worker's "
        "process under 1 GiB.",
    )
    sql_workers: int = Field(
        2,
        ge=1,
        le=64,
        description="SQL queries that run at once, each in a process of its own.  Two, as one core is left to searches "
        "on a small machine.",
    )
    sql_queue_max: int = Field(
        16, ge=0, description="SQL queries that wait for a worker before more are answered 429."
    )
    sql_timeout_s: float = Field(
        30.0, gt=0, description="Seconds a SQL query may run unless its request says `timeout_s`."
    )
    sql_timeout_s_max: float = Field(
        3_600.0, gt=0, description="Most seconds that a request may ask for with `timeout_s`."
    )
    sql_memory_bytes_max: int = Field(
        1 * GIB,
        ge=256 * MIB,
        description="Address space a SQL worker may take beyond its start, in bytes; a query over it fails alone.",
    )
    sql_rows_max: int = Field(
        1_000_000,
        ge=1,
        description="Most rows in one SQL answer; more are cut off and the answer says `truncated`.",
    )
    sql_bytes_max: int = Field(
        256 * MIB,
        ge=1,
        description="Most bytes in one SQL answer; more are cut off and the answer says `truncated`.",
    )
    sql_result_s: float = Field(
        600.0,
        gt=0,
        description="Seconds that the result of a query answered 202 is kept for `GET /v1/sql/{id}`.",
    )
    cache_bytes_max: int = Field(
        20 * GIB,
        ge=1,
        description="Most bytes of dataset files that are kept beside the process for SQL, when data is in a bucket.",
    )
    body_bytes_in_flight_max: int = Field(
        512 * MIB,
        ge=1,
        description="Bytes of request bodies held in memory at once, over all requests; above it 429.  "
        "512 MiB is eight of the largest vectors bodies.",
    )
    shutdown_s: float = Field(
        20.0,
        gt=0,
        description="Seconds that requests already taken have to finish after SIGTERM.  Below the 30 s "
        "after which Kubernetes kills.",
    )
    drain_s: float = Field(
        0.0,
        ge=0,
        description="Seconds that a process goes on serving after SIGTERM while it says that it is not ready, so that "
        "whoever balances load has stopped choosing it.  Then `shutdown_s` begins.  Pods take 8.",
    )
    proxy_connect_s: float = Field(
        2.0,
        gt=0,
        description="Seconds a gateway waits for a connection to a role.  2 s: a role is near or down.",
    )
    proxy_timeout_s: float = Field(
        60.0,
        gt=0,
        description=(
            "Seconds a gateway waits for the next bytes of a role's answer.  60 s: above every "
            "deadline of a role."
        ),
    )
    access_log: bool = Field(
        False,
        description=(
            "Log one line per request.  Off: metrics count requests, and a line costs as much as a search."
        ),
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged, to standard error."
    )
    cpu_workers: int | None = Field(
        None, ge=1, le=256, description="Threads for batches and scans.  Default: one per usable core."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The caller over the environment over the file that `load` named."""
        toml = _toml.get()
        if toml is None:
            return init_settings, env_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml)

    @field_validator("roles", mode="before")
    @classmethod
    def _split_roles(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("roles")
    @classmethod
    def _some_roles(cls, value: tuple[Role, ...]) -> tuple[Role, ...]:
        if not value:
            raise Invalid("roles must name at least one role. roles=``")
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _addresses(self) -> "Settings":
        for role in Role:
            url = self.role_url(role)
            if url is not None:
                _check_url(f"{role}_url", url)
        if Role.GATEWAY in self.roles:
            for role in PROXIED_ROLES:
                if role not in self.roles and not self.role_url(role):
                    raise Invalid(
                        f"this gateway does not run the {role} role, so it needs its address: set {role}_url "
                        f"or {ENV_PREFIX}{role.upper()}_URL, such as http://127.0.0.1:3215"
                    )
        if self.routes and (Role.GATEWAY not in self.roles or Role.VECTORS in self.roles):
            raise Invalid(
                "routes are for a process that runs the gateway role and not the vectors role. "
                f"roles=`{','.join(self.roles)}` routes=`{self.routes}`"
            )
        self._check_pod()
        if not (is_loopback(self.host) or self.keys or self.insecure):
            raise Invalid(
                "an address that is not loopback needs keys (`lakehouse key new`) or an explicit --insecure. "
                f"host=`{self.host}`"
            )
        return self

    def _check_pod(self) -> None:
        """What belongs together of the settings of one process among several.  Raises `Invalid`."""
        if self.index is not None:
            checked_index_name(self.index)
        if (self.shard is None) != (self.shard_url is None):
            raise Invalid(
                "shard and shard_url are given together: the shard kept here, and where the others are"
            )
        if self.shard_url is not None and SHARD_FIELD not in self.shard_url:
            raise Invalid(f"shard_url needs `{SHARD_FIELD}` for the number. shard_url=`{self.shard_url}`")
        for name in ("shard", "declared", "read_only"):
            if getattr(self, name) not in (None, "") and self.index is None:
                raise Invalid(f"{name} says something of one index: set index or {ENV_PREFIX}INDEX too")
        if self.read_only and not self.declared:
            raise Invalid("read_only needs declared, which an answer names")
        if self.peer_key is not None and self.peer_key_file is not None:
            raise Invalid(
                "peer_key and peer_key_file are two places for one key: set one of them, "
                f"{ENV_PREFIX}PEER_KEY or {ENV_PREFIX}PEER_KEY_FILE. peer_key_file=`{self.peer_key_file}`"
            )
        for name, url in (("shard_url", self.shard_url), ("peers", self.peers)):
            if url is not None:
                _check_places(name, url.replace(SHARD_FIELD, "0"))

    @property
    def peers_url(self) -> str | None:
        """Where all processes are that serve what this one serves; None where it is alone."""
        if self.peers is not None or self.shard_url is None:
            return self.peers
        return self.shard_url.replace(SHARD_FIELD, str(self.shard))

    def role_url(self, role: Role) -> str | None:
        """Where `role` is served by another process; None when unset."""
        return None if role is Role.GATEWAY else getattr(self, f"{role}_url")


def _check_places(name: str, url: str) -> None:
    """`http://host:port`, or several hosts after commas."""
    scheme, _, hosts = url.partition("://")
    for host in hosts.split(","):
        _check_url(name, f"{scheme}://{host}")
    if scheme != "http":
        raise Invalid(
            f"{name} ({ENV_PREFIX}{name.upper()}) is an address inside the cluster: http. {name}=`{url}`"
        )


def _check_url(name: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        whole = False
    if not whole:
        raise Invalid(
            f"{name} ({ENV_PREFIX}{name.upper()}) needs a scheme and a host, such as http://127.0.0.1:3215. "
            f"{name}=`{url}`"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def load(config: Path | None = None, **overrides: Any) -> Settings:
    """Read the file, the environment and `overrides` (of which None means: not given).  Raises `Invalid`.

    Without `config`, `lakehouse.toml` in the working directory is read if it is there.
    """
    path = config if config is not None else Path(CONFIG_FILE)
    if config is not None and not path.is_file():
        raise Invalid(f"the configuration file does not exist. config=`{path}`")
    token = _toml.set(path if path.is_file() else None)
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise Invalid(_explained(error)) from error
    except SettingsError as error:
        raise Invalid(f"a list in a variable is JSON: {error}") from error
    except (ValueError, OSError) as error:
        raise Invalid(f"the configuration cannot be read: {error}. config=`{path}`") from error
    finally:
        _toml.reset(token)


def _explained(error: ValidationError) -> str:
    return "; ".join(_told(problem) for problem in error.errors(include_url=False, include_context=False))


def _told(problem: ErrorDetails) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        close = get_close_matches(name, Settings.model_fields, n=1)
        return f"there is no setting `{name}`" + (f"; is it `{close[0]}`?" if close else "")
    place = ".".join(map(str, problem["loc"])) or "settings"
    hint = f" ({ENV_PREFIX}{name.upper()})" if name in Settings.model_fields else ""
    told = f"{place}{hint}: {problem['msg'].lower()}"
    value = problem["input"]
    if name in UNSAID or not isinstance(value, (str, int, float)):
        return told
    return f"{told}. {place}=`{value}`"


def markdown_table() -> str:
    """Every setting as a Markdown table: name, environment variable, default, meaning."""
    rows = ["| setting | environment | default | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{name}` | `{ENV_PREFIX}{name.upper()}` | {_shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(rows) + "\n"


def _shown(default: Any) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, tuple):
        return f"`{','.join(map(str, default))}`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"
