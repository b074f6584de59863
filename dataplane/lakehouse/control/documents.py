"""YAML text to documents that remember where every field stands.

A file may hold several documents.  What YAML allows and a resource cannot mean is refused with file, line and column:
a key given twice, a tab as indentation, a tag, a number that JSON does not have.  Plain words stay words (`yes`, `on`,
`2026-01-01` are text).  What this module does not do: know the kinds' fields; `crd` does.
"""

import difflib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.docinfo import DocInfo
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from lakehouse.control.kinds import API_VERSION, KINDS
from lakehouse.core.errors import Invalid

TEXT_CHARACTERS_MAX = 4 << 20
"""Of one file; a resource has a few kilobytes."""
DOCUMENTS_MAX = 1_000
"""In one file."""
NODES_MAX = 100_000
"""In one document, aliases counted as often as they are used: a file of a kilobyte can stand for gigabytes."""
DEPTH_MAX = 64

Path = tuple[str | int, ...]
"""Keys and list positions from the document's root to a field."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in a file; both numbers from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one field."""

    path: Path
    message: str


@dataclass(frozen=True, slots=True)
class Document:
    """One resource as written: JSON, and where each part of it stands."""

    file: str
    body: Mapping[str, Any]
    keys: Mapping[Path, Place] = field(repr=False)
    """Where a field's name stands, or a list's item."""
    values: Mapping[Path, Place] = field(repr=False)

    @property
    def kind(self) -> str:
        return str(self.body["kind"])

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def namespace(self) -> str | None:
        namespace: str | None = self.body["metadata"].get("namespace")
        return namespace

    def where(self, path: Path) -> str:
        """`file:line:column` of a field, or of the nearest thing around it that is there."""
        while path and path not in self.keys:
            path = path[:-1]
        return _where(self.file, self.keys.get(path, Place(1, 1)))

    def told(self, problems: Iterable[Problem]) -> str:
        """One line per problem, in the order they stand in the file."""
        lines = {(self._order(one.path), self._line(one)) for one in problems}
        return "\n".join(line for _, line in sorted(lines))

    def _order(self, path: Path) -> tuple[int, int]:
        while path and path not in self.keys:
            path = path[:-1]
        place = self.keys.get(path, Place(1, 1))
        return place.line, place.column

    def _line(self, problem: Problem) -> str:
        label = shown(problem.path)
        return f"{self.where(problem.path)}: {label + ': ' if label else ''}{problem.message}"


def shown(path: Path) -> str:
    """A path as people write it: `spec.sources[0].uri`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def did_you_mean(word: str, known: Collection[str]) -> str:
    """`; did you mean …?`, or what there is when nothing is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6) or [
        one for one in known if one.lower() == word.lower()
    ]
    if near:
        return f"; did you mean `{near[0]}`?"
    listed = ", ".join(f"`{one}`" for one in sorted(known))
    return f"; there are {listed}" if known else ""


# ---- reading --------------------------------------------------------------------------------------------------------


def parse(text: str, file: str = "input") -> tuple[Document, ...]:
    """Every document in `text` that is not empty; each has a known apiVersion and kind, and a name.

    Raises `Invalid`, with `file:line:column` at the start of every line of its message.
    """
    if len(text) > TEXT_CHARACTERS_MAX:
        raise Invalid(f"{file}: more than {TEXT_CHARACTERS_MAX} characters. characters=`{len(text)}`")
    documents = []
    for node in tuple(_nodes(text, file)):  # all of it is YAML before any of it is read
        reading = _Reading(file)
        body = reading.value(node, (), 0)
        if body is not None:
            documents.append(_checked(Document(file, body, reading.keys, reading.values)))
    return tuple(documents)


def check_unique(documents: Sequence[Document]) -> None:
    """Raises `Invalid` where two documents are the same resource, naming both places."""
    first: dict[tuple[str, str | None, str], Document] = {}
    for document in documents:
        identity = (document.kind, document.namespace, document.name)
        before = first.setdefault(identity, document)
        if before is not document:
            raise Invalid(
                f"{document.where(('metadata', 'name'))}: this resource is written twice, first at "
                f"{before.where(('metadata', 'name'))}. {document.kind}=`{document.name}`"
            )


def _nodes(text: str, file: str) -> Iterator[Node]:
    """Each document's node tree; what the library finds wrong becomes `Invalid`."""
    try:
        yield from _composed(text, file)
    except MarkedYAMLError as error:
        raise Invalid(_explained(error, file)) from error
    except ReaderError as error:
        before = text[: error.position]
        place = Place(before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise Invalid(f"{_where(file, place)}: this character is not allowed in YAML") from error
    except (YAMLError, ValueError) as error:
        raise Invalid(f"{file}: this is not YAML: {error}") from error
    except RecursionError as error:
        raise Invalid(f"{file}: nested more than {DEPTH_MAX} levels deep") from error


def _composed(text: str, file: str) -> Iterator[Node]:
    # `pure`: the scanner in Python, whose marks and messages are known.
    yaml = YAML(typ="safe", pure=True)
    yaml.doc_infos.append(DocInfo())
    constructor, _ = yaml.get_constructor_parser(text)
    for _ in range(DOCUMENTS_MAX):
        if not constructor.composer.check_node():
            return
        yield constructor.composer.get_node()
    raise Invalid(f"{file}: more than {DOCUMENTS_MAX} documents in one file")


def _explained(error: MarkedYAMLError, file: str) -> str:
    problem = error.problem or "this is not YAML"
    if "'\\t'" in problem:
        problem = "a tab cannot indent; use spaces"
    mark = error.problem_mark or error.context_mark
    told = (
        f"{_where(file, Place(mark.line + 1, mark.column + 1))}: {problem}" if mark else f"{file}: {problem}"
    )
    if error.context and error.context_mark and error.context_mark.line != (mark.line if mark else -1):
        told += f" ({error.context}, which begins in line {error.context_mark.line + 1})"
    return told


class _Reading:
    """One document on its way from nodes to JSON, with a count of how much it stands for."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._nodes = 0
        self.keys: dict[Path, Place] = {}
        self.values: dict[Path, Place] = {}

    def value(self, node: Node, path: Path, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > NODES_MAX or depth > DEPTH_MAX:
            raise self._invalid(
                node, f"more than {DEPTH_MAX} levels deep, or {NODES_MAX} parts in one document"
            )
        self.values[path] = _place(node)
        self.keys.setdefault(path, _place(node))
        if isinstance(node, MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, SequenceNode):
            return [self.value(one, (*path, at), depth + 1) for at, one in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: MappingNode, path: Path, depth: int) -> dict[str, Any]:
        read: dict[str, Any] = {}
        for key, content in node.value:
            name = self._key(key)
            if name in read:
                first = self.keys[*path, name]
                raise self._invalid(
                    key, f"this key is given twice, first in line {first.line}. key=`{shown((*path, name))}`"
                )
            self.keys[*path, name] = _place(key)
            read[name] = self.value(content, (*path, name), depth + 1)
        return read

    def _key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode) or node.tag == _tag("merge"):
            raise self._invalid(node, "a key is plain text; `<<` and composed keys are not read here")
        return str(node.value)

    def _scalar(self, node: Node) -> Any:
        kind = (node.tag or "").removeprefix(_tag(""))
        text: str = node.value
        if kind in ("str", "timestamp"):
            return text
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind == "int":
            return self._whole(node, text)
        if kind == "float" and not text.lower().endswith(("inf", "nan")):
            number = float(text.replace("_", ""))
            if math.isfinite(number):  # 1e999 is not
                return number
        raise self._invalid(node, f"JSON has nothing like this. value=`{text}`")

    def _whole(self, node: Node, text: str) -> int:
        digits = text.replace("_", "")
        try:  # YAML 1.2: 0x and 0o are prefixes, a leading zero means nothing
            return (
                int(digits, 0) if digits.lower().lstrip("+-").startswith(("0x", "0o", "0b")) else int(digits)
            )
        except ValueError as error:
            raise self._invalid(node, f"this number cannot be read. value=`{text[:40]}`") from error

    def _invalid(self, node: Node, message: str) -> Invalid:
        return Invalid(f"{_where(self._file, _place(node))}: {message}")


def _tag(kind: str) -> str:
    return f"tag:yaml.org,2002:{kind}"


def _place(node: Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


# ---- what every document has ----------------------------------------------------------------------------------------


def _checked(document: Document) -> Document:
    body = document.body
    if not isinstance(body, dict):
        raise Invalid(
            f"{document.where(())}: a resource is a mapping with apiVersion, kind, metadata and spec"
        )
    for key, expected in (("apiVersion", (API_VERSION,)), ("kind", KINDS)):
        given = body.get(key)
        if given is None:
            hint = " or ".join(f"`{one}`" for one in expected)
            raise Invalid(f"{document.where(())}: {key} is missing; it is {hint}")
        if given not in expected:
            hint = did_you_mean(str(given), expected)
            end = "" if hint.endswith("?") else "."
            raise Invalid(f"{document.where((key,))}: no such {key}{hint}{end} {key}=`{given}`")
    name = metadata.get("name") if isinstance(metadata := body.get("metadata"), dict) else None
    if not isinstance(name, str) or not name:
        raise Invalid(
            f"{document.where(('metadata',))}: metadata.name is missing; every resource has a name, a text"
        )
    return document


def _where(file: str, place: Place) -> str:
    return f"{file}:{place.line}:{place.column}"
