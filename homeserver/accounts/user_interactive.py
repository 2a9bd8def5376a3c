"""User-interactive authentication: stages that a client completes in order before an operation is carried out.

A session belongs to one operation (of one user, where there is one). It is bound to the parameters of the request that
completes its first stage. Before that nothing has been proved, and clients ask for the stages before they know what
they will send. Parameters that a later request leaves out are those of the session's first request.

An operation that must not happen twice can leave its answer in the session (``finished``): a client that did not get
the answer repeats its request and gets the same one.

https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from sqlalchemy import Connection

from homeserver.accounts.access_tokens import hash_token
from homeserver.clock import Clock
from homeserver.errors import (
    BadJson,
    Forbidden,
    InteractiveAuthenticationRequired,
    LimitExceeded,
    MatrixError,
    UnknownError,
)
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.accounts import (
    UiaSession,
    delete_uia_session,
    find_uia_session,
    prune_uia_sessions,
    put_uia_session,
)
from homeserver.storage.database import Database

SESSION_LIFETIME_MS = 15 * 60 * 1000
SESSIONS_MAX = 10_000
"""How many sessions may be open at once; further requests get M_LIMIT_EXCEEDED."""
RETRY_AFTER_MS = 60_000
SESSION_ID_CHARACTERS_MAX = 100
PARAMETERS_BYTES_MAX = 4096
"""Parameters up to this size are stored; bounded, since any client can make the server store them."""

Flows = Sequence[tuple[str, ...]]
"""The possible ways to authenticate, each a sequence of stages."""
Stage = Callable[[JsonObject], Awaitable[None]]
"""Checks what the client says for one stage (the ``auth`` object); raises a MatrixError if it is not accepted."""

DUMMY = "m.login.dummy"
DUMMY_FLOWS: Flows = ((DUMMY,),)


async def dummy_stage(_auth: JsonObject) -> None:
    """https://spec.matrix.org/v1.19/client-server-api/#dummy-auth"""


@dataclass(frozen=True, slots=True)
class FinishedSession:
    """A session with the answer of its operation, which is done."""

    stored_id: str
    session: UiaSession

    def is_stored(self, connection: Connection) -> bool:
        """Whether another request of the session has carried an operation out."""
        stored = find_uia_session(connection, self.stored_id, 0)
        return stored is not None and stored.answer is not None

    def store(self, connection: Connection, now_ms: int) -> None:
        """Store it. Call this in the transaction that carries the operation out."""
        put_uia_session(connection, self.stored_id, self.session, now_ms)


class UserInteractive:
    """Keeps the sessions, and decides whether an operation may go ahead."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def recalled(self, operation: str, parameters: JsonObject) -> JsonObject:
        """The parameters of a request; those that it leaves out come from the first request of its session."""
        session_id, session = await self._session_of(operation, parameters)
        if session is None or session.parameters is None:
            return parameters
        remembered = _open(session_id, session.parameters)
        return {**remembered, **parameters} if isinstance(remembered, dict) else parameters

    async def answer_of(self, operation: str, parameters: JsonObject) -> JsonObject | None:
        """The stored answer of the operation, if this is a repetition of its request; see ``finished``."""
        session_id, session = await self._session_of(operation, parameters)
        return None if session is None else _answer(session_id, session, parameters)

    def finished(self, operation: str, parameters: JsonObject, answer: JsonObject) -> FinishedSession | None:
        """What to store in the transaction of the operation, so that a repeated request gets the same answer.

        None if the request names no session.
        """
        auth = parameters.get("auth")
        session_id = auth.get("session") if isinstance(auth, dict) else None
        if not isinstance(session_id, str):
            return None
        sealed = _seal(session_id, answer)
        remembered = _remembered(session_id, parameters)
        session = UiaSession(operation, _binding(session_id, parameters), (), remembered, sealed)
        return FinishedSession(_stored_id(session_id), session)

    async def _session_of(self, operation: str, parameters: JsonObject) -> tuple[str, UiaSession | None]:
        auth = parameters.get("auth")
        session_id = auth.get("session") if isinstance(auth, dict) else None
        if not isinstance(session_id, str):
            return "", None
        return session_id, await self._find(session_id, operation)

    async def authenticate(
        self,
        operation: str,
        parameters: JsonObject,
        flows: Flows,
        stages: Mapping[str, Stage],
        *,
        keeps_session: bool = False,
    ) -> JsonObject | None:
        """Return when a flow is complete: None, or the stored answer if this request was carried out meanwhile.

        ``operation`` names the operation, and the user if one is known; ``parameters`` is the request's body, with
        its ``auth``. ``keeps_session``: the session stays until the caller stores ``finished`` in its place. Raises
        ``InteractiveAuthenticationRequired`` with what the client needs for its next request.
        """
        auth = parameters.get("auth")
        if auth is None:
            raise await self._new_challenge(operation, flows, parameters=parameters)
        if not isinstance(auth, dict):
            raise BadJson("'auth' must be an object")
        session_id, stage = _word(auth, "session"), _word(auth, "type")
        session = None if session_id is None else await self._find(session_id, operation)
        if session_id is not None and session is not None and session.answer is not None:
            if (answer := _answer(session_id, session, parameters)) is not None:
                return answer
            session = None  # the session was for another request, which is done
        if session_id is not None and session is None:
            raise await self._new_challenge(operation, flows, UnknownError("The session is unknown or has expired"))
        completed = session.completed if session else ()
        if session_id is not None and session is not None and completed:
            _check_binding(session_id, session, parameters)
        if stage is not None and stage not in completed:
            completed = await self._attempt(operation, session_id, completed, stage, auth, flows, stages)
        if completed in [tuple(flow) for flow in flows]:
            if not keeps_session:
                await self._finish(session_id)
            return None
        raise await self._next_challenge(operation, session_id, session, completed, parameters, flows)

    async def _attempt(
        self,
        operation: str,
        session_id: str | None,
        completed: tuple[str, ...],
        stage: str,
        auth: JsonObject,
        flows: Flows,
        stages: Mapping[str, Stage],
    ) -> tuple[str, ...]:
        """The stages completed after this one; raises a challenge if the stage is not the next one or fails."""
        try:
            # "Failing to follow the flows in order must result in an HTTP 401 response"
            if not any(flow[: len(completed) + 1] == (*completed, stage) for flow in flows):
                raise Forbidden(f"{stage[:100]} is not the next stage of any flow")
            await stages[stage](auth)
        except LimitExceeded:
            raise
        except MatrixError as failure:
            if session_id is None:
                raise await self._new_challenge(operation, flows, failure) from None
            raise _challenge(session_id, flows, completed, failure) from None
        return (*completed, stage)

    async def _find(self, session_id: str, operation: str) -> UiaSession | None:
        if len(session_id) > SESSION_ID_CHARACTERS_MAX:
            return None
        not_before_ts = self._clock.now_ms() - SESSION_LIFETIME_MS
        session = await self._database.read(find_uia_session, _stored_id(session_id), not_before_ts)
        return session if session is not None and session.operation == operation else None

    async def _finish(self, session_id: str | None) -> None:
        if session_id is not None:
            await self._database.write(delete_uia_session, _stored_id(session_id))

    async def _new_challenge(
        self,
        operation: str,
        flows: Flows,
        failure: MatrixError | None = None,
        *,
        parameters: JsonObject | None = None,
    ) -> InteractiveAuthenticationRequired:
        session_id = secrets.token_urlsafe(18)
        await self._put(session_id, UiaSession(operation, b"", (), _remembered(session_id, parameters or {})))
        return _challenge(session_id, flows, (), failure)

    async def _next_challenge(
        self,
        operation: str,
        session_id: str | None,
        session: UiaSession | None,
        completed: tuple[str, ...],
        parameters: JsonObject,
        flows: Flows,
    ) -> InteractiveAuthenticationRequired:
        session_id = session_id or secrets.token_urlsafe(18)
        request = _binding(session_id, parameters) if completed else b""
        remembered = session.parameters if session is not None else _remembered(session_id, parameters)
        await self._put(session_id, UiaSession(operation, request, completed, remembered))
        return _challenge(session_id, flows, completed)

    async def _put(self, session_id: str, session: UiaSession) -> None:
        if not await self._database.write(_put, _stored_id(session_id), session, self._clock.now_ms()):
            raise LimitExceeded("Too many clients authenticate at once", retry_after_ms=RETRY_AFTER_MS)


def _put(connection: Connection, stored_id: str, session: UiaSession, now_ms: int) -> bool:
    if prune_uia_sessions(connection, now_ms - SESSION_LIFETIME_MS) >= SESSIONS_MAX:
        return False
    put_uia_session(connection, stored_id, session, now_ms)
    return True


def _challenge(
    session_id: str, flows: Flows, completed: tuple[str, ...], failure: MatrixError | None = None
) -> InteractiveAuthenticationRequired:
    progress = {"completed": list(completed)} if completed else {}
    return InteractiveAuthenticationRequired(
        failure, flows=[{"stages": list(flow)} for flow in flows], params={}, session=session_id, **progress
    )


def _answer(session_id: str, session: UiaSession, parameters: JsonObject) -> JsonObject | None:
    """The answer that a finished session stores for this request."""
    if session.answer is None or not hmac.compare_digest(session.request, _binding(session_id, parameters)):
        return None
    answer = _open(session_id, session.answer)
    return answer if isinstance(answer, dict) else None


def _check_binding(session_id: str, session: UiaSession, parameters: JsonObject) -> None:
    if not hmac.compare_digest(session.request, _binding(session_id, parameters)):
        raise Forbidden("The session belongs to another request")


def _binding(session_id: str, parameters: JsonObject) -> bytes:
    """What ties a session to the parameters of its request. The HMAC key is not stored, because parameters may hold a
    password.
    """
    without_auth = {name: value for name, value in parameters.items() if name != "auth"}
    return hmac.digest(session_id.encode(), orjson.dumps(without_auth, option=orjson.OPT_SORT_KEYS), "sha256")


def _remembered(session_id: str, parameters: JsonObject) -> bytes | None:
    """The parameters of a first request, encrypted; None if there are none or they are too large."""
    without_auth = {name: value for name, value in parameters.items() if name != "auth"}
    if not without_auth or len(orjson.dumps(without_auth)) > PARAMETERS_BYTES_MAX:
        return None
    return _seal(session_id, without_auth)


def _box(session_id: str) -> SecretBox:
    # Only the client knows the session ID, so the stored data cannot be decrypted with the database alone.
    return SecretBox(hmac.digest(session_id.encode(), b"what a session keeps", "sha256"))


def _seal(session_id: str, value: JsonObject) -> bytes:
    return bytes(_box(session_id).encrypt(orjson.dumps(value)))


def _open(session_id: str, sealed: bytes) -> Any:
    try:
        return orjson.loads(_box(session_id).decrypt(bytes(sealed)))
    except CryptoError:
        return None


def _stored_id(session_id: str) -> str:
    return hash_token(session_id).hex()


def _word(auth: JsonObject, name: str) -> str | None:
    value = auth.get(name)
    if value is not None and not isinstance(value, str):
        raise BadJson(f"'auth.{name}' must be a string")
    return value
