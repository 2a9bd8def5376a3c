"""Access tokens: finds the user and device of a request in the database, and caches them for a few seconds.

https://spec.matrix.org/v1.19/client-server-api/#using-access-tokens
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from homeserver.caches import WeightedCache
from homeserver.clock import Clock
from homeserver.errors import UnknownToken
from homeserver.storage.batched_reads import BatchedReads
from homeserver.storage.database import Database
from homeserver.storage.sessions import TokenOwner, find_token_owners, revoke_older_tokens

REMEMBERED_BYTES_MAX = 4 * 2**20
REMEMBERED_SECONDS = 5.0
"""How long this process may still accept a token that another process revoked."""
TOKEN_CHARACTERS_MAX = 512


@dataclass(frozen=True, slots=True)
class Requester:
    """The user and the device that a request acts for."""

    user_id: str
    device_id: str
    is_guest: bool = False
    is_admin: bool = False


def hash_token(token: str) -> bytes:
    """The hash under which a token is stored. (Tokens are random and cannot be guessed, so a fast hash is enough.)"""
    return hashlib.sha256(token.encode()).digest()


class AccessTokens:
    """Finds the owners of tokens."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._remembered: WeightedCache[bytes, tuple[Requester, float]] = WeightedCache(
            "access tokens", REMEMBERED_BYTES_MAX, lambda r: 250 + 4 * len(r[0].user_id) + 4 * len(r[0].device_id)
        )
        self._owners = BatchedReads(database, find_token_owners)
        """The tokens of clients that were woken together run out of the cache together, too."""
        self._times_forgotten = 0

    async def requester(self, token: str) -> Requester:
        """The owner of a token. Raises ``UnknownToken``; with ``soft_logout`` if the token has only expired."""
        if len(token) > TOKEN_CHARACTERS_MAX:
            raise UnknownToken()
        token_hash = hash_token(token)
        remembered = self._remembered.get(token_hash)
        if remembered is not None and self._clock.monotonic() < remembered[1]:
            return remembered[0]
        return await self._look_up(token_hash)

    def forget(self, token_hashes: Iterable[bytes]) -> None:
        """Drop revoked tokens from the cache at once; look-ups under way do not put them back."""
        self._times_forgotten += 1
        for token_hash in token_hashes:
            self._remembered.drop(token_hash)

    async def _look_up(self, token_hash: bytes) -> Requester:
        times_forgotten = self._times_forgotten
        owner = await self._owners.get(token_hash)
        if owner is None:
            self._remembered.drop(token_hash)
            raise UnknownToken()
        seconds = REMEMBERED_SECONDS
        if owner.expires_ts is not None:
            seconds = min(seconds, (owner.expires_ts - self._clock.now_ms()) / 1000)
            if seconds <= 0:
                # "Any HTTP calls that use an expired access token will return with an error code M_UNKNOWN_TOKEN,
                # preferably with soft_logout: true."
                raise UnknownToken("The access token has expired", soft_logout=True)
        if owner.has_predecessor:
            await self._revoke_predecessors(owner)
            times_forgotten = self._times_forgotten
        requester = Requester(owner.user_id, owner.device_id, owner.is_guest, owner.is_admin)
        if times_forgotten == self._times_forgotten:
            self._remember(token_hash, requester, seconds)
        return requester

    async def _revoke_predecessors(self, owner: TokenOwner) -> None:
        # "The old refresh token remains valid until the new access token or refresh token is used, at which point the
        # old refresh token is revoked."
        self.forget(await self._database.write(revoke_older_tokens, owner.user_id, owner.device_id, owner.created_ts))

    def _remember(self, token_hash: bytes, requester: Requester, seconds: float) -> None:
        self._remembered.put(token_hash, (requester, self._clock.monotonic() + seconds))
