"""Resources as people keep them: YAML files, folders of them, or standard input, read and checked with their places.

Paths inside are taken relative to the file they stand in, since only here is known where that is.  What this module
does not do: talk to a server.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lakehouse.cli.output import foreign
from lakehouse.control import crd, documents, packaged
from lakehouse.control.documents import Document, shown
from lakehouse.control.kinds import DATASET, VECTOR_INDEX
from lakehouse.core.errors import Invalid
from lakehouse.core.names import RESERVED_PREFIXES

SUFFIXES = (".yaml", ".yml", ".json")
STDIN = Path("-")
FILES_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Written:
    """One resource as a file has it."""

    body: Mapping[str, Any]
    """With absolute paths, without defaults."""
    document: Document

    @property
    def key(self) -> tuple[str, str]:
        return self.document.kind, self.document.name

    @property
    def label(self) -> str:
        """What a server's refusal of this resource begins with."""
        return f"{self.document.kind}/{self.document.name}: "

    def refused(self, error: Invalid) -> Invalid:
        """What a server, which knows what was there before, finds wrong, with its place in the file."""
        message = error.message.removeprefix(self.label)
        places = {shown(path): path for path in self.document.keys}
        told = [
            f"{self.document.where(places.get(line.partition(': ')[0], ('metadata', 'name')))}: {line}"
            for line in message.splitlines()
        ]
        return Invalid("\n".join(told))


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The files that were named, and those of the folders that were; a folder's own folders are not looked into."""
    found: list[Path] = []
    for path in paths:
        if path != STDIN and path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.suffix in SUFFIXES and one.is_file())
            if not inside:
                raise Invalid(f"the folder holds no {', '.join(SUFFIXES)} file. path=`{path}`")
            found += inside
        else:
            found.append(path)
    if len(found) > FILES_MAX:
        raise Invalid(f"at most {FILES_MAX} files at once. files=`{len(found)}`")
    return found


def read(paths: Sequence[Path]) -> list[Written]:
    """Every resource in the files, in their order, valid as far as can be told without what is there already.

    Raises `Invalid` with one line for each thing that is wrong, beginning with `file:line:column`; `NotFound`.
    """
    found: list[Document] = []
    wrong: list[str] = []
    for path in files_of(paths):
        try:
            found += documents.parse(_text(path), str(path))
        except Invalid as error:
            wrong.append(error.message)
    for document in found:
        try:
            crd.accepted(document, packaged.definitions())
        except Invalid as error:
            wrong.append(error.message)
    if not wrong and not found:
        raise Invalid(f"no resource is written there. files=`{', '.join(map(str, paths))}`")
    if not wrong:
        documents.check_unique(found)
        return [Written(_placed(document), document) for document in found]
    raise Invalid("\n".join(wrong))


def _text(path: Path) -> str:
    if path == STDIN:
        return sys.stdin.read()
    with foreign("cannot read the resources", path):
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise Invalid(f"{path}: not UTF-8 text. byte=`{error.start}`") from error


def _placed(document: Document) -> Mapping[str, Any]:
    """The document with its relative paths made absolute `file://` URIs."""
    folder = Path.cwd() if document.file == str(STDIN) else Path(document.file).resolve().parent
    body: dict[str, Any] = dict(document.body)
    spec = dict(body["spec"])
    if document.kind == DATASET:
        spec["sources"] = [
            {**source, "uri": _absolute(str(source["uri"]), folder)} for source in spec["sources"]
        ]
    elif document.kind == VECTOR_INDEX and "uri" in spec.get("bootstrap", {}).get("snapshot", {}):
        uri = str(spec["bootstrap"]["snapshot"]["uri"])
        spec["bootstrap"] = {"snapshot": {"uri": _absolute(uri, folder)}}
    return body | {"spec": spec}


def _absolute(uri: str, folder: Path) -> str:
    if "://" in uri or uri.startswith((*RESERVED_PREFIXES, "memory:")):
        return uri
    path = str(folder / Path(uri).expanduser())
    return f"file://{path.replace('%', '%25')}"  # the one character that a file URL gives another meaning
