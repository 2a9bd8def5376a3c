"""Servers that all tests of a session share, in pairs; and what they logged, beside a test that fails.

A pair is named for the server where the story begins and the one that it goes to: ``ours-synapse`` goes from ours to
Synapse.
``INTEROP_PAIRS`` names other pairs than the usual ones: ``synapse-synapse`` tests the tests.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.client import MatrixClient
from tests.interop.servers import Authority, OurServer, Server, SynapseServer

PAIRS = os.environ.get("INTEROP_PAIRS", "ours-ours ours-synapse synapse-ours").split()
LOG_OF_FAILED_TEST_MAX = 12_000


def pairs(home: str = "", away: str = "") -> pytest.MarkDecorator:
    """For a test about some of the pairs: those that begin at, or go to, a server of this kind."""
    chosen = [pair for pair in PAIRS if pair.startswith(home) and pair.endswith(away)]
    return pytest.mark.parametrize("pair", chosen, indirect=True)


Connect = Callable[[Server, str], Awaitable[MatrixClient]]
"""Registers a user with this localpart (and a number, so that it is new) at a server."""


@dataclass(frozen=True)
class Pair:
    """Two running servers."""

    home: Server
    away: Server


class Fleet:
    """Starts a server when the first test asks for it; it stays for the session."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority(directory / "authority")
        self.servers: dict[str, Server] = {}

    def running(self, name: str) -> Server:
        """The server of this name, ``ours…`` or ``synapse…``."""
        if name not in self.servers:
            kind = SynapseServer if name.startswith("synapse") else OurServer
            self.servers[name] = kind(name, self.directory, self.authority)
        server = self.servers[name]
        server.start()
        return server

    def pair(self, names: str) -> Pair:
        """The two servers of a pair such as ``ours-synapse``."""
        home, away = names.split("-")
        return Pair(self.running(home), self.running(away if away != home else f"{away}2"))

    @contextmanager
    def visiting(self, name: str, **options: Any) -> Iterator[OurServer]:
        """A server of ours that runs for one test, with the options of ``OurServer``."""
        server = OurServer(name, self.directory, self.authority, **options)
        self.servers[name] = server
        try:
            server.start()
            yield server
        finally:
            server.kill()

    def kill(self) -> None:
        """End them all."""
        for server in self.servers.values():
            server.kill()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.interop)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        yield fleet
    finally:
        fleet.kill()


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest, fleet: Fleet) -> Pair:
    """Each pair in turn."""
    return fleet.pair(request.param)


_numbers = itertools.count(1)


@pytest.fixture
async def connect(anyio_backend: str) -> AsyncIterator[Connect]:
    """Makes users; their connections are closed after the test."""
    async with AsyncExitStack() as clients:

        async def connect(server: Server, name: str) -> MatrixClient:
            client = await clients.enter_async_context(MatrixClient(server.base_url))
            await client.register(f"{name}-{next(_numbers)}")
            return client

        yield connect


@pytest.fixture
async def alice(pair: Pair, connect: Connect) -> MatrixClient:
    """A user of the first server."""
    return await connect(pair.home, "alice")


@pytest.fixture
async def bob(pair: Pair, connect: Connect) -> MatrixClient:
    """A user of the second server."""
    return await connect(pair.away, "bob")


# -- what the servers say about it -------------------------------------------------------------------------------------

_LOGGED = pytest.StashKey[Callable[[], dict[Server, str]]]()


@pytest.fixture(autouse=True)
def server_logs(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[None]:
    """Adds what the servers logged during a test to the report of its failure; ours must not log an error."""
    sizes = {name: server.log_size() for name, server in fleet.servers.items()}

    def logged() -> dict[Server, str]:
        return {server: server.log_since(sizes.get(name, 0)) for name, server in fleet.servers.items()}

    request.node.stash[_LOGGED] = logged
    yield
    for server, text in logged().items():
        assert not isinstance(server, OurServer) or "[error" not in text, f"{server} logged an error"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed and _LOGGED in item.stash:
        for server, text in item.stash[_LOGGED]().items():
            report.sections.append((f"log of {server}", text[-LOG_OF_FAILED_TEST_MAX:]))
    return report
