"""Memberships of our users that other servers have to help with, since this server is not in the room.

(Invitations of users of other servers are sent by ``sent_invitations``.)
"""

from __future__ import annotations

from collections.abc import Sequence

from homeserver.membership.remote_joins import RemoteJoins
from homeserver.membership.remote_knocks import RemoteKnocks
from homeserver.membership.remote_leaves import RemoteLeaves
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.user_rooms import Standing


class RemoteMembership:
    """Lets our users join, leave and knock on rooms with the help of other servers."""

    def __init__(self, joins: RemoteJoins, leaves: RemoteLeaves, knocks: RemoteKnocks) -> None:
        self._joins = joins
        self._leaves = leaves
        self._knocks = knocks

    async def join(self, room_id: str, user_id: str, content: JsonObject, servers: Sequence[str]) -> None:
        """See ``RemoteJoins.join``."""
        await self._joins.join(room_id, user_id, content, servers)

    async def leave(self, standing: Standing, user_id: str, reason: str | None) -> None:
        """See ``RemoteLeaves.leave``."""
        await self._leaves.leave(standing, user_id, reason)

    async def knock(self, room_id: str, user_id: str, content: JsonObject, servers: Sequence[str]) -> None:
        """See ``RemoteKnocks.knock``."""
        await self._knocks.knock(room_id, user_id, content, servers)
