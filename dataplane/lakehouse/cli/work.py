"""`lakehouse work`: one task of a declared resource in this process; what the operator's Jobs run.

What it does not do: the work; `lakehouse.jobs` does.
"""

import os

from lakehouse.cli.output import Exit, fail
from lakehouse.cli.serving import Config, Data


def work(data: Data = None, config: Config = None) -> None:
    """Do the task in LAKEHOUSE_TASK, then end; the outcome goes to LAKEHOUSE_TERMINATION_LOG, and the log to stderr."""
    import logging

    import typer

    from lakehouse import settings
    from lakehouse.core.errors import LakehouseError
    from lakehouse.jobs import outcome, running

    path = outcome.path_from(os.environ)
    try:
        chosen = settings.load(config, data=data)
        logging.basicConfig(
            level=chosen.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
        ended = running.work(running.asked(os.environ), chosen)
    except LakehouseError as error:  # of the settings or of the task's text
        fail(error)
        ended = outcome.failed(error)
    outcome.write(ended, path)
    raise typer.Exit(Exit.OK if ended.ok else Exit.FAILED)
