"""Account data: what clients store on the server for their user, for the whole account or for one room.

https://spec.matrix.org/v1.19/client-server-api/#client-config
"""

from __future__ import annotations

import orjson

from homeserver.errors import InvalidParam, ManagedByServer, NotFound, TooLarge
from homeserver.notifier import Change, Notifier, Stream
from homeserver.protocol.identifiers import fits_in_bytes
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.account_data import GLOBAL, get_account_data, put_account_data
from homeserver.storage.database import Database

MANAGED_BY_SERVER = frozenset({"m.fully_read", "m.push_rules"})
"""The types that clients set by other endpoints or not at all."""
CONTENT_BYTES_MAX = 256 * 1024
TYPE_BYTES_MAX = 255


class AccountData:
    """Sets and reads account data, and wakes the user's other clients."""

    def __init__(self, database: Database, notifier: Notifier) -> None:
        self._database = database
        self._notifier = notifier

    async def put(self, user_id: str, type_: str, content: JsonObject, room_id: str = GLOBAL) -> None:
        """Set account data of a type that clients may set. Raises ``ManagedByServer``, ``InvalidParam``,
        ``TooLarge``.
        """
        # "Servers MUST reject setting account data for event types that the server manages by using a 405 error
        # response."
        if type_ in MANAGED_BY_SERVER:
            raise ManagedByServer(f"{type_} cannot be set here")
        await self.store(user_id, type_, content, room_id)

    async def store(self, user_id: str, type_: str, content: JsonObject, room_id: str = GLOBAL) -> None:
        """Set account data of any type, including those that the server manages. Raises ``InvalidParam``,
        ``TooLarge``.
        """
        if not fits_in_bytes(type_, TYPE_BYTES_MAX):
            raise InvalidParam(f"The type may have {TYPE_BYTES_MAX} bytes")
        content_json = orjson.dumps(content)
        if len(content_json) > CONTENT_BYTES_MAX:
            raise TooLarge(f"Account data may have {CONTENT_BYTES_MAX} bytes")
        position = await self._database.write(put_account_data, user_id, room_id, type_, content_json)
        self._notifier.publish([Change(position, Stream.ACCOUNT_DATA, room_id or None, (user_id,))])

    async def get(self, user_id: str, type_: str, room_id: str = GLOBAL) -> bytes:
        """The content, as JSON. Raises ``NotFound``."""
        content = await self._database.read(get_account_data, user_id, room_id, type_)
        if content is None:
            raise NotFound("There is no account data of this type")
        return content
