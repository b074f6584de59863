"""The resource definitions, read from where they were installed: crds/ of the repository, or its copy in the wheel.

One of the few places here that read a file; it never writes, and looks nowhere else.
"""

import functools
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from lakehouse.control import crd
from lakehouse.core.errors import NotFound


@functools.cache
def definitions() -> Mapping[str, crd.Definition]:
    """The kinds by name, in the order VectorIndex, Dataset, IndexSnapshot.  Raises `NotFound` in a broken
    installation."""
    read = [crd.definition(one.read_text("utf-8")) for one in files()]
    return {one.kind: one for one in sorted(read, key=lambda one: crd.KINDS.index(one.kind))}


def files() -> list[Traversable]:
    """The definitions' files.  Raises `NotFound`."""
    # An editable install has no copy: there this file is dataplane/lakehouse/control/packaged.py of the repository.
    installed = resources.files("lakehouse.control").joinpath("crds")
    for folder in (installed, Path(__file__).parents[3] / "crds"):
        found = [one for one in folder.iterdir() if one.name.endswith(".yaml")] if folder.is_dir() else []
        if found:
            return found
    raise NotFound(
        "the resource definitions are not installed: install lakehouse again. folder=`control/crds`"
    )
