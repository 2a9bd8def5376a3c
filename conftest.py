"""What every test gets, wherever it lies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# The tests, and the processes that they start, run against this checkout, whatever else is installed.
ROOT = str(Path(__file__).parent)
sys.path.insert(0, ROOT)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))


@pytest.fixture
def anyio_backend() -> str:
    """Tests marked ``anyio`` run on asyncio, as the server does."""
    return "asyncio"
