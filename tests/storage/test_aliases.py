"""homeserver/storage/aliases.py"""

from __future__ import annotations

from homeserver.storage import aliases
from homeserver.storage.database import Database

ALICE, BOB = "@alice:example.org", "@bob:example.org"


def test_an_alias_has_one_room(database: Database) -> None:
    with database.begin() as connection:
        assert aliases.add_alias(connection, "#b:example.org", "!one:example.org", ALICE)
        assert aliases.add_alias(connection, "#a:example.org", "!one:example.org", BOB)
        assert not aliases.add_alias(connection, "#b:example.org", "!two:example.org", BOB)
        assert aliases.alias_row(connection, "#b:example.org") == ("!one:example.org", ALICE)
        assert aliases.aliases_of(connection, "!one:example.org") == ["#a:example.org", "#b:example.org"]
        assert aliases.remove_alias(connection, "#b:example.org")
        assert not aliases.remove_alias(connection, "#b:example.org")
        assert aliases.alias_row(connection, "#b:example.org") is None
        assert aliases.add_alias(connection, "#b:example.org", "!two:example.org", BOB)


def test_what_is_looked_for_may_be_anything(database: Database) -> None:
    assert database.read_now(aliases.alias_row, "#a\0b:example.org") is None
