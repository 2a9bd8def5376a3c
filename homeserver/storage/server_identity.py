"""The name of the server that a database belongs to. It is part of every user ID and signature, so it can never
change.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from homeserver.errors import ConfigurationError
from homeserver.storage.database import insert
from homeserver.storage.tables import server_identity

_ONLY_ROW = 1


def recorded_name(connection: Connection) -> str | None:
    """The name of the server that the database belongs to; None before the first start."""
    name: str | None = connection.scalar(select(server_identity.c.server_name))
    return name


def check_name(connection: Connection, server_name: str) -> None:
    """Raise ``ConfigurationError`` if the database belongs to a server of another name."""
    recorded = recorded_name(connection)
    if recorded is not None and recorded != server_name:
        raise ConfigurationError(mismatch(recorded, server_name))


def claim(connection: Connection, server_name: str) -> None:
    """Record that the database belongs to this server, if it belongs to none yet.

    Of two processes that start at the same time with different names, one gets the database and the other one fails.
    Raises ``ConfigurationError`` if the database belongs to a server of another name.
    """
    # If another transaction is about to insert the row, this statement waits for its end.
    row = {"id": _ONLY_ROW, "server_name": server_name}
    connection.execute(insert(connection, server_identity).on_conflict_do_nothing(index_elements=["id"]).values(row))
    check_name(connection, server_name)


def mismatch(recorded: str, configured: str) -> str:
    """The error message for a configured server name that differs from the database's."""
    return (
        f'server_name = "{configured}": the database belongs to the server "{recorded}", and the name of a server '
        f'cannot be changed. Set server_name = "{recorded}" again, or give the new server a new database '
        "(database.url) and new keys (keys_dir)"
    )
