"""The old room of an upgrade: what the new room takes over from it, and how it is ended.

https://spec.matrix.org/v1.19/client-server-api/#room-upgrades
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from homeserver.errors import BadJson, Forbidden, TooLarge
from homeserver.graph.governed_events import GovernedEvents
from homeserver.graph.send import Recommended, Sender
from homeserver.graph.state import RoomHeads
from homeserver.graph.transferred_state import (
    COPIED_TYPES,
    creation_content,
    muted_power_levels,
    predecessor_of,
    sayable,
    split_aliases,
)
from homeserver.graph.working_head import SentInBatch, WorkingHead
from homeserver.protocol.events import CREATE, JOIN_RULES, POWER_LEVELS, Event, EventDraft, Signer, StateKey
from homeserver.protocol.identifiers import is_valid_user_id
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.power_levels import creators_of
from homeserver.protocol.room_versions import RoomVersion
from homeserver.rooms.creation import compose_create
from homeserver.storage import aliases, listings
from homeserver.storage.database import Database

logger = structlog.get_logger(__name__)

TOMBSTONE: StateKey = ("m.room.tombstone", "")
CANONICAL_ALIAS: StateKey = ("m.room.canonical_alias", "")
LOOKED_AT: tuple[StateKey, ...] = (
    CREATE,
    POWER_LEVELS,
    TOMBSTONE,
    CANONICAL_ALIAS,
    JOIN_RULES,
    *((event_type, "") for event_type in COPIED_TYPES),
)
TOMBSTONE_TEXT = "This room has been replaced"


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """The parameters of an upgrade."""

    user_id: str
    room_id: str
    version: RoomVersion
    additional_creators: Sequence[str] = ()
    """Only used if the room version has additional creators."""

    @property
    def creators(self) -> frozenset[str]:
        """The creators of the new room."""
        return frozenset((self.user_id, *self.additional_creators))


@dataclass(frozen=True, slots=True)
class OldRoom:
    """A room that is being replaced, while it is locked for writing."""

    request: UpgradeRequest
    working: WorkingHead
    recommended: Recommended
    state: Mapping[StateKey, Event]
    """The state before the end that is of interest: the entries ``LOOKED_AT``."""
    aliases: Sequence[str]
    """The room's aliases on this server."""

    @property
    def create(self) -> Event:
        """The m.room.create event of the old room."""
        return self.state[CREATE]

    def draft(self, key: StateKey, content: JsonObject) -> EventDraft:
        """A state event to be sent by the user who requests the upgrade, in either room."""
        return EventDraft(key[0], self.request.user_id, content, key[1])


class OldRooms:
    """Looks at rooms that are to be replaced, and ends them. All of it happens while the room is locked for writing."""

    def __init__(
        self, database: Database, heads: RoomHeads, sender: Sender, governed: GovernedEvents, signer: Signer
    ) -> None:
        self._database = database
        self._heads = heads
        self._sender = sender
        self._governed = governed
        self._signer = signer

    async def look_at(self, request: UpgradeRequest, working: WorkingHead, recommended: Recommended) -> OldRoom:
        """Read from the room what the upgrade needs. Raises ``Forbidden`` if the user is not in the room."""
        if request.user_id not in working.head.joined:
            raise Forbidden("You are not in this room")
        # The new room gets what is shown of the old one; how much power users have is what the room goes by.
        state = await working.shown_state_events(LOOKED_AT)
        state |= await working.state_events([CREATE])
        if (levels := await working.power_levels_to_build_on()) is not None:
            state[POWER_LEVELS] = levels
        names = await self._database.read(aliases.aliases_of, request.room_id)
        return OldRoom(request, working, recommended, state, names)

    async def made_before(self, old: OldRoom) -> str | None:
        """The ID of the room that the same request has made before, if its answer did not reach the client."""
        request, tombstone = old.request, old.state.get(TOMBSTONE)
        if tombstone is None or tombstone.sender != request.user_id:
            return None
        room_id = tombstone.content.get("replacement_room")
        head = await self._heads.find(room_id) if isinstance(room_id, str) else None
        if head is None or head.version is not request.version or request.user_id not in head.joined:
            return None
        create = await self._heads.state_event(head, "m.room.create")
        if create is None or predecessor_of(create) != request.room_id or create.sender != request.user_id:
            return None
        if head.version.creators_have_infinite_power and creators_of(head.version, create) != request.creators:
            return None
        return head.room_id

    async def end(self, old: OldRoom, new_id: str, now_ms: int) -> Event:
        """Send the tombstone to the old room, if the user may; returns the m.room.create event of the new room."""
        request = old.request
        predecessor = {"room_id": request.room_id}
        if not request.version.room_id_is_create_hash:
            tombstone = await self._bury(old, new_id)
            content = creation_content(old.create, {**predecessor, "event_id": tombstone.event_id}, ())
            return compose_create(request.user_id, request.version, content, now_ms, self._signer, new_id)
        # Each event would have to name the other one, so the predecessor is named without its last event.
        content = creation_content(old.create, predecessor, request.additional_creators)
        while True:
            create = compose_create(request.user_id, request.version, content, now_ms, self._signer, None)
            if await self._heads.find(create.room_id) is None:
                break
            now_ms += 1  # the user asked for two such rooms in the same millisecond
        await self._bury(old, create.room_id)
        return create

    async def _bury(self, old: OldRoom, new_id: str) -> Event:
        draft = old.draft(TOMBSTONE, {"body": TOMBSTONE_TEXT, "replacement_room": new_id})
        try:
            new = await self._sender.compose_recommended(old.working, draft, old.recommended)
        except SentInBatch as passed_on:  # the tombstone was already sent while the policy server was being asked
            return passed_on.event
        await self._governed.check_upgrade(old.working, new.event, old.request.version)
        await old.working.take_in(new)
        return new.event

    async def close(self, old: OldRoom) -> None:
        """Mute the old room and remove the aliases that have moved, as far as the user may do so."""
        drafts = []
        if names := split_aliases(old.state.get(CANONICAL_ALIAS), old.aliases):
            drafts.append(old.draft(CANONICAL_ALIAS, names.stays))
        levels = old.state.get(POWER_LEVELS)
        muted = muted_power_levels(old.create, levels)
        if levels is None or levels.content != muted:
            drafts.append(old.draft(POWER_LEVELS, muted))
        for draft in drafts:
            try:
                await old.working.take_in(await self._sender.compose_recommended(old.working, draft, old.recommended))
            except SentInBatch:
                continue
            except (Forbidden, BadJson, TooLarge) as error:
                room_id = old.request.room_id
                logger.info(
                    "old room not changed after its upgrade", room_id=room_id, type=draft.type, error=error.message
                )

    async def bans(self, old: OldRoom) -> list[EventDraft]:
        """The bans of the old room, for the new one.

        "Membership events should not be transferred to the new room due to technical limitations of servers not being
        able to impersonate people": a ban impersonates nobody.
        """
        request = old.request
        spared = request.creators if request.version.creators_have_infinite_power else {request.user_id}
        found = await self._database.read(listings.bans_of, old.working.head.room_nid)
        return [
            old.draft(
                ("m.room.member", ban.user_id),
                {"membership": "ban", **({"reason": ban.reason} if ban.reason is not None else {})},
            )
            for ban in reversed(found)
            if ban.user_id not in spared and is_valid_user_id(ban.user_id)
        ]

    async def children(self, old: OldRoom) -> list[EventDraft]:
        """The children of the old room if it is a space, for the new one."""
        if old.create.content.get("type") != "m.space":
            return []
        keys = [key for key in old.working.head.state if key[0] == "m.space.child" and not key[1].startswith("@")]
        found = await old.working.shown_state_events(keys)
        return [old.draft(key, sayable(event.content)) for key, event in found.items() if event.content.get("via")]
