"""The command line: what people type; tables for them, `--output json` for programs.

Commands are thin: they read options, call the client, the engine or the formats, and print.  Everything heavy
is imported by the command that needs it, so `lakehouse --help` stays fast.
"""

import sys


def main() -> None:
    """The `lakehouse` command."""
    from lakehouse.cli.app import run

    sys.exit(run())
