"""Room aliases: names for rooms that point to a room ID and to servers to join it through.

https://spec.matrix.org/v1.19/client-server-api/#room-aliases
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from homeserver.errors import (
    AliasInUse,
    Forbidden,
    InvalidParam,
    MatrixError,
    NotFound,
    RemoteError,
    RemoteFailed,
    RemoteRefused,
)
from homeserver.graph.outdated_heads import refuses_by_newest_state
from homeserver.graph.send import Recommended, Sender
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.protocol.events import CREATE, POWER_LEVELS, EventDraft, StateKey
from homeserver.protocol.identifiers import is_valid_room_alias, is_valid_room_id, server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.power_levels import power_levels_of
from homeserver.storage import aliases
from homeserver.storage.database import Database

logger = structlog.get_logger(__name__)

CANONICAL_ALIAS: StateKey = ("m.room.canonical_alias", "")
SERVERS_NAMED_MAX = 50
"""How many servers an answer names as candidates for joining."""


class Directory(Protocol):
    """Asks another server about one of its aliases."""

    async def query_directory(self, destination: str, room_alias: str) -> JsonObject:
        """What the alias points to, as ``{"room_id", "servers"}``. Raises ``RemoteError``."""


def _without_alias(content: JsonObject, alias: str) -> JsonObject | None:
    """The content of m.room.canonical_alias without one alias; None if it does not name it."""
    without = dict(content)
    if without.get("alias") == alias:
        del without["alias"]
    others = without.get("alt_aliases")
    if isinstance(others, list) and alias in others:
        without["alt_aliases"] = [other for other in others if other != alias]
        if not without["alt_aliases"]:
            del without["alt_aliases"]
    return without if without != content else None


@dataclass(frozen=True, slots=True)
class AliasTarget:
    """What an alias points to."""

    room_id: str
    servers: list[str]


class RoomAliases:
    """Adds, removes and resolves room aliases."""

    def __init__(
        self, database: Database, heads: RoomHeads, sender: Sender, directory: Directory, server_name: str
    ) -> None:
        self._database = database
        self._heads = heads
        self._sender = sender
        self._directory = directory
        self._server_name = server_name

    async def resolve(self, alias: str) -> AliasTarget:
        """Look an alias up, here or at its own server.

        Raises ``InvalidParam`` if it is not an alias, ``NotFound`` if it does not exist, ``RemoteFailed`` if its server
        does not answer.
        """
        if self.is_ours(alias):
            return await self.resolve_local(alias)
        server = server_of(alias)
        try:
            answer = await self._directory.query_directory(server, alias)
        except RemoteRefused as error:
            if error.status == 404:
                raise NotFound("Room alias not found") from error
            raise RemoteFailed(f"Could not ask {server} for the alias") from error
        except RemoteError as error:
            raise RemoteFailed(f"Could not ask {server} for the alias") from error
        room_id, servers = answer.get("room_id"), answer.get("servers")
        if not isinstance(room_id, str) or not is_valid_room_id(room_id) or not isinstance(servers, list):
            raise RemoteFailed(f"{server} gave no usable answer for the alias")
        named = [name for name in servers[:SERVERS_NAMED_MAX] if isinstance(name, str)]
        return AliasTarget(room_id, named if server in named else [*named, server])

    def is_ours(self, alias: str) -> bool:
        """Whether an alias is of this server. Raises ``InvalidParam`` if it is no alias."""
        if not is_valid_room_alias(alias):
            raise InvalidParam("Not a valid room alias")
        return server_of(alias) == self._server_name

    async def resolve_local(self, alias: str) -> AliasTarget:
        """Look up an alias of this server; raises ``NotFound``."""
        row = await self._database.read(aliases.alias_row, alias)
        if row is None:
            raise NotFound("Room alias not found")
        head = await self._heads.find(row[0])
        servers = list(head.joined_servers)[:SERVERS_NAMED_MAX] if head else []
        if self._server_name not in servers:
            servers.append(self._server_name)
        return AliasTarget(row[0], servers)

    @refuses_by_newest_state
    async def add(self, alias: str, room_id: str, creator: str) -> None:
        """Give a room a new alias of this server.

        Raises ``InvalidParam``, ``NotFound`` and ``Forbidden`` for the room, and ``AliasInUse``.
        """
        if not is_valid_room_alias(alias) or alias.startswith("#:"):
            raise InvalidParam("Not a valid room alias")
        if server_of(alias) != self._server_name:
            raise InvalidParam(f"Aliases on this server end in :{self._server_name}")
        if not is_valid_room_id(room_id):
            raise InvalidParam("Not a room ID")
        head = await self._heads.get(room_id)
        if creator not in head.joined:
            raise Forbidden("You are not in this room")
        await self.claim(alias, room_id, creator)

    async def claim(self, alias: str, room_id: str, creator: str) -> None:
        """Store an alias that is checked already. Raises ``AliasInUse``."""
        if not await self._database.write(aliases.add_alias, alias, room_id, creator):
            raise AliasInUse(f"{alias} is already taken")

    async def is_taken(self, alias: str) -> bool:
        """Whether this server has the alias."""
        return await self._database.read(aliases.alias_row, alias) is not None

    async def remove(self, alias: str, user_id: str) -> None:
        """Remove an alias. Its creator and users who may set the room's canonical alias may do so.

        If the room's m.room.canonical_alias names it, it is removed there as well. "Servers which choose to update
        the canonical alias event are recommended to [...] return a successful response even if the user does not have
        permission to update" it.

        Raises ``NotFound``, ``Forbidden``.

        https://spec.matrix.org/v1.19/client-server-api/#delete_matrixclientv3directoryroomroomalias
        """
        row = await self._database.read(aliases.alias_row, alias)
        if row is None:
            raise NotFound("Room alias not found")
        room_id, creator = row
        if user_id != creator and not await self._may_name(room_id, user_id):
            raise Forbidden("You may not remove this alias")
        await self._database.write(aliases.remove_alias, alias)
        await self._take_out_of_canonical(alias, room_id, user_id)

    async def _take_out_of_canonical(self, alias: str, room_id: str, user_id: str) -> None:
        async def job(working: WorkingHead, recommended: Recommended) -> Sequence[NewEvent]:
            standing = (await working.shown_state_events([CANONICAL_ALIAS])).get(CANONICAL_ALIAS)
            content = None if standing is None else _without_alias(standing.content, alias)
            if content is None:
                return []
            draft = EventDraft(CANONICAL_ALIAS[0], user_id, content, CANONICAL_ALIAS[1])
            return [await self._sender.compose_recommended(working, draft, recommended)]

        try:
            await self._sender.submit(room_id, job)
        except MatrixError as error:  # the user is not in the room or lacks the power, or the room changes too fast
            logger.info("the canonical alias still names a removed alias", room_id=room_id, reason=error.message)

    async def withdraw(self, room_id: str) -> None:
        """Remove all aliases of this server for a room, and its entry in the room directory."""
        await self._database.write(aliases.withdraw, room_id)

    async def _may_name(self, room_id: str, user_id: str) -> bool:
        head = await self._heads.find(room_id)
        if head is None or user_id not in head.joined:
            return False
        keys = (CREATE, POWER_LEVELS)
        state = await self._heads.original_state_events(head, keys)
        levels = power_levels_of(head.version, state.get(keys[0]), state.get(keys[1]))
        return levels.of_user(user_id) >= levels.to_send("m.room.canonical_alias", True)

    async def of_room(self, head: RoomHead) -> list[str]:
        """The aliases that this server has for a room."""
        return await self._database.read(aliases.aliases_of, head.room_id)
