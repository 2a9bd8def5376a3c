"""homeserver/storage/streams.py: numbers are given out once, in order."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import Connection

from homeserver.storage import streams
from homeserver.storage.database import Database


def test_numbers_ascend(database: Database) -> None:
    with database.begin() as connection:
        assert list(streams.take(connection, "stream", 3)) == [1, 2, 3]
        assert streams.next_position(connection) == 4
        assert list(streams.take(connection, "event")) == [1]
        assert list(streams.take(connection, "stream", 0)) == []
        assert streams.current_position(connection) == 4


def test_numbers_are_taken_back_with_the_transaction(database: Database) -> None:
    def fail(connection: Connection) -> None:
        streams.next_position(connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(database.write(fail))
    assert asyncio.run(database.write(streams.next_position)) == 1


def test_backfill_counts_downwards(database: Database) -> None:
    with database.begin() as connection:
        assert list(streams.take_backfill(connection, 2)) == [-1, -2]
        assert list(streams.take_backfill(connection, 1)) == [-3]
        assert streams.current_position(connection) == 0


def test_positions_are_announced_once(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    with database.begin() as connection:
        assert streams.announce(connection, 0, "me") == 0  # nothing happened
        streams.take(connection, "stream", 3)
        assert streams.announce(connection, 0, "me") == 3
        assert streams.announce(connection, 3, "me") == 3
    database.close()
