"""docker, or podman in its place: builds images, writes them as archives, and pushes them to a registry.

What this does not do: choose names; know a cluster.
"""

import shutil
from pathlib import Path

from . import EngineError
from .machine import run
from .programs import run_slowly

PROGRAMS = ("docker", "podman")


def program() -> str:
    """Which of them is installed.  Raises `EngineError`."""
    for name in PROGRAMS:
        if shutil.which(name) is not None:
            return name
    raise EngineError("images are built with docker (or podman), and neither is on the PATH")


def build(folder: Path, target: str, name: str, base: str = "") -> None:
    """One target of dataplane/Dockerfile; `base` takes the place of the one that it names."""
    command = [program(), "build", "--file", str(folder / "dataplane" / "Dockerfile"), "--target", target]
    command += ["--build-arg", f"BASE={base}"] if base else []
    run_slowly(f"building {name}", [*command, "--tag", name, str(folder)], folder, {})


def tag(name: str, other: str) -> None:
    """A second name for an image."""
    run(program(), "tag", name, other)


def save(name: str, archive: Path) -> None:
    """The image as a docker-archive, whole or not at all."""
    partial = archive.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    archive.parent.mkdir(parents=True, exist_ok=True)
    run(program(), "save", "--output", str(partial), name)
    partial.rename(archive)


def push(archive: Path, name: str, target: str) -> None:
    """An archive's image into a registry, with the credentials of `docker login`."""
    run(program(), "load", "--input", str(archive))
    tag(name, target)
    run(program(), "push", target)
