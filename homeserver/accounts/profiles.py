"""Profiles: what others see of a user, here and on other servers.

https://spec.matrix.org/v1.19/client-server-api/#profiles
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import orjson
from sqlalchemy import Connection

from homeserver.errors import (
    BadJson,
    Forbidden,
    InvalidParam,
    KeyTooLarge,
    NotFound,
    ProfileTooLarge,
    RemoteFailed,
    RemoteRefused,
)
from homeserver.protocol.identifiers import is_valid_server_name, is_valid_user_id, server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.accounts import read_profile, read_profiles, write_profile
from homeserver.storage.database import Database

PROFILE_BYTES_MAX = 64 * 1024
"""The limit for the whole profile as JSON, from the specification."""
KEY_BYTES_MAX = 255
DISPLAY_NAME_CHARACTERS_MAX = 256
"""A display name goes into a membership event in each of the user's rooms, and events have a size limit."""
AVATAR_URL_CHARACTERS_MAX = 1000
TIME_ZONE_CHARACTERS_MAX = 100

IN_MEMBER_EVENTS = frozenset({"displayname", "avatar_url"})
"""The fields that are copied into the user's rooms when they change."""
_TEXTS = IN_MEMBER_EVENTS | {"m.tz"}

_KEY = re.compile(r"(?:avatar_url|displayname|[a-z][a-z0-9_-]*(?:\.[a-z0-9_-]+)+)\Z")
_MXC = re.compile(r"mxc://(?P<server>[^/\s]+)/[A-Za-z0-9_-]+\Z")
_TIME_ZONE = re.compile(r"[A-Za-z0-9_+/-]+\Z")

OnChange = Callable[[str], Awaitable[None]]
"""Called with the user ID after a change of the display name or the avatar."""


class RemoteProfiles(Protocol):
    """Asks other servers, see ``homeserver.federation.client``."""

    async def query_profile(self, destination: str, user_id: str, field: str | None = None) -> JsonObject:
        """A remote user's profile, or one field of it. Raises ``RemoteError``."""


class Profiles:
    """Reads the profiles of all users, and changes those of our own users."""

    def __init__(
        self,
        database: Database,
        remote: RemoteProfiles,
        *,
        server_name: str,
        on_change: OnChange | None = None,
    ) -> None:
        self._database = database
        self._remote = remote
        self._server_name = server_name
        self._on_change = on_change

    async def profile(self, user_id: str) -> JsonObject:
        """All fields of any user. Raises ``InvalidParam``, ``NotFound``, ``Forbidden``, ``RemoteError``."""
        if self.is_ours(user_id):
            return await self.local_profile(user_id)
        return await self._remote_profile(user_id, None)

    async def field(self, user_id: str, key: str) -> JsonObject:
        """One field of any user, as an object with that one key. Raises as ``profile`` does."""
        check_key(key)
        if self.is_ours(user_id):
            profile = await self.local_profile(user_id)
        else:
            profile = await self._remote_profile(user_id, key)
        if key not in profile:
            raise NotFound("The user has no such profile field")
        return {key: profile[key]}

    async def local_profile(self, user_id: str) -> JsonObject:
        """All fields of one of our own users. Raises ``NotFound``."""
        profile = await self._database.read(read_profile, user_id)
        if profile is None:
            raise NotFound("There is no such user")
        return profile

    async def names_and_avatars(self, user_ids: list[str]) -> dict[str, tuple[str | None, str | None]]:
        """Display name and avatar of those of the users who have an account here."""
        return await self._database.read(read_profiles, user_ids)

    async def set_field(self, user_id: str, key: str, value: Any) -> None:
        """Set one field of one of our own users. An empty display name or avatar removes it.

        Raises ``InvalidParam``, ``BadJson``, ``KeyTooLarge``, ``ProfileTooLarge``, ``NotFound``.
        """
        check_key(key)
        check_value(key, value)
        if value == "" and key in IN_MEMBER_EVENTS:
            await self.delete_field(user_id, key)
        else:
            await self._change(user_id, {key: value}, frozenset())

    async def delete_field(self, user_id: str, key: str) -> None:
        """Remove one field of one of our own users, if it exists. Raises ``InvalidParam``, ``NotFound``."""
        check_key(key)
        await self._change(user_id, {}, frozenset({key}))

    async def _change(self, user_id: str, values: JsonObject, removed: frozenset[str]) -> None:
        outcome = await self._database.write(_change, user_id, values, removed)
        if outcome is None:
            raise NotFound("There is no such user")
        if outcome == "too large":
            raise ProfileTooLarge()
        if outcome == "changed" and self._on_change is not None and IN_MEMBER_EVENTS & (values.keys() | removed):
            await self._on_change(user_id)

    def is_ours(self, user_id: str) -> bool:
        """Whether a user is of this server. Raises ``InvalidParam`` if it is no user ID."""
        if not is_valid_user_id(user_id):
            raise InvalidParam("Not a user ID")
        return server_of(user_id) == self._server_name

    async def _remote_profile(self, user_id: str, key: str | None) -> JsonObject:
        try:
            answer = await self._remote.query_profile(server_of(user_id), user_id, key)
        except RemoteRefused as refusal:
            if refusal.status == 404:
                raise NotFound("The other server knows no such profile") from None
            if refusal.status == 403:
                # "The remote server MAY itself deny profile queries over federation"
                raise Forbidden("The other server does not show this profile") from None
            raise
        return usable_profile(server_of(user_id), answer)


def check_key(key: str) -> None:
    """Raise ``KeyTooLarge`` or ``InvalidParam`` unless a profile field may have this name.

    https://spec.matrix.org/v1.19/appendices/#common-namespaced-identifier-grammar
    """
    if len(key.encode()) > KEY_BYTES_MAX:
        raise KeyTooLarge()
    if not _KEY.match(key):
        raise InvalidParam("Not the name of a profile field")


def check_value(key: str, value: Any) -> None:
    """Raise ``BadJson`` or ``InvalidParam`` for a value that the field cannot have; custom fields may have any
    value.
    """
    if key not in _TEXTS:
        return
    if not isinstance(value, str):
        raise BadJson(f"'{key}' must be a string")
    if key == "displayname" and len(value) > DISPLAY_NAME_CHARACTERS_MAX:
        raise InvalidParam(f"A display name may have {DISPLAY_NAME_CHARACTERS_MAX} characters")
    if key == "avatar_url" and value and not is_mxc_uri(value):
        # "For avatar_url, the value MUST be an MXC URI string."
        raise InvalidParam("'avatar_url' must be an mxc:// URI")
    if key == "m.tz" and not (len(value) <= TIME_ZONE_CHARACTERS_MAX and _TIME_ZONE.match(value)):
        raise InvalidParam("'m.tz' must be the name of a time zone")


def usable_profile(server_name: str, answer: JsonObject) -> JsonObject:
    """A profile as another server gives it, without malformed fields. Raises ``RemoteFailed``."""
    usable = {key: value for key, value in answer.items() if key not in _TEXTS or isinstance(value, str)}
    try:
        size = len(orjson.dumps(usable))
    except orjson.JSONEncodeError as error:  # nested too deeply to be encoded again
        raise RemoteFailed(f"{server_name} gave no usable profile") from error
    if size > PROFILE_BYTES_MAX:
        raise RemoteFailed(f"{server_name} gave a profile that is too large")
    return usable


def is_mxc_uri(text: str) -> bool:
    """Whether the text is a Matrix content URI. https://spec.matrix.org/v1.19/client-server-api/#matrix-content-mxc-uris"""
    if len(text) > AVATAR_URL_CHARACTERS_MAX:
        return False
    match = _MXC.match(text)
    return match is not None and is_valid_server_name(match["server"])


def _change(connection: Connection, user_id: str, values: JsonObject, removed: frozenset[str]) -> str | None:
    """None: no such user; otherwise ``changed``, ``unchanged`` or ``too large``."""
    profile = read_profile(connection, user_id)
    if profile is None:
        return None
    changed = {name: value for name, value in (profile | values).items() if name not in removed}
    if changed == profile:
        return "unchanged"
    if values and len(orjson.dumps(changed)) >= PROFILE_BYTES_MAX:
        return "too large"
    write_profile(connection, user_id, changed)
    return "changed"
