"""Devices, and their access and refresh tokens. Only the SHA-256 of a token is stored.

Tokens that were issued together have the same ``created_ts``, and later ones of a device a greater one, so that it
orders the generations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, Connection, Table, bindparam, delete, exists, select

from homeserver.storage.database import insert
from homeserver.storage.tables import access_tokens, client_transactions, devices, refresh_tokens, users

Condition = Callable[[Table], ColumnElement[bool]]
"""Selects some of a device's tokens."""


@dataclass(frozen=True, slots=True)
class NewTokens:
    """An access token, and a refresh token for clients that support it."""

    access_token_hash: bytes
    refresh_token_hash: bytes | None
    expires_ts: int | None


@dataclass(frozen=True, slots=True)
class TokenOwner:
    """The user and the device that an access token belongs to."""

    user_id: str
    device_id: str
    is_guest: bool
    is_admin: bool
    created_ts: int
    expires_ts: int | None
    has_predecessor: bool
    """Whether an earlier refresh token of the device is still valid until the first use of this token."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The result of using a refresh token."""

    user_id: str
    device_id: str
    revoked: list[bytes]


_OWNERS = (
    select(
        access_tokens.c.token_hash,
        access_tokens.c.user_id,
        access_tokens.c.device_id,
        users.c.is_guest,
        users.c.is_admin,
        access_tokens.c.created_ts,
        access_tokens.c.expires_ts,
    )
    .join(users, users.c.user_id == access_tokens.c.user_id)
    .where(access_tokens.c.token_hash.in_(bindparam("token_hashes", expanding=True)))
)
_HAS_OLDER_REFRESH_TOKEN = select(
    exists().where(
        refresh_tokens.c.user_id == bindparam("user_id"),
        refresh_tokens.c.device_id == bindparam("device_id"),
        refresh_tokens.c.created_ts < bindparam("created_ts"),
    )
)


def start_session(
    connection: Connection,
    user_id: str,
    device_id: str,
    display_name: str | None,
    tokens: NewTokens,
    now_ms: int,
) -> list[bytes]:
    """Create the device unless it exists, and replace its tokens. Returns the hashes of revoked access tokens.

    "If the client sets the device_id, the server will invalidate any access and refresh tokens previously assigned
    to that device."
    """
    revoked = _revoke(connection, user_id, device_id)
    row = {"user_id": user_id, "device_id": device_id, "display_name": display_name, "created_ts": now_ms}
    connection.execute(insert(connection, devices).values(row).on_conflict_do_nothing())
    _insert_tokens(connection, user_id, device_id, tokens, now_ms)
    return revoked


def refresh_session(
    connection: Connection, refresh_token_hash: bytes, tokens: NewTokens, now_ms: int
) -> Refreshed | None:
    """Issue new tokens for a refresh token; None if it is unknown.

    The refresh token stays valid until one of the new tokens is used; so does its access token, until it expires. Older
    tokens are deleted, and those of an earlier, unfinished attempt.
    """
    statement = select(refresh_tokens.c.user_id, refresh_tokens.c.device_id, refresh_tokens.c.created_ts)
    row = connection.execute(statement.where(refresh_tokens.c.token_hash == refresh_token_hash)).first()
    if row is None:
        return None
    revoked = _revoke(connection, row.user_id, row.device_id, lambda table: table.c.created_ts != row.created_ts)
    _insert_tokens(connection, row.user_id, row.device_id, tokens, max(now_ms, row.created_ts + 1))
    return Refreshed(row.user_id, row.device_id, revoked)


def revoke_older_tokens(connection: Connection, user_id: str, device_id: str, created_ts: int) -> list[bytes]:
    """Revoke a device's tokens from before ``created_ts``. Returns the hashes of access tokens."""
    return _revoke(connection, user_id, device_id, lambda table: table.c.created_ts < created_ts)


def find_token_owners(connection: Connection, token_hashes: Sequence[bytes]) -> dict[bytes, TokenOwner]:
    """The owners of access tokens by hash, also of expired ones."""
    found: dict[bytes, TokenOwner] = {}
    for row in connection.execute(_OWNERS, {"token_hashes": token_hashes}).all():
        owner = TokenOwner(*row[1:], has_predecessor=False)
        if owner.expires_ts is not None:
            device = {"user_id": owner.user_id, "device_id": owner.device_id, "created_ts": owner.created_ts}
            if connection.execute(_HAS_OLDER_REFRESH_TOKEN, device).scalar_one():
                owner = replace(owner, has_predecessor=True)
        found[bytes(row.token_hash)] = owner
    return found


def end_sessions(connection: Connection, user_id: str, device_ids: Iterable[str] | None = None) -> list[bytes]:
    """Delete devices of a user, all of them by default, and their tokens. Returns the hashes of access tokens.

    Their transaction IDs are deleted too: a later device with the same ID is another one.
    """
    chosen = None if device_ids is None else list(device_ids)
    revoked: list[bytes] = []
    for table in (access_tokens, refresh_tokens, client_transactions, devices):
        statement = delete(table).where(table.c.user_id == user_id)
        if chosen is not None:
            statement = statement.where(table.c.device_id.in_(chosen))
        if table is access_tokens:
            revoked = [bytes(value) for value in connection.scalars(statement.returning(table.c.token_hash))]
        else:
            connection.execute(statement)
    return revoked


def _insert_tokens(connection: Connection, user_id: str, device_id: str, tokens: NewTokens, created_ts: int) -> None:
    row = {"user_id": user_id, "device_id": device_id, "created_ts": created_ts}
    connection.execute(
        access_tokens.insert().values(**row, token_hash=tokens.access_token_hash, expires_ts=tokens.expires_ts)
    )
    if tokens.refresh_token_hash is not None:
        connection.execute(
            refresh_tokens.insert().values(
                **row, token_hash=tokens.refresh_token_hash, access_token_hash=tokens.access_token_hash
            )
        )


def _revoke(connection: Connection, user_id: str, device_id: str, condition: Condition | None = None) -> list[bytes]:
    revoked: list[bytes] = []
    for table in (access_tokens, refresh_tokens):
        statement = delete(table).where(table.c.user_id == user_id, table.c.device_id == device_id)
        if condition is not None:
            statement = statement.where(condition(table))
        if table is access_tokens:
            revoked = [bytes(value) for value in connection.scalars(statement.returning(table.c.token_hash))]
        else:
            connection.execute(statement)
    return revoked
