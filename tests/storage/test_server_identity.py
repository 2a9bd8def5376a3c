"""Which server a database belongs to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from homeserver.errors import ConfigurationError
from homeserver.storage import server_identity
from homeserver.storage.database import Database


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
