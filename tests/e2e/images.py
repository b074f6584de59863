"""The images of the project, and MinIO's, in one of two ways; the engine says which.

Without pulling anything: docker-archives made by buildah, dataplane/Dockerfile on a Debian base that debootstrap
makes once, and MinIO from its Go module.  Or as most people have them: `docker build` as the documentation says,
and the MinIO that the chart names, which the nodes pull.  Every archive is named by a digest of what goes into it,
so an unchanged image is not built again.  `LAKEHOUSE_TEST_BASE` names another public base.
What this does not do: bring images to a cluster; the engines do.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import minio_server
from e2e.engines import Engine, EngineError, archive, docker
from e2e.engines.machine import run
from e2e.engines.programs import CACHE, need_packages, run_slowly, say

ROOT = Path(__file__).resolve().parents[2]
IMAGES = CACHE / "images"
BASE = os.environ.get("LAKEHOUSE_TEST_BASE", "")
DEBIAN = "bookworm"
BASE_PACKAGES = ("python3", "python3-venv", "ca-certificates")
BASE_UNUSED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")
SOURCES = (
    ".ci/requirements",
    ".dockerignore",
    "LICENSE",
    "README.md",
    "crds",
    "dataplane/Dockerfile",
    "dataplane/lakehouse",
    "dataplane/slim.py",
    "hatch_build.py",
    "operator/lakehouse_operator",
    "pyproject.toml",
)
"""What the Dockerfile copies."""

TARGETS = ("dataplane", "operator")
PACKAGES = {"buildah": "buildah", "debootstrap": "debootstrap", "runc": "runc"}
CERTIFICATES = Path("/etc/ssl/certs")
MINIO = "quay.io/minio/minio:RELEASE.2025-09-07T16-13-09Z"
"""For nodes that pull; the chart's own, and a test holds them equal."""


@dataclass(frozen=True)
class Image:
    """A name that pods use."""

    name: str

    @property
    def repository(self) -> str:
        return self.name.rpartition(":")[0]

    @property
    def tag(self) -> str:
        return self.name.rpartition(":")[2]


@dataclass(frozen=True)
class Archived(Image):
    """One that is brought to the nodes, and the docker-archive that holds it."""

    archive: Path


def of(engine: Engine) -> Mapping[str, Image]:
    """`dataplane`, `operator` and `minio`, in the engine's way; raises `EngineError` where they can't be built."""
    if not engine.pulls_images:
        return build_all()
    return {target: with_docker(target) for target in TARGETS} | {"minio": Image(MINIO)}


def loaded(engine: Engine, image: Image) -> Image:
    """The image under the name that pods of the cluster use for it, after giving it to the nodes."""
    return Image(engine.load_image(image.archive, image.name)) if isinstance(image, Archived) else image


def renamed(engine: Engine, image: Image, tag: str) -> Archived:
    """The same image under another tag, as a release that changes nothing would bring it."""
    file = f"renamed-{image.repository.rpartition('-')[2]}-{image.tag}.tar"
    other = Archived(f"{image.repository}:{tag}", IMAGES / file)
    if engine.pulls_images:
        docker.tag(image.name, other.name)
        docker.save(other.name, other.archive)
    elif not other.archive.exists():
        _buildah("tag", image.name, other.name)
        _save(other)
    return other


def build_all() -> dict[str, Archived]:
    """`dataplane`, `operator` and `minio`, from nothing that is pulled."""
    found = {target: project(target) for target in TARGETS} | {"minio": minio()}
    for image in found.values():
        say(f"  {image.name}: {image.archive.stat().st_size / 1e6:.0f} MB")
    return found


def with_docker(target: str) -> Archived:
    """One target of dataplane/Dockerfile, on the base that it names."""
    digest = _digest(sorted(_files(SOURCES)), target, "docker", BASE)
    image = Archived(f"localhost/lakehouse-{target}:{digest}", IMAGES / f"docker-{target}-{digest}.tar")
    if not image.archive.exists():
        say(f"building the image {image.name}")
        docker.build(ROOT, target, image.name, BASE)
        docker.save(image.name, image.archive)
    _forget_others(image, f"docker-{target}-*.tar")
    return image


def project(target: str) -> Archived:
    """One target of dataplane/Dockerfile, on a base that is made here."""
    digest = _digest(sorted(_files(SOURCES)), target, BASE or _base_name())
    image = Archived(f"localhost/lakehouse-{target}:{digest}", IMAGES / f"{target}-{digest}.tar")
    if not image.archive.exists():
        need_packages(PACKAGES)
        base = BASE or _base()
        with tempfile.TemporaryDirectory() as folder:
            secret = Path(folder) / "pip.conf"
            secret.write_text(_pip_configuration())
            command = [
                "build",
                "--isolation",
                "chroot",
                "--network",
                "host",
                "--layers",
                "--format",
                "docker",
            ]
            command += ["--file", str(ROOT / "dataplane" / "Dockerfile"), "--target", target]
            command += ["--build-arg", f"BASE={base}", "--secret", f"id=pip.conf,src={secret}"]
            if CERTIFICATES.is_dir():  # what this machine trusts, while building
                command += ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
            say(f"building the image {image.name}")
            _buildah(*command, "--tag", image.name, str(ROOT))
        _save(image)
    _forget_others(image, f"{target}-*.tar")
    return image


def minio() -> Archived:
    """MinIO, built from its Go module, with the libraries that it was linked to."""
    try:
        binary = minio_server.build()
    except minio_server.NoMinioError as error:
        raise EngineError(str(error)) from error
    image = Archived(f"localhost/minio:{minio_server.VERSION}", IMAGES / f"minio-{minio_server.VERSION}.tar")
    if not image.archive.exists():
        IMAGES.mkdir(parents=True, exist_ok=True)
        listed = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False).stdout
        files = {"/minio": binary} | {path: Path(path) for path in re.findall(r"(/\S+) \(0x", listed)}
        with tempfile.TemporaryDirectory(dir=IMAGES) as folder:
            layer, partial = Path(folder) / "layer.tar", Path(folder) / "image.tar"
            archive.layer_of(files, layer)
            archive.write(partial, image.name, layer, entrypoint=["/minio"], user="65532:65532")
            partial.rename(image.archive)
    return image


def _base_name() -> str:
    return f"localhost/lakehouse-base:{DEBIAN}-{_digest([], *BASE_PACKAGES, *BASE_UNUSED, archive.EPOCH)}"


def _base() -> str:
    """A Debian with Python in buildah's storage; debootstrap makes it once (a minute)."""
    name = _base_name()
    stored = IMAGES / f"base-{name.rpartition(':')[2]}.tar"
    if not stored.exists():
        IMAGES.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=IMAGES) as folder:
            root, layer, partial = (Path(folder) / file for file in ("root", "layer.tar", "image.tar"))
            command = ["debootstrap", "--variant=minbase", "--include=" + ",".join(BASE_PACKAGES)]
            say(f"making a Debian {DEBIAN} base once")
            run_slowly("debootstrap", [*command, DEBIAN, str(root), _mirror()], IMAGES, {})
            without = [f"--exclude=./{path}/*" for path in (*BASE_UNUSED, "proc", "sys", "dev")]
            run("tar", "-C", str(root), "-cf", str(layer), *without, ".")
            archive.write(partial, name, layer)
            partial.rename(stored)
    if name not in _buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
        _buildah("pull", f"docker-archive:{stored}")
    return name


def _mirror() -> str:
    """Where this machine gets its Debian packages, or Debian's own address."""
    folder = Path("/etc/apt")
    text = "\n".join(
        path.read_text() for path in (*folder.glob("sources.list"), *folder.glob("sources.list.d/*"))
    )
    found = re.search(
        rf"^URIs: (\S+)\nSuites: {DEBIAN}\b|^deb (?:\[.*\] )?(\S+) {DEBIAN} ", text, re.MULTILINE
    )
    return (found[1] or found[2]) if found else "http://deb.debian.org/debian"


def _pip_configuration() -> str:
    """What this machine's pip is told about indexes and certificates."""
    kept = {"index-url", "extra-index-url", "trusted-host", "cert", "timeout", "default-timeout"}
    listed = run(sys.executable, "-m", "pip", "config", "list")
    values = {
        name: value
        for name, value in re.findall(r"^[\w:]+\.([\w-]+)='(.*)'$", listed, re.MULTILINE)
        if name in kept
    }
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())


def _buildah(*arguments: str) -> str:
    """buildah with a storage of its own, so that it neither sees nor fills anybody else's."""
    storage = ["--root", str(CACHE / "buildah"), "--runroot", str(CACHE / "buildah-run")]
    command = ["buildah", *storage, "--storage-driver", "overlay", *arguments]
    if arguments[0] == "build":
        run_slowly("buildah build", command, ROOT, {})
        return ""
    return run(*command)


def _save(image: Archived) -> None:
    partial = image.archive.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    _buildah("push", image.name, f"docker-archive:{partial}:{image.name}")
    partial.rename(image.archive)


def _forget_others(image: Archived, pattern: str) -> None:
    """Archives of older sources would fill the disk."""
    for other in IMAGES.glob(pattern):
        if other != image.archive:
            other.unlink()


def _files(names: Iterable[str]) -> Iterable[Path]:
    for name in names:
        path = ROOT / name
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts and file.suffix not in (".so", ".pyc"):
                yield file


def _digest(files: Iterable[Path], *more: str) -> str:
    digest = hashlib.sha256()
    for text in more:
        digest.update(text.encode() + b"\0")
    for file in files:
        digest.update(f"{file.relative_to(ROOT)} {file.stat().st_mode & 0o111:o}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def main() -> int:
    """Build all of them and say where they are."""
    began = time.monotonic()
    try:
        for image in build_all().values():
            print(image.name, image.archive)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    say(f"images: {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
