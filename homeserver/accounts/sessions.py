"""Sessions: a device with an access token, and a refresh token for clients that want one.

https://spec.matrix.org/v1.19/client-server-api/#relationship-between-access-tokens-and-devices
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass

from homeserver.accounts.access_tokens import TOKEN_CHARACTERS_MAX, AccessTokens, hash_token
from homeserver.clock import Clock
from homeserver.errors import InvalidParam, UnknownToken
from homeserver.notifier import Notifier
from homeserver.protocol.identifiers import fits_in_bytes
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import Database
from homeserver.storage.sessions import NewTokens, end_sessions, refresh_session

TOKEN_RANDOM_BYTES = 32
REFRESHABLE_LIFETIME_MS = 60 * 60 * 1000
"""How long a refreshable access token is valid, in ms; other tokens are valid until they are revoked."""
DEVICE_ID_CHARACTERS = 10
DEVICE_ID_BYTES_MAX = 255
DEVICE_NAME_CHARACTERS_MAX = 100


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What a client asks of its session when it registers or logs in."""

    device_id: str
    device_name: str | None
    wants_refresh_token: bool

    @classmethod
    def checked(
        cls, device_id: str | None, device_name: str | None, wants_refresh_token: bool = False
    ) -> SessionRequest:
        """Check the request; without a device ID, choose a random one. Raises ``InvalidParam`` for an unusable device
        ID.
        """
        if device_id is None:
            device_id = "".join(secrets.choice(string.ascii_uppercase) for _ in range(DEVICE_ID_CHARACTERS))
        elif not device_id or not device_id.isprintable() or not fits_in_bytes(device_id, DEVICE_ID_BYTES_MAX):
            raise InvalidParam(f"A device ID has 1 to {DEVICE_ID_BYTES_MAX} bytes of printable characters")
        if device_name is not None:
            device_name = device_name[:DEVICE_NAME_CHARACTERS_MAX]
        return cls(device_id, device_name, wants_refresh_token)


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens in plain text, as the client gets them."""

    access_token: str
    refresh_token: str | None
    expires_in_ms: int | None

    def for_storage(self, now_ms: int) -> NewTokens:
        """The hashes and times that are stored of them."""
        return NewTokens(
            hash_token(self.access_token),
            None if self.refresh_token is None else hash_token(self.refresh_token),
            None if self.expires_in_ms is None else now_ms + self.expires_in_ms,
        )

    def body(self) -> JsonObject:
        """The fields of an answer."""
        body: JsonObject = {"access_token": self.access_token}
        if self.refresh_token is not None:
            body |= {"refresh_token": self.refresh_token, "expires_in_ms": self.expires_in_ms}
        return body


@dataclass(frozen=True, slots=True)
class Session:
    """A session that has started."""

    user_id: str
    device_id: str
    tokens: Tokens

    def body(self) -> JsonObject:
        """The fields that the answers to /register and /login share."""
        # home_server is deprecated, but costs nothing and old clients read it.
        server_name = self.user_id.partition(":")[2]
        return {
            "user_id": self.user_id,
            "device_id": self.device_id,
            "home_server": server_name,
            **self.tokens.body(),
        }


def new_tokens(refreshable: bool) -> Tokens:
    """Random tokens."""
    access_token = secrets.token_urlsafe(TOKEN_RANDOM_BYTES)
    if not refreshable:
        return Tokens(access_token, None, None)
    return Tokens(access_token, secrets.token_urlsafe(TOKEN_RANDOM_BYTES), REFRESHABLE_LIFETIME_MS)


class Sessions:
    """Refreshes and ends sessions. (Registration and login start them in their own transactions.)"""

    def __init__(self, database: Database, clock: Clock, access_tokens: AccessTokens, notifier: Notifier) -> None:
        self._database = database
        self._clock = clock
        self._access_tokens = access_tokens
        self._notifier = notifier

    async def refresh(self, refresh_token: str) -> Tokens:
        """New tokens for a refresh token. Raises ``UnknownToken``.

        https://spec.matrix.org/v1.19/client-server-api/#refreshing-access-tokens
        """
        if len(refresh_token) > TOKEN_CHARACTERS_MAX:
            raise UnknownToken("Unknown refresh token")
        tokens, now_ms = new_tokens(refreshable=True), self._clock.now_ms()
        refreshed = await self._database.write(
            refresh_session, hash_token(refresh_token), tokens.for_storage(now_ms), now_ms
        )
        if refreshed is None:
            raise UnknownToken("Unknown refresh token")
        self.revoked(refreshed.user_id, refreshed.revoked)
        return tokens

    async def end(self, user_id: str, device_ids: Iterable[str] | None = None) -> None:
        """Log out and delete devices of a user, by default all of them."""
        chosen = None if device_ids is None else list(device_ids)
        self.revoked(user_id, await self._database.write(end_sessions, user_id, chosen))

    def revoked(self, user_id: str, token_hashes: Iterable[bytes]) -> None:
        """After a commit that revoked access tokens: drop them from the cache, and wake the user's long polls to check
        again.
        """
        hashes = list(token_hashes)
        # Call this even without hashes: a look-up under way may have read a token that is now revoked.
        self._access_tokens.forget(hashes)
        if hashes:
            self._notifier.wake_user(user_id)
