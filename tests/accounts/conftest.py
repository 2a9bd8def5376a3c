from __future__ import annotations

from collections.abc import Iterator

import pytest

from homeserver.storage.database import Database
from tests.accounts.account_server import AccountServer


@pytest.fixture
def server(database: Database) -> Iterator[AccountServer]:
    """The account side of a server, on each kind of database."""
    server = AccountServer(database)
    yield server
    server.close()


@pytest.fixture
def sqlite_server(sqlite_url: str) -> Iterator[AccountServer]:
    """The same where the kind of database makes no difference."""
    database = Database(sqlite_url)
    server = AccountServer(database)
    yield server
    server.close()
    database.close()
