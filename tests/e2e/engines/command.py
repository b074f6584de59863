"""The command line of the engines: `cluster ENGINE build | up | load-image ARCHIVE NAME | down`."""

import argparse
import sys
import time
from pathlib import Path

from . import EngineError, of
from .programs import say


def main(arguments: list[str] | None = None) -> int:
    """Do one of them; `up` prints how to reach the cluster.  Returns the exit status."""
    parser = argparse.ArgumentParser(prog="tests/e2e/cluster")
    parser.add_argument("engine", choices=["kind", "host", "context"])
    acts = parser.add_subparsers(dest="act", required=True)
    acts.add_parser("build", help="what `up` would build and install, and nothing more")
    acts.add_parser("up", help="a cluster whose nodes are Ready")
    load = acts.add_parser("load-image", help="give every node an image")
    load.add_argument("archive", type=Path)
    load.add_argument("name")
    acts.add_parser("down", help="leave nothing behind")
    asked = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        engine = of(asked.engine)
        if asked.act == "build":
            engine.build()
        elif asked.act == "up":
            engine.up()
            print(" ".join(engine.kubectl))
        elif asked.act == "load-image":
            print(engine.load_image(asked.archive.absolute(), asked.name))
        else:
            engine.down()
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    say(f"{asked.engine} {asked.act}: {time.monotonic() - began:.1f} s")
    return 0
