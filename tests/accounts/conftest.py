from __future__ import annotations

from collections.abc import Iterator

import pytest

from homeserver.storage.database import Database
from tests.accounts.account_server import AccountServer, running


@pytest.fixture
def server(database: Database) -> Iterator[AccountServer]:
    """The account side of a server, on each kind of database."""
    server = AccountServer(database)
    yield server
    server.close()


@pytest.fixture
def sqlite_server(sqlite_url: str) -> Iterator[AccountServer]:
    """The same where the kind of database makes no difference."""
    with running(sqlite_url) as server:
        yield server
