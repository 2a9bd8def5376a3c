"""Users, their profiles, and sessions of user-interactive authentication."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import Connection, bindparam, delete, func, select, update

from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import in_slices, insert, upsert
from homeserver.storage.tables import uia_sessions, users


@dataclass(frozen=True, slots=True)
class User:
    """An account on this server."""

    user_id: str
    password_hash: str | None
    is_admin: bool
    is_guest: bool
    deactivated_ts: int | None
    created_ts: int
    display_name: str | None
    avatar_url: str | None

    @property
    def is_deactivated(self) -> bool:
        """Whether the account can never be used again."""
        return self.deactivated_ts is not None


@dataclass(frozen=True, slots=True)
class UiaSession:
    """User-interactive authentication of one operation: the completed stages, and the request that it belongs to."""

    operation: str
    request: bytes
    completed: tuple[str, ...]
    parameters: bytes | None = None
    """The encrypted parameters of the first request, for a client that does not repeat them."""
    answer: bytes | None = None
    """The encrypted answer of the operation, once it is done."""


_USER_COLUMNS = (
    users.c.user_id,
    users.c.password_hash,
    users.c.is_admin,
    users.c.is_guest,
    users.c.deactivated_ts,
    users.c.created_ts,
    users.c.display_name,
    users.c.avatar_url,
)
_USER = select(*_USER_COLUMNS).where(users.c.user_id == bindparam("user_id"))
_PROFILE = select(users.c.display_name, users.c.avatar_url, users.c.profile).where(
    users.c.user_id == bindparam("user_id"), users.c.deactivated_ts.is_(None)
)

# -- users -------------------------------------------------------------------------------------------------------------


def create_user(
    connection: Connection, user_id: str, password_hash: str | None, *, is_admin: bool, now_ms: int
) -> bool:
    """Create an account; False if the user ID is taken, even by a deactivated account."""
    statement = insert(connection, users).values(
        user_id=user_id, password_hash=password_hash, is_admin=is_admin, is_guest=False, created_ts=now_ms
    )
    # Not every driver returns the row count of an INSERT.
    return connection.scalar(statement.on_conflict_do_nothing().returning(users.c.user_id)) is not None


def find_user(connection: Connection, user_id: str) -> User | None:
    """An account, deactivated ones included."""
    row = connection.execute(_USER, {"user_id": user_id}).first()
    return None if row is None else User(*row)


def list_users(connection: Connection, *, after: str = "", limit: int = 1000) -> list[User]:
    """Accounts ordered by user ID, starting after ``after``."""
    statement = select(*_USER_COLUMNS).where(users.c.user_id > after).order_by(users.c.user_id).limit(limit)
    return [User(*row) for row in connection.execute(statement)]


def existing_users(connection: Connection, user_ids: Sequence[str]) -> set[str]:
    """Those of the user IDs that have an active account here."""
    found: set[str] = set()
    for part in in_slices(user_ids):
        statement = select(users.c.user_id).where(users.c.user_id.in_(part), users.c.deactivated_ts.is_(None))
        found.update(connection.scalars(statement))
    return found


def closed_among(connection: Connection, user_ids: Sequence[str]) -> set[str]:
    """Those of the user IDs whose accounts were closed."""
    found: set[str] = set()
    for part in in_slices(user_ids):
        statement = select(users.c.user_id).where(users.c.user_id.in_(part), users.c.deactivated_ts.is_not(None))
        found.update(connection.scalars(statement))
    return found


def set_password_hash(connection: Connection, user_id: str, password_hash: str) -> bool:
    """Set the password of an active account; False if there is none."""
    statement = update(users).where(users.c.user_id == user_id, users.c.deactivated_ts.is_(None))
    return bool(connection.execute(statement.values(password_hash=password_hash)).rowcount)


def deactivate_user(connection: Connection, user_id: str, now_ms: int) -> bool:
    """Close an account: remove its password, rights and profile; False if it is closed already or does not exist."""
    statement = update(users).where(users.c.user_id == user_id, users.c.deactivated_ts.is_(None))
    emptied = {"password_hash": None, "is_admin": False, "display_name": None, "avatar_url": None, "profile": None}
    return bool(connection.execute(statement.values(deactivated_ts=now_ms, **emptied)).rowcount)


# -- profiles ----------------------------------------------------------------------------------------------------------


def read_profile(connection: Connection, user_id: str) -> JsonObject | None:
    """The profile fields of an active account, None if there is no such account."""
    row = connection.execute(_PROFILE, {"user_id": user_id}).first()
    return None if row is None else _profile_of(row.display_name, row.avatar_url, row.profile)


def read_profiles(connection: Connection, user_ids: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
    """Display names and avatars of those of the users who have an active account here."""
    found: dict[str, tuple[str | None, str | None]] = {}
    for part in in_slices(user_ids):
        statement = select(users.c.user_id, users.c.display_name, users.c.avatar_url).where(
            users.c.user_id.in_(part), users.c.deactivated_ts.is_(None)
        )
        found.update({row.user_id: (row.display_name, row.avatar_url) for row in connection.execute(statement)})
    return found


def write_profile(connection: Connection, user_id: str, profile: JsonObject) -> None:
    """Replace the profile of an account."""
    others = {name: value for name, value in profile.items() if name not in ("displayname", "avatar_url")}
    connection.execute(
        update(users)
        .where(users.c.user_id == user_id)
        .values(
            display_name=profile.get("displayname"),
            avatar_url=profile.get("avatar_url"),
            profile=orjson.dumps(others) if others else None,
        )
    )


def _profile_of(display_name: str | None, avatar_url: str | None, others: bytes | None) -> JsonObject:
    profile: JsonObject = {}
    if display_name is not None:
        profile["displayname"] = display_name
    if avatar_url is not None:
        profile["avatar_url"] = avatar_url
    if others is not None:
        profile.update(orjson.loads(others))
    return profile


# -- user-interactive authentication -----------------------------------------------------------------------------------


def put_uia_session(connection: Connection, session_id: str, session: UiaSession, now_ms: int) -> None:
    """Store the progress of an authentication."""
    row = {
        "session_id": session_id,
        "operation": session.operation,
        "request": session.request,
        "completed": " ".join(session.completed),
        "created_ts": now_ms,
        "parameters": session.parameters,
        "answer": session.answer,
    }
    upsert(connection, uia_sessions, [row], ["session_id"])


def find_uia_session(connection: Connection, session_id: str, not_before_ts: int) -> UiaSession | None:
    """The session of an authentication that began since ``not_before_ts``."""
    table = uia_sessions.c
    statement = select(table.operation, table.request, table.completed, table.parameters, table.answer).where(
        table.session_id == session_id, table.created_ts >= not_before_ts
    )
    row = connection.execute(statement).first()
    if row is None:
        return None
    completed = tuple(row.completed.split())
    return UiaSession(row.operation, bytes(row.request), completed, row.parameters, row.answer)


def delete_uia_session(connection: Connection, session_id: str) -> bool:
    """Delete the session of an authentication; False if it does not exist (any more)."""
    return bool(connection.execute(delete(uia_sessions).where(uia_sessions.c.session_id == session_id)).rowcount)


def prune_uia_sessions(connection: Connection, before_ts: int) -> int:
    """Delete sessions that began before ``before_ts``; returns how many remain."""
    connection.execute(delete(uia_sessions).where(uia_sessions.c.created_ts < before_ts))
    return connection.execute(select(func.count()).select_from(uia_sessions)).scalar_one()
