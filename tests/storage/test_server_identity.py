"""Which server a database belongs to."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from alembic import command
from sqlalchemy import Connection, create_engine, text

from homeserver.errors import ConfigurationError
from homeserver.storage import migrate, server_identity
from homeserver.storage.database import Database

BEFORE = "0001"
"""The last revision without the name."""


def test_the_first_name_stays(database: Database) -> None:
    assert database.read_now(server_identity.recorded_name) is None
    database.read_now(server_identity.check_name, "two.example")  # nothing is recorded that it could differ from
    for _ in range(2):
        with database.begin() as connection:
            server_identity.claim(connection, "one.example")
    with pytest.raises(ConfigurationError, match=r'"two.example".*belongs to the server "one.example"'):
        database.read_now(server_identity.check_name, "two.example")
    with pytest.raises(ConfigurationError, match=r"one\.example"), database.begin() as connection:
        server_identity.claim(connection, "two.example")
    assert database.read_now(server_identity.recorded_name) == "one.example"


def test_of_two_that_start_at_once_one_gets_the_database(database_url: str) -> None:
    barrier = Barrier(2)

    def start(name: str) -> bool:
        database = Database(database_url)
        try:
            barrier.wait(10)
            with database.begin() as connection:
                server_identity.claim(connection, name)
        except ConfigurationError:
            return False
        finally:
            database.close()
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(start, ("one.example", "two.example"))) == [False, True]


@pytest.mark.parametrize(
    ("accounts", "name"), [((), None), (("@ann:one.example:8448", "@zoe:one.example:8448"), "one.example:8448")]
)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_database_in_use_adopts_the_name_of_its_accounts(
    kind: str, accounts: tuple[str, ...], name: str | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/old.db" if kind == "sqlite" else request.getfixturevalue("empty_postgresql_url")

    def add_accounts(connection: Connection) -> None:
        for created_ts, user_id in enumerate(accounts):
            statement = text("INSERT INTO users (user_id, created_ts) VALUES (:user_id, :created_ts)")
            connection.execute(statement, {"user_id": user_id, "created_ts": created_ts})

    _migrate_to(url, BEFORE, add_accounts)
    migrate.upgrade(url)
    database = Database(url)
    assert database.read_now(server_identity.recorded_name) == name
    database.close()


def _migrate_to(url: str, revision: str, then: Callable[[Connection], None]) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        command.upgrade(migrate.alembic_config(connection), revision)
        then(connection)
    engine.dispose()
