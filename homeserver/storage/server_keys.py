"""The keys of other servers, as we last heard of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from homeserver.storage.database import in_slices, upsert
from homeserver.storage.tables import server_key_responses, server_keys


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A public key of a server."""

    key_id: str
    verify_key: str
    """In unpadded Base64."""
    valid_until_ts: int
    """For events; a key that was given up is valid until then."""
    expired_ts: int | None
    """When its server gave it up."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """What a server published about its keys."""

    response: bytes
    """The signed JSON object."""
    valid_until_ts: int
    fetched_ts: int


def load(connection: Connection, server_names: Sequence[str]) -> dict[str, list[StoredKey]]:
    """The keys of these servers; a server without any is not in the answer."""
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


def load_response(connection: Connection, server_name: str) -> StoredResponse | None:
    """What the server published when it was last asked."""
    columns = server_key_responses.c
    row = connection.execute(
        select(columns.response, columns.valid_until_ts, columns.fetched_ts).where(columns.server_name == server_name)
    ).one_or_none()
    return StoredResponse(*row) if row is not None else None


def store(connection: Connection, server_name: str, keys: Sequence[StoredKey], response: StoredResponse) -> None:
    """Remember keys of a server in place of what was known under the same IDs.

    ``response``, in which they came, is kept unless one is there that is valid for longer.
    """
    rows = [
        {
            "server_name": server_name,
            "key_id": key.key_id,
            "verify_key": key.verify_key,
            "valid_until_ts": key.valid_until_ts,
            "expired_ts": key.expired_ts,
            "fetched_ts": response.fetched_ts,
        }
        for key in keys
    ]
    upsert(connection, server_keys, rows, ("server_name", "key_id"))
    before = load_response(connection, server_name)
    if before is None or response.valid_until_ts >= before.valid_until_ts:
        row = {
            "server_name": server_name,
            "response": response.response,
            "valid_until_ts": response.valid_until_ts,
            "fetched_ts": response.fetched_ts,
        }
        upsert(connection, server_key_responses, [row], ("server_name",))
