"""The keys of other servers, as last published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import Connection, delete, select

from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import in_slices, upsert
from homeserver.storage.tables import server_key_responses, server_keys

RESPONSES_MAX = 10
"""How many responses of one server are kept: the latest, and earlier ones with keys that no later one has."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A public key of a server."""

    key_id: str
    verify_key: str
    """In unpadded Base64."""
    valid_until_ts: int
    """For events; an expired key is valid until it expired."""
    expired_ts: int | None
    """When its server retired it."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """What a server published about its keys."""

    response: bytes
    """The signed JSON object."""
    valid_until_ts: int
    fetched_ts: int

    def parsed(self) -> JsonObject:
        """The parsed object."""
        published: JsonObject = orjson.loads(self.response)
        return published

    def key_ids(self) -> set[str]:
        """The IDs of the keys in it, old ones included."""
        published = self.parsed()
        return {key_id for name in ("verify_keys", "old_verify_keys") for key_id in published.get(name) or ()}


def load(connection: Connection, server_names: Sequence[str]) -> dict[str, list[StoredKey]]:
    """The keys of these servers; a server without any is left out of the result."""
    columns = server_keys.c
    found: dict[str, list[StoredKey]] = {}
    for names in in_slices(server_names):
        query = select(
            columns.server_name, columns.key_id, columns.verify_key, columns.valid_until_ts, columns.expired_ts
        ).where(columns.server_name.in_(names))
        for server_name, key_id, verify_key, valid_until_ts, expired_ts in connection.execute(query):
            key = StoredKey(key_id, verify_key, valid_until_ts, expired_ts)
            found.setdefault(server_name, []).append(key)
    return found


def load_responses(connection: Connection, server_name: str) -> list[StoredResponse]:
    """The responses of the server that are kept: the one that is valid for longest first."""
    columns = server_key_responses.c
    rows = connection.execute(
        select(columns.response, columns.valid_until_ts, columns.fetched_ts)
        .where(columns.server_name == server_name)
        .order_by(columns.valid_until_ts.desc(), columns.fetched_ts.desc())
    )
    return [StoredResponse(*row) for row in rows]


def store(
    connection: Connection,
    server_name: str,
    keys: Sequence[StoredKey],
    fetched_ts: int,
    response: StoredResponse | None,
) -> None:
    """Store keys of a server, replacing those with the same IDs, and the ``response`` that they came in, if it is to be
    passed on.

    An earlier response is kept as long as it has a key that no later one has: other servers may still need that key to
    check old events, and its server may not publish it any more.
    """
    rows = [
        {
            "server_name": server_name,
            "key_id": key.key_id,
            "verify_key": key.verify_key,
            "valid_until_ts": key.valid_until_ts,
            "expired_ts": key.expired_ts,
            "fetched_ts": fetched_ts,
        }
        for key in keys
    ]
    upsert(connection, server_keys, rows, ("server_name", "key_id"))
    if response is not None:
        _store_response(connection, server_name, response)


def _store_response(connection: Connection, server_name: str, response: StoredResponse) -> None:
    row = {
        "server_name": server_name,
        "fetched_ts": response.fetched_ts,
        "response": response.response,
        "valid_until_ts": response.valid_until_ts,
    }
    upsert(connection, server_key_responses, [row], ("server_name", "fetched_ts"))
    covered: set[str] = set()
    superfluous: list[int] = []
    for index, kept in enumerate(load_responses(connection, server_name)):
        key_ids = kept.key_ids()
        if index >= RESPONSES_MAX or (index > 0 and key_ids <= covered):
            superfluous.append(kept.fetched_ts)
        covered |= key_ids
    columns = server_key_responses.c
    if superfluous:
        connection.execute(
            delete(server_key_responses).where(columns.server_name == server_name, columns.fetched_ts.in_(superfluous))
        )
