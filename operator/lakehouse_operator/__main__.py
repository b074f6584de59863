"""`python -m lakehouse_operator`, and the console script `lakehouse-operator`."""

import sys

from lakehouse_operator.domain import Domain
from lakehouse_operator.main import run


def main() -> int:
    """Run the operator; the exit status."""
    return run(Domain)


if __name__ == "__main__":
    sys.exit(main())
