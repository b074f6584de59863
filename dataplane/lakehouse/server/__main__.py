"""`python -m lakehouse.server`: serve with what the file and the environment say, without the command
line's comfort.

What it does not do: take arguments; `lakehouse serve` does.
"""

import logging
import sys

from lakehouse import settings
from lakehouse.core.errors import LakehouseError
from lakehouse.server.serve import serve


def main() -> int:
    """Exit code 0 after a clean end, 1 when start-up failed."""
    try:
        chosen = settings.load()
        logging.basicConfig(
            level=chosen.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
        serve(chosen)
    except LakehouseError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
