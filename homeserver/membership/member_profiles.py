"""What member events say about our users."""

from __future__ import annotations

from collections.abc import Callable

from homeserver.protocol.json_types import JsonObject
from homeserver.storage import accounts
from homeserver.storage.database import Database


class MemberProfiles:
    """Makes the content of member events."""

    def __init__(self, database: Database, is_local: Callable[[str], bool]) -> None:
        self._database = database
        self._is_local = is_local

    async def member_content(self, user_id: str, membership: str, reason: str | None = None) -> JsonObject:
        """The content of a member event, with name and picture if the user is one of ours."""
        content: JsonObject = {"membership": membership}
        if self._is_local(user_id):
            profiles = await self._database.read(accounts.read_profiles, [user_id])
            name, avatar = profiles.get(user_id, (None, None))
            if name is not None:
                content["displayname"] = name
            if avatar is not None:
                content["avatar_url"] = avatar
        if reason is not None:
            content["reason"] = reason
        return content
