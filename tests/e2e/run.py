"""`make e2e`: a cluster, the images, the tests, and the end of the cluster, with the time of each.

`PYTHONPATH=tests python -m e2e.run [--engine ENGINE] [--keep] [--soak] [pytest arguments]`.
What this does not do: decide what is tested.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from e2e import engines, images
from e2e.engines import Engine, EngineError
from e2e.engines.programs import say

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Returns pytest's exit status, or 1 where there is no cluster to test on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", default="", choices=["", "kind", "host", "context"], help=chosen.__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the cluster running")
    parser.add_argument("--soak", action="store_true", help="the long runs, and only they")
    asked, more = parser.parse_known_args()
    name = asked.engine or chosen()
    try:
        engine = engines.of(name)
        engine.check()
        is_kept = asked.keep or engine.is_kept()
        say(f"end-to-end tests on the engine `{name}`" + (", whose cluster stays" if is_kept else ""))
        return _run(engine, lambda: _pytest(name, more, soak=asked.soak), is_kept=is_kept)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(engine: Engine, tests: Callable[[], int], *, is_kept: bool) -> int:
    """The exit status of the tests; the cluster ends with them, even half made, unless it is kept."""
    took: dict[str, float] = {}
    try:
        took["cluster"] = _timed(engine.up)
        took["images"] = _timed(lambda: images.of(engine))
        began = time.monotonic()
        status = tests()
        took["tests"] = time.monotonic() - began
    finally:
        if not is_kept:
            took["down"] = _timed(engine.down)
    say("; ".join(f"{what} {seconds:.0f} s" for what, seconds in took.items()))
    return status


def chosen() -> str:
    """The engine that this machine can run: kind where it is installed, else the host as root."""
    if shutil.which("kind") and (shutil.which("docker") or shutil.which("podman")):
        return "kind"
    return "host"


def _pytest(engine: str, more: list[str], *, soak: bool) -> int:
    told = "-rsfEP" if soak else "-rsfE"  # the long runs count and measure: their figures are for people
    command = [sys.executable, "-m", "pytest", told, "--durations=15", "-p", "no:cacheprovider"]
    command += ["-m", "soak", "--soak"] if soak else []
    tests = [] if any(argument.startswith("tests/") for argument in more) else ["tests/e2e"]
    environment = os.environ | {"LAKEHOUSE_E2E_ENGINE": engine}
    return subprocess.run([*command, *tests, *more], cwd=ROOT, env=environment, check=False).returncode


def _timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
