"""A resource is valid here exactly when the API server would take it.

Each kind's definition (crds/) is read as a structural schema: nulls dropped, defaults filled in, every field checked,
then the CEL rules, on an update those that compare with the old object too.  All problems are told, not only the first.
Two things are stricter: an unknown field is refused instead of dropped, and what a schema cannot say (a schedule that
never fires) is refused at once (`checks`).  What this module does not do: read files, or know any kind by itself.
"""

import copy
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cel
import jsonschema
from ruamel.yaml import YAML

from lakehouse.control import checks, kinds
from lakehouse.control.documents import Document, Path, Problem, did_you_mean, shown
from lakehouse.core.errors import Invalid

KINDS = kinds.KINDS
_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_RULES = "x-kubernetes-validations"
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_METADATA_WRITTEN = ("name", "namespace", "labels", "annotations")
_METADATA_KEPT_BY_SERVER = (
    "uid",
    "generation",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "ownerReferences",
    "finalizers",
    "selfLink",
)
ANNOTATIONS_BYTES_MAX = 256 << 10
"""Kubernetes' limit."""


@dataclass(frozen=True, slots=True)
class Column:
    """What a list of resources shows of each."""

    name: str
    type: str
    """`string`, `integer` or `date`."""
    path: str
    wide: bool
    """Only shown when more was asked for."""

    def value(self, resource: Mapping[str, Any]) -> Any:
        """What stands at the path; None where nothing does."""
        found: Any = resource
        for name, key, wanted in _STEP.findall(self.path):
            found = found.get(name) if isinstance(found, dict) else None
            if key:
                rows = found if isinstance(found, list) else []
                found = next((one for one in rows if one.get(key) == wanted), None)
        return found


_STEP = re.compile(r"""\.(\w+)(?:\[\?\(@\.(\w+)=="([^"]*)"\)\])?""")


@dataclass(frozen=True)
class Definition:
    """One kind: its names, its columns and its schema."""

    kind: str
    plural: str
    singular: str
    short_names: tuple[str, ...]
    columns: tuple[Column, ...]
    schema: Mapping[str, Any]
    """The structural schema, as in the definition; read only."""

    @property
    def names(self) -> tuple[str, ...]:
        """Everything a person may call it, in lower case."""
        return (self.plural, self.singular, *self.short_names)

    @functools.cached_property
    def validator(self) -> Any:
        """Of the schema, as JSON Schema; `metadata` is Kubernetes' own and not described in it."""
        properties = {**self.schema["properties"], "metadata": {"type": "object", _PRESERVE: True}}
        return _Validator(_closed({**self.schema, "properties": properties}))


def definition(text: str) -> Definition:
    """Read a custom resource definition.  Raises `KeyError` where it is not one."""
    spec = YAML(typ="safe", pure=True).load(text)["spec"]
    names, version = spec["names"], spec["versions"][0]
    return Definition(
        kind=names["kind"],
        plural=names["plural"],
        singular=names["singular"],
        short_names=tuple(names.get("shortNames", ())),
        columns=tuple(
            Column(one["name"], one["type"], one["jsonPath"], one.get("priority", 0) > 0)
            for one in version.get("additionalPrinterColumns", ())
        ),
        schema=version["schema"]["openAPIV3Schema"],
    )


@dataclass(frozen=True, slots=True)
class Checked:
    """A resource after checking: with its defaults, and what is wrong with it."""

    body: Mapping[str, Any]
    problems: tuple[Problem, ...]


def accepted(
    document: Document, definitions: Mapping[str, Definition], old: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """The document's body with its defaults, without `status`; `old` is what it replaces, if anything.

    Raises `Invalid`: one line per problem, each beginning with `file:line:column`.
    """
    checked = check(definitions[document.kind], document.body, old)
    if checked.problems:
        raise Invalid(document.told(checked.problems))
    return checked.body


def check(kind: Definition, body: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> Checked:
    """Default and check one resource; `old` is the object it replaces, as it was accepted."""
    new: dict[str, Any] = {key: copy.deepcopy(value) for key, value in body.items() if key != "status"}
    default(kind.schema, new)
    problems = [*_metadata_problems(new.get("metadata")), *_schema_problems(kind, new)]
    # A rule that reads a field of the wrong type tells nothing: what holds a problem already has no rules run on it.
    wrong = [one.path for one in problems]
    problems += _rule_problems(kind.schema, new, old, (), wrong)
    if not problems:
        spec = kinds.parse(kind.kind, new["spec"])
        problems += checks.problems(spec)
    return Checked(new, tuple(problems))


# ---- defaults -------------------------------------------------------------------------------------------------------


def default(schema: Mapping[str, Any], value: Any) -> None:
    """Drop nulls and fill in defaults, in place, outside in, as the API server does."""
    if isinstance(value, list):
        for at, item in enumerate(value):
            value[at] = _whole(schema.get("items", {}), item)
            default(schema.get("items", {}), item)
    if not isinstance(value, dict):
        return
    properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
    for name in [*properties, *(value.keys() - properties.keys() if isinstance(extra, dict) else ())]:
        inner = properties.get(name, extra)
        if value.get(name, ...) is None and not inner.get("nullable"):
            del value[name]
        if name not in value and "default" in inner:
            value[name] = copy.deepcopy(inner["default"])
        if name in value:
            value[name] = _whole(inner, value[name])
            default(inner, value[name])


def _whole(schema: Mapping[str, Any], value: Any) -> Any:
    """384.0 is the integer 384, where an integer is asked for: in JSON both are the same number."""
    whole = isinstance(value, float) and value.is_integer() and schema.get("type") == "integer"
    return int(value) if whole else value


# ---- structure ------------------------------------------------------------------------------------------------------


def _schema_problems(kind: Definition, body: Mapping[str, Any]) -> list[Problem]:
    return [problem for error in kind.validator.iter_errors(body) for problem in _told(error)]


_types = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
    # Whole numbers have become integers by now, so that what is read as an integer is one.
    "integer",
    lambda _, value: isinstance(value, int) and not isinstance(value, bool),
)
_Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=_types)


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON Schema: what Kubernetes adds is translated, and objects take no other fields than they name."""
    kept = {key: value for key, value in schema.items() if not key.startswith("x-")}
    if schema.get("x-kubernetes-int-or-string"):
        kept.pop("anyOf", None)
        return kept | {"type": ["integer", "string"]}
    if "properties" in kept:
        kept["properties"] = {name: _closed(inner) for name, inner in kept["properties"].items()}
    if "items" in kept:
        kept["items"] = _closed(kept["items"])
    extra = kept.get("additionalProperties")
    if isinstance(extra, dict):
        kept["additionalProperties"] = _closed(extra)
    elif kept.get("type") == "object" and not schema.get(_PRESERVE):
        kept["additionalProperties"] = False
    return kept | _uniqueness(schema)


def _uniqueness(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"uniqueItems": True} if schema.get("x-kubernetes-list-type") == "set" else {}


def _told(error: Any) -> Iterator[Problem]:
    """A library's error in our words, at the field that is to be changed."""
    path: Path = tuple(error.absolute_path)
    rule, wanted, given = error.validator, error.validator_value, error.instance
    last = shown(path[-1:]) or "value"
    if rule == "additionalProperties":
        known = tuple(error.schema.get("properties", ()))
        for name in given.keys() - set(known):
            yield Problem((*path, name), f"no such field{did_you_mean(name, known)}")
    elif rule == "required":
        missing = next(name for name in wanted if f"'{name}'" in error.message and name not in given)
        yield Problem((*path, missing), f"is missing: {_about(error.schema, missing)}")
    elif rule == "type":
        kinds_wanted = " or ".join(wanted) if isinstance(wanted, list) else wanted
        yield Problem(
            path, f"is {_type(given)} and must be {_article(kinds_wanted)}. {last}=`{_short(given)}`"
        )
    elif rule == "enum":
        near = did_you_mean(given, wanted) if isinstance(given, str) else ""
        listed = ", ".join(f"`{one}`" for one in wanted)
        hint = near if near.startswith("; did") else "."
        yield Problem(path, f"must be one of {listed}{hint} {last}=`{_short(given)}`")
    else:
        yield Problem(path, f"{_bound(rule, wanted, error.schema)}. {last}=`{_short(given)}`")


_BOUNDS = {
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "minLength": "must have at least {} characters",
    "maxLength": "must have at most {} characters",
    "minItems": "must have at least {} items",
    "maxItems": "must have at most {} items",
    "minProperties": "must have at least {} fields",
    "maxProperties": "must have at most {} fields",
}


def _bound(rule: str, wanted: Any, schema: Mapping[str, Any]) -> str:
    if rule == "pattern":
        return f"is not written as it must be: {_sentence(schema)} It matches `{wanted}`"
    if rule == "uniqueItems":
        return "has the same item twice"
    return _BOUNDS.get(rule, f"breaks the rule {rule} {{}}").format(wanted)


def _about(schema: Mapping[str, Any], name: str) -> str:
    return _sentence(schema.get("properties", {}).get(name, {})).rstrip(".")


def _sentence(schema: Mapping[str, Any]) -> str:
    return str(schema.get("description", "")).split(". ")[0].rstrip(".") + "."


def _type(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return _article(names.get(type(value), "null"))


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeio" else f"a {noun}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


# ---- metadata -------------------------------------------------------------------------------------------------------


def _metadata_problems(metadata: Any) -> Iterator[Problem]:
    at: Path = ("metadata",)
    if not isinstance(metadata, dict):
        yield Problem(at, "is missing: name, and what else is to be told of the resource")
        return
    for name in metadata.keys() - {*_METADATA_WRITTEN, *_METADATA_KEPT_BY_SERVER}:
        yield Problem((*at, name), f"no such field{did_you_mean(name, _METADATA_WRITTEN)}")
    name = metadata.get("name")
    if not isinstance(name, str) or len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        yield Problem(
            (*at, "name"),
            "has lower-case letters, digits, `-` and `.`, begins and ends with a letter or digit, and is at "
            f"most 253 characters long. name=`{_short(name)}`",
        )
    for field in ("labels", "annotations"):
        if metadata.get(field) is not None:
            yield from _texts_problems((*at, field), metadata[field])


def _texts_problems(path: Path, texts: Any) -> Iterator[Problem]:
    if not isinstance(texts, dict):
        yield Problem(path, f"is {_type(texts)} and must be an object")
        return
    for name, text in texts.items():
        if not isinstance(text, str):
            yield Problem(
                (*path, name), f"is {_type(text)} and must be a string: put it in quotes. {name}=`{text}`"
            )
        elif path[-1] == "labels" and not _LABEL_VALUE.fullmatch(text):
            yield Problem(
                (*path, name), f"a label has at most 63 letters, digits, `-`, `_`, `.`. {name}=`{text}`"
            )
    size = sum(len(str(name).encode()) + len(str(text).encode()) for name, text in texts.items())
    if size > ANNOTATIONS_BYTES_MAX:
        yield Problem(path, f"must have at most {ANNOTATIONS_BYTES_MAX} bytes. bytes=`{size}`")


# ---- rules ----------------------------------------------------------------------------------------------------------


def _rule_problems(
    schema: Mapping[str, Any], value: Any, old: Any, path: Path, wrong: Sequence[Path]
) -> Iterator[Problem]:
    if not any(one[: len(path)] == path for one in wrong):
        yield from _broken_rules(schema, value, old, path)
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                yield from _rule_problems(inner, value[name], before.get(name), (*path, name), wrong)
    if isinstance(value, list):
        yield from _duplicates(schema, value, path)
        for at, item in enumerate(value):
            # Items of a list have no old self here: none of our rules compares them.
            yield from _rule_problems(schema.get("items", {}), item, None, (*path, at), wrong)


def _broken_rules(schema: Mapping[str, Any], value: Any, old: Any, path: Path) -> Iterator[Problem]:
    for one in schema.get(_RULES, ()):
        rule = one["rule"]
        if "oldSelf" in rule and old is None:
            continue
        known = {"self": value} if old is None else {"self": value, "oldSelf": old}
        if _program(rule).execute(known) is not True:
            yield Problem(path, str(one["message"]))


@functools.lru_cache(maxsize=256)
def _program(rule: str) -> Any:
    return cel.compile(rule)


def _duplicates(schema: Mapping[str, Any], value: Sequence[Any], path: Path) -> Iterator[Problem]:
    keys = schema.get("x-kubernetes-list-map-keys", ())
    seen: set[tuple[Any, ...]] = set()
    for at, item in enumerate(value):
        if not keys or not isinstance(item, dict):
            continue
        identity = tuple(str(item.get(key)) for key in keys)
        if identity in seen:
            yield Problem((*path, at), f"is there twice. {keys[0]}=`{_short(identity[0])}`")
        seen.add(identity)
