"""What migrations make of the data that is there, on each database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import create_engine, text

from homeserver.storage import migrate, server_identity
from homeserver.storage.database import Database
from homeserver.storage.server_keys import StoredResponse, load_responses


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'homeserver.db'}"
    url: str = request.getfixturevalue("empty_postgresql_url")
    return url


def fill_at(url: str, revision: str, table: str, *rows: dict[str, object]) -> None:
    """Bring an empty database to a revision, with these rows in one of its tables."""
    engine = create_engine(url)
    with engine.begin() as connection:
        command.upgrade(migrate.alembic_config(connection), revision)
        for row in rows:
            names = ", ".join(row)
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES (:{names.replace(', ', ', :')})"), row)
    engine.dispose()


@contextmanager
def upgraded(url: str) -> Iterator[Database]:
    migrate.upgrade(url)
    database = Database(url)
    yield database
    database.close()


@pytest.mark.parametrize(
    ("accounts", "name"), [((), None), (("@zoe:one.example:8448", "@ann:one.example:8448"), "one.example:8448")]
)
def test_a_database_in_use_adopts_the_server_name_of_its_accounts(
    url: str, accounts: tuple[str, ...], name: str | None
) -> None:
    fill_at(url, "0001", "users", *({"user_id": user_id, "created_ts": ts} for ts, user_id in enumerate(accounts)))
    with upgraded(url) as database:
        assert database.read_now(server_identity.recorded_name) == name


def test_what_servers_published_of_their_keys_is_kept(url: str) -> None:
    row = {"server_name": "a.example", "response": b"{}", "valid_until_ts": 2, "fetched_ts": 1}
    fill_at(url, "0001", "server_key_responses", row)
    with upgraded(url) as database:
        assert database.read_now(load_responses, "a.example") == [StoredResponse(b"{}", 2, 1)]
