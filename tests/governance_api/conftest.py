"""Servers that share a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.servers import Servers


@pytest.fixture
def servers(tmp_path: Path, migrated_sqlite_file: Path) -> Servers:
    """Use it as a context manager: its servers stop at the end."""
    return Servers(tmp_path, migrated_sqlite_file)
