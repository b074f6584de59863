"""Make a venv fit for an image: what only developers of its packages need goes, bytecode comes.

`python3 slim.py VENV`, run while an image is built.  It removes tests, headers and sources of extensions, the AWS
services that are not spoken to and the parts of Arrow that are not used, strips libraries, and compiles every module
(unchecked: nothing in an image changes).  What it does not do: decide what is installed; the locks do.
"""

import compileall
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

FOLDERS = (
    "**/tests",
    "numpy/_core/include",
    "numpy/f2py",
    "pyarrow/include",
    "pyarrow/includes",
    "pyarrow/src",
    "**/__pycache__",
)
FILES = (
    "**/*.pxd",
    "**/*.pyx",
    "**/*.pyi",
    "**/*.c",
    "**/*.h",
    "**/*.a",
    "pyarrow/_flight*.so",
    "pyarrow/_azurefs*.so",
    "pyarrow/_gcsfs*.so",
    "pyarrow/_hdfs*.so",
    "pyarrow/_s3fs*.so",
    "pyarrow/_pyarrow_cpp_tests*.so",
    "pyarrow/libarrow_flight.so*",
    "pyarrow/libarrow_python_flight.so*",
    "pyarrow/libarrow_s3.so*",
)
AWS_SERVICES = {"s3", "sso", "sso-oidc", "sts", "signin"}
"""S3 itself, and the services that boto3 gets credentials from."""


def remove(packages: Path) -> None:
    """Take out `FOLDERS`, `FILES` and the descriptions of other AWS services."""
    for pattern in FOLDERS:
        for folder in list(packages.glob(pattern)):
            shutil.rmtree(folder, ignore_errors=True)
    for pattern in FILES:
        for file in list(packages.glob(pattern)):
            file.unlink(missing_ok=True)
    for data in (packages / "botocore" / "data", packages / "boto3" / "data"):
        for service in data.glob("*/"):
            if service.name not in AWS_SERVICES:
                shutil.rmtree(service)


def strip(packages: Path) -> None:
    """Take symbols out of libraries; those with an own layout (`*.libs`, made by auditwheel) stay as they are."""
    for library in packages.glob("**/*.so*"):
        if library.is_file() and not library.parent.name.endswith(".libs"):
            subprocess.run(
                ["strip", "--strip-unneeded", str(library)], check=False, stderr=subprocess.DEVNULL
            )


def main(venv: Path) -> None:
    """All of it, and a word about the size."""
    (packages,) = venv.glob("lib/python3*/site-packages")
    remove(packages)
    strip(packages)
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(packages, quiet=2, force=True, invalidation_mode=unchecked)
    size = sum(
        path.stat().st_size for path in packages.rglob("*") if path.is_file() and not path.is_symlink()
    )
    sys.stdout.write(f"{packages}: {size / 1e6:.0f} MB\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
