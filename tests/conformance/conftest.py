"""One server for all tests of a module: they leave it as usable as they found it, whatever they send."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.world import World, nothing_unexpected
from tests.fakes.servers import Servers


def running(directory: Path, template: Path, **settings: Any) -> Iterator[World]:
    with asyncio.Runner() as runner:
        world = World(runner, Servers(directory, template), settings)
        with nothing_unexpected(runner):
            runner.run(world.begin())
            try:
                yield world
            finally:
                runner.run(world.end())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite_file: Path) -> Iterator[World]:
    """On SQLite."""
    yield from running(tmp_path_factory.mktemp("world"), migrated_sqlite_file)
