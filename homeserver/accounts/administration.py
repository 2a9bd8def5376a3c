"""Managing accounts, for operators.

Each operation is a function over a connection, for the command line, which works on the database beside a running
server; and a method of ``Accounts``, for the server itself. A running server notices within ``REMEMBERED_SECONDS`` that
the command line revoked a token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sqlalchemy import Connection

from homeserver.accounts.passwords import Passwords
from homeserver.accounts.registration import user_id_for
from homeserver.accounts.sessions import Sessions
from homeserver.clock import Clock
from homeserver.errors import NotFound, UserInUse
from homeserver.storage import accounts as store
from homeserver.storage.accounts import User
from homeserver.storage.database import Database
from homeserver.storage.sessions import end_sessions

OnDeactivated = Callable[[str], Awaitable[None]]
"""Called with the user ID after an account was closed, so that the user leaves all rooms."""


def create_user(
    connection: Connection, user_id: str, password_hash: str | None, *, is_admin: bool, now_ms: int
) -> None:
    """Create an account; without a hash nobody can log in to it. Raises ``UserInUse``."""
    if not store.create_user(connection, user_id, password_hash, is_admin=is_admin, now_ms=now_ms):
        raise UserInUse(f"{user_id} exists")


def list_users(connection: Connection, *, after: str = "", limit: int = 1000) -> list[User]:
    """Accounts, deactivated ones included, ordered by user ID; only those after ``after``."""
    return store.list_users(connection, after=after, limit=limit)


def set_password(connection: Connection, user_id: str, password_hash: str) -> list[bytes]:
    """Set a password and log the user out everywhere; returns the hashes of revoked access tokens.

    Raises ``NotFound`` if there is no such account or it is closed.
    """
    if not store.set_password_hash(connection, user_id, password_hash):
        raise NotFound(f"There is no active account {user_id}")
    return end_sessions(connection, user_id)


def deactivate_user(connection: Connection, user_id: str, now_ms: int) -> list[bytes]:
    """Close an account: no password, no devices, no profile; returns the hashes of revoked access tokens.

    The caller must make the user leave all rooms. Raises ``NotFound`` if there is no such account or it is closed.
    """
    if not store.deactivate_user(connection, user_id, now_ms):
        raise NotFound(f"There is no active account {user_id}")
    return end_sessions(connection, user_id)


class Accounts:
    """The same operations inside a running server."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        passwords: Passwords,
        sessions: Sessions,
        *,
        server_name: str,
        on_deactivated: OnDeactivated | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._passwords = passwords
        self._sessions = sessions
        self._server_name = server_name
        self._on_deactivated = on_deactivated

    async def create(self, username: str, password: str, *, is_admin: bool = False) -> str:
        """Create an account; returns its user ID. Raises ``InvalidUsername``, ``UserInUse``, ``WeakPassword``."""
        user_id = user_id_for(username, self._server_name)
        password_hash = await self._passwords.hash(password)

        def create(connection: Connection) -> None:
            create_user(connection, user_id, password_hash, is_admin=is_admin, now_ms=self._clock.now_ms())

        await self._database.write(create)
        return user_id

    async def find(self, user_id: str) -> User | None:
        """An account, deactivated ones included."""
        return await self._database.read(store.find_user, user_id)

    async def set_password(self, user_id: str, password: str) -> None:
        """Set a password and log the user out everywhere. Raises ``NotFound``, ``WeakPassword``."""
        password_hash = await self._passwords.hash(password)
        self._sessions.revoked(user_id, await self._database.write(set_password, user_id, password_hash))

    async def deactivate(self, user_id: str) -> None:
        """Close an account and make its user leave all rooms. Raises ``NotFound``."""
        revoked = await self._database.write(deactivate_user, user_id, self._clock.now_ms())
        self._sessions.revoked(user_id, revoked)
        if self._on_deactivated is not None:
            await self._on_deactivated(user_id)
