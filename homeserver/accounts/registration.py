"""Registers new accounts.

https://spec.matrix.org/v1.19/client-server-api/#legacy-account-registration
"""

from __future__ import annotations

import secrets
import string

from sqlalchemy import Connection

from homeserver.accounts.passwords import Passwords, check_new_password
from homeserver.accounts.sessions import Session, SessionRequest, Sessions, Tokens, new_tokens
from homeserver.accounts.user_interactive import DUMMY, DUMMY_FLOWS, UserInteractive, dummy_stage
from homeserver.clock import Clock
from homeserver.errors import Forbidden, InvalidUsername, MissingParam, UserInUse
from homeserver.protocol.identifiers import IDENTIFIER_BYTES_MAX, is_valid_new_localpart
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.accounts import create_user, find_user
from homeserver.storage.database import Database
from homeserver.storage.sessions import start_session

RANDOM_USERNAME_CHARACTERS = 12
OPERATION = "register"
"""The operation of these sessions of user-interactive authentication."""


def user_id_for(username: str, server_name: str) -> str:
    """The user ID for a user name, in lower case. Raises ``InvalidUsername``."""
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

    async def recalled(self, parameters: JsonObject) -> JsonObject:
        """The body of a request; parameters that it leaves out come from the first request of its session."""
        return await self._user_interactive.recalled(OPERATION, parameters)

    async def register(
        self,
        parameters: JsonObject,
        username: str | None,
        password: str | None,
        session_request: SessionRequest | None,
        address: str,
    ) -> JsonObject:
        """Create an account and, if ``session_request`` is given, a session; returns the body of the answer.

        ``address`` is where the request comes from, as ``web.ClientAddresses`` gives it. ``parameters`` is the whole
        body (see ``recalled``), for the user-interactive authentication. A request that is repeated within its session
        gets the answer that it got before. Raises ``Forbidden``, ``InvalidUsername``, ``UserInUse``, ``WeakPassword``,
        ``BadJson``, ``MissingParam``, ``LimitExceeded`` and ``InteractiveAuthenticationRequired``.
        """
        self._require_enabled()
        if (answer := await self._user_interactive.answer_of(OPERATION, parameters)) is not None:
            return answer
        try:
            return await self._register(parameters, username, password, session_request, address)
        except UserInUse:
            # The same request, sent twice, may have won on another connection.
            if (answer := await self._user_interactive.answer_of(OPERATION, parameters)) is not None:
                return answer
            raise

    async def _register(
        self,
        parameters: JsonObject,
        username: str | None,
        password: str | None,
        request: SessionRequest | None,
        address: str,
    ) -> JsonObject:
        # "Homeservers MUST perform the relevant checks and return these codes before performing User-Interactive
        # Authentication"
        if username is not None:
            user_id = await self.require_available(username)
        else:
            user_id = user_id_for(_random_username(), self._server_name)
        if password is not None:
            check_new_password(password)
        earlier = await self._user_interactive.authenticate(
            OPERATION, parameters, DUMMY_FLOWS, {DUMMY: dummy_stage}, keeps_session=True
        )
        if earlier is not None:
            return earlier
        if password is None:
            raise MissingParam("'password' is missing")
        tokens = new_tokens(request.wants_refresh_token) if request is not None else None
        answer: JsonObject = {"user_id": user_id}
        if request is not None and tokens is not None:
            answer = Session(user_id, request.device_id, tokens).body()
        password_hash = await self._passwords.hash(password, address)
        await self._create(user_id, password_hash, request, tokens, parameters, answer)
        return answer

    async def _create(
        self,
        user_id: str,
        password_hash: str,
        request: SessionRequest | None,
        tokens: Tokens | None,
        parameters: JsonObject,
        answer: JsonObject,
    ) -> None:
        now_ms = self._clock.now_ms()
        finished = self._user_interactive.finished(OPERATION, parameters, answer)

        def create(connection: Connection) -> bool:
            if finished is not None and finished.is_stored(connection):
                return False
            if not create_user(connection, user_id, password_hash, is_admin=False, now_ms=now_ms):
                return False
            if request is not None and tokens is not None:
                stored = tokens.for_storage(now_ms)
                start_session(connection, user_id, request.device_id, request.device_name, stored, now_ms)
            if finished is not None:
                finished.store(connection, now_ms)
            return True

        if not await self._database.write(create):
            raise UserInUse()

    def _require_enabled(self) -> None:
        if not self._is_enabled:
            raise Forbidden("Registration is disabled")


def _random_username() -> str:
    letters = string.ascii_lowercase + string.digits
    return "u" + "".join(secrets.choice(letters) for _ in range(RANDOM_USERNAME_CHARACTERS))
