"""New accounts, for whoever may register here.

https://spec.matrix.org/v1.19/client-server-api/#legacy-account-registration
"""

from __future__ import annotations

import secrets
import string

from sqlalchemy import Connection

from homeserver.accounts.passwords import Passwords, check_new_password
from homeserver.accounts.sessions import Session, SessionRequest, Sessions, new_tokens
from homeserver.accounts.user_interactive import DUMMY, DUMMY_FLOWS, UserInteractive, dummy_stage
from homeserver.clock import Clock
from homeserver.errors import Forbidden, InvalidUsername, MissingParam, UserInUse
from homeserver.protocol.identifiers import IDENTIFIER_BYTES_MAX, is_valid_new_localpart
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.accounts import create_user, find_user
from homeserver.storage.database import Database
from homeserver.storage.sessions import NewTokens, start_session

RANDOM_USERNAME_CHARACTERS = 12


def user_id_for(username: str, server_name: str) -> str:
    """The user ID that a user name stands for; capitals become small. Raises ``InvalidUsername``."""
    # "the server MUST either map the provided username onto a user_id in a logical manner, or reject any username
    # which does not comply to the grammar with M_INVALID_USERNAME"
    localpart = username.lower() if username.isascii() else username
    user_id = f"@{localpart}:{server_name}"
    if not is_valid_new_localpart(localpart):
        raise InvalidUsername("A user name consists of the characters a-z 0-9 . _ = - / +")
    if len(user_id) > IDENTIFIER_BYTES_MAX:
        raise InvalidUsername(f"A user ID may have {IDENTIFIER_BYTES_MAX} bytes")
    return user_id


class Registration:
    """Registers users, where registration is open."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        passwords: Passwords,
        sessions: Sessions,
        user_interactive: UserInteractive,
        *,
        server_name: str,
        is_enabled: bool,
    ) -> None:
        self._database = database
        self._clock = clock
        self._passwords = passwords
        self._sessions = sessions
        self._user_interactive = user_interactive
        self._server_name = server_name
        self._is_enabled = is_enabled

    async def require_available(self, username: str) -> str:
        """The user ID that a user name would get. Raises ``Forbidden``, ``InvalidUsername``, ``UserInUse``."""
        self._require_enabled()
        user_id = user_id_for(username, self._server_name)
        if await self._database.read(find_user, user_id) is not None:
            raise UserInUse()
        return user_id

    async def register(
        self,
        parameters: JsonObject,
        username: str | None,
        password: str | None,
        session_request: SessionRequest | None,
    ) -> tuple[str, Session | None]:
        """Create an account and, where a session is asked for, log its owner in; returns the user ID.

        ``parameters`` is the whole body, for the user-interactive authentication. Raises ``Forbidden``,
        ``InvalidUsername``, ``UserInUse``, ``WeakPassword``, ``BadJson``, ``MissingParam`` and
        ``InteractiveAuthenticationRequired``.
        """
        self._require_enabled()
        # "Homeservers MUST perform the relevant checks and return these codes before performing User-Interactive
        # Authentication"
        if username is not None:
            user_id = await self.require_available(username)
        else:
            user_id = user_id_for(_random_username(), self._server_name)
        if password is not None:
            check_new_password(password)
        await self._user_interactive.authenticate("register", parameters, DUMMY_FLOWS, {DUMMY: dummy_stage})
        if password is None:
            raise MissingParam("'password' is missing")
        return user_id, await self._create(user_id, await self._passwords.hash(password), session_request)

    async def _create(self, user_id: str, password_hash: str, request: SessionRequest | None) -> Session | None:
        now_ms = self._clock.now_ms()
        if request is None:
            created = await self._database.write(_create, user_id, password_hash, None, None, now_ms)
            tokens = None
        else:
            tokens = new_tokens(request.wants_refresh_token)
            created = await self._database.write(
                _create, user_id, password_hash, request, tokens.for_storage(now_ms), now_ms
            )
        if not created:
            raise UserInUse()
        return Session(user_id, request.device_id, tokens) if request and tokens else None

    def _require_enabled(self) -> None:
        if not self._is_enabled:
            raise Forbidden("Registration is disabled")


def _create(
    connection: Connection,
    user_id: str,
    password_hash: str,
    request: SessionRequest | None,
    tokens: NewTokens | None,
    now_ms: int,
) -> bool:
    if not create_user(connection, user_id, password_hash, is_admin=False, now_ms=now_ms):
        return False
    if request is not None and tokens is not None:
        start_session(connection, user_id, request.device_id, request.device_name, tokens, now_ms)
    return True


def _random_username() -> str:
    letters = string.ascii_lowercase + string.digits
    return "u" + "".join(secrets.choice(letters) for _ in range(RANDOM_USERNAME_CHARACTERS))
