"""The client without a server: what it sends, how it reads errors, when it repeats."""

import httpx
import numpy as np
import pyarrow as pa
import pytest

from lakehouse import client
from lakehouse.client import AsyncClient, Client, Request, Retries
from lakehouse.core import errors
from lakehouse.core.errors import Outcome
from lakehouse.testing.world import World  # noqa: F401  (virtual time lives with the simulator)

READ = Request("GET", "/x")
ONCE = Request("POST", "/x", repeatable=False)
