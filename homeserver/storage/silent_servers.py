"""Servers that do not answer when they are asked for history: since when, and when they were asked last."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select

from homeserver.storage.database import in_slices, insert
from homeserver.storage.tables import silent_servers


@dataclass(frozen=True, slots=True)
class Silence:
    """How long a server has not answered."""

    since_ts: int
    last_ts: int
    """When it was asked last, in vain."""
    times: int


def silences_of(connection: Connection, server_names: Iterable[str]) -> dict[str, Silence]:
    """Those of the servers that did not answer the last time, by name."""
    table = silent_servers.c
    found: dict[str, Silence] = {}
    for part in in_slices(list(server_names)):
        statement = select(table.server_name, table.since_ts, table.last_ts, table.times)
        rows = connection.execute(statement.where(table.server_name.in_(part)))
        found.update((row[0], Silence(*row[1:])) for row in rows)
    return found


def note_silence(connection: Connection, server_name: str, now_ms: int) -> Silence:
    """A server was asked in vain. Returns its silence so far."""
    table = silent_servers.c
    row = {"server_name": server_name, "since_ts": now_ms, "last_ts": now_ms, "times": 1}
    statement = (
        insert(connection, silent_servers)
        .values(row)
        .on_conflict_do_update(index_elements=["server_name"], set_={"last_ts": now_ms, "times": table.times + 1})
        .returning(table.since_ts, table.last_ts, table.times)
    )
    return Silence(*connection.execute(statement).one())


def is_silent(connection: Connection, server_name: str) -> bool:
    """Whether a server did not answer the last time."""
    statement = select(silent_servers.c.times).where(silent_servers.c.server_name == server_name)
    return connection.execute(statement).first() is not None


def forget_silence(connection: Connection, server_name: str) -> None:
    """A server is there again."""
    connection.execute(delete(silent_servers).where(silent_servers.c.server_name == server_name))
