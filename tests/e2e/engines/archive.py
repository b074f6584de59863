"""Images of one layer, written as a docker-archive with no daemon and no registry.

What this does not do: read images, or build from a Dockerfile.
"""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

EPOCH = "1970-01-01T00:00:00Z"
"""A time there has to be: without it buildah finds none of its cached layers again."""


def write(
    archive: Path,
    name: str,
    layer: Path,
    *,
    entrypoint: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    user: str = "",
) -> None:
    """Write the image `name` with the tar file `layer` as its whole file system."""
    with layer.open("rb") as file:
        digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"} | dict(
        environment or {}
    )
    config = json.dumps(
        {
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {
                "Entrypoint": list(entrypoint),
                "Env": [f"{key}={value}" for key, value in variables.items()],
                "User": user,
            },
            "rootfs": {"type": "layers", "diff_ids": [digest]},
            "created": EPOCH,
            "history": [{"created": EPOCH, "created_by": "one layer"}],
        }
    ).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as out:
        out.add(layer, arcname="layer.tar")
        for file_name, data in ((config_name, config), ("manifest.json", json.dumps(manifest).encode())):
            entry = tarfile.TarInfo(file_name)
            entry.size = len(data)
            out.addfile(entry, io.BytesIO(data))


def layer_of(files: Mapping[str, Path], out: Path) -> None:
    """A layer of executable files, by their path in the image."""
    with tarfile.open(out, "w") as layer:
        for target, source in files.items():
            entry = layer.gettarinfo(str(source.resolve()), arcname=target.lstrip("/"))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = 0
            entry.mode = 0o755
            with source.open("rb") as data:
                layer.addfile(entry, data)
