"""Logging in with a password.

https://spec.matrix.org/v1.19/client-server-api/#legacy-login
"""

from __future__ import annotations

from sqlalchemy import Connection

from homeserver.accounts.login_guard import LoginGuard
from homeserver.accounts.passwords import Passwords
from homeserver.accounts.sessions import Session, SessionRequest, Sessions, new_tokens
from homeserver.clock import Clock
from homeserver.errors import Forbidden, LimitExceeded
from homeserver.protocol.identifiers import IDENTIFIER_BYTES_MAX
from homeserver.storage.accounts import find_user, set_password_hash
from homeserver.storage.database import Database
from homeserver.storage.sessions import NewTokens, start_session


class Login:
    """Authenticates users by password."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        passwords: Passwords,
        sessions: Sessions,
        guard: LoginGuard,
        *,
        server_name: str,
    ) -> None:
        self._database = database
        self._clock = clock
        self._passwords = passwords
        self._sessions = sessions
        self._guard = guard
        self._server_name = server_name

    async def with_password(self, user: str, password: str, request: SessionRequest, address: str) -> Session:
        """Start a session for a user ID or its localpart. Raises ``Forbidden``, ``LimitExceeded``.

        ``address`` is where the request comes from, as ``web.ClientAddresses`` gives it.

        Takes as long for an unknown user or a deactivated account as for a wrong password, so that the time does not
        tell which users exist.
        """
        user_id = self._user_id(user)
        password_hash = await self.verify_password(user_id, password, address)
        new_hash = None
        if self._passwords.needs_rehash(password_hash):
            new_hash = await self._passwords.hash(password, address)
        tokens, now_ms = new_tokens(request.wants_refresh_token), self._clock.now_ms()
        revoked = await self._database.write(
            _start, user_id, password_hash, new_hash, request, tokens.for_storage(now_ms), now_ms
        )
        if revoked is None:
            raise Forbidden("Invalid user name or password")
        self._sessions.revoked(user_id, revoked)
        return Session(user_id, request.device_id, tokens)

    async def verify_password(self, user_id: str, password: str, address: str) -> str:
        """Check a password and return the stored hash. Raises ``Forbidden``, ``LimitExceeded``."""
        attempt = self._guard.begin(user_id, address)
        account = await self._database.read(find_user, user_id)
        # NOTSPEC: a deactivated account gets no M_USER_DEACTIVATED. Its hash is deleted, so nobody can prove any more
        # that the account was theirs, and to others its state is no business.
        password_hash = account.password_hash if account and not account.is_deactivated else None
        try:
            fits = await self._passwords.verify(password_hash, password, address)
        except LimitExceeded:
            self._guard.withdraw(attempt)
            raise
        if not fits or password_hash is None:
            raise Forbidden("Invalid user name or password")
        self._guard.withdraw(attempt)
        return password_hash

    def _user_id(self, user: str) -> str:
        """The user ID that the client means. All our localparts are lower case, but users may type upper case."""
        if len(user) > IDENTIFIER_BYTES_MAX or "\0" in user:
            return ""
        if not user.startswith("@"):
            return f"@{user.lower()}:{self._server_name}"
        localpart, _, server_name = user.partition(":")
        return f"{localpart.lower()}:{server_name}" if server_name == self._server_name else ""


def _start(
    connection: Connection,
    user_id: str,
    password_hash: str,
    new_hash: str | None,
    request: SessionRequest,
    tokens: NewTokens,
    now_ms: int,
) -> list[bytes] | None:
    """Start a session; returns the tokens that it revokes, or None if meanwhile the password was changed or the account
    closed.
    """
    account = find_user(connection, user_id)
    if account is None or account.is_deactivated or account.password_hash != password_hash:
        return None
    if new_hash is not None:
        set_password_hash(connection, user_id, new_hash)
    return start_session(connection, user_id, request.device_id, request.device_name, tokens, now_ms)
