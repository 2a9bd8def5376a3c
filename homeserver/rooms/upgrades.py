"""Room upgrades: a new room, of another version, takes the place of an old one.

Both rooms change in one transaction: the new room with all that is transferred to it, the aliases, and the end of the
old room. Nobody sees one without the others, and what fails leaves everything as it was.

https://spec.matrix.org/v1.19/client-server-api/#room-upgrades
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from homeserver.clock import Clock
from homeserver.errors import BadJson, Forbidden, MatrixError, TooLarge
from homeserver.graph.append import RoomWriters
from homeserver.graph.governed_events import GovernedEvents
from homeserver.graph.send import Recommended, Sender
from homeserver.graph.state import RoomHeads
from homeserver.graph.transferred_state import (
    COPIED_TYPES,
    copied_state,
    creation_content,
    muted_power_levels,
    power_levels,
    predecessor_of,
    sayable,
    split_aliases,
)
from homeserver.graph.working_head import NewEvent, SentInBatch, WorkingHead
from homeserver.membership.membership import MemberProfiles
from homeserver.protocol.events import CREATE, JOIN_RULES, POWER_LEVELS, Event, EventDraft, Signer, StateKey
from homeserver.protocol.identifiers import is_valid_user_id
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.power_levels import creators_of
from homeserver.protocol.room_versions import RoomVersion
from homeserver.rooms.creation import compose_create, new_room_id
from homeserver.rooms.personal_settings import PersonalSettings
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
AT_ONCE_MAX = 500
"""Bans and children of a space that the new room begins with; if there are more, they follow right after."""
PORTION = 100
"""How many of those share a transaction."""


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """What a user asks for."""

    user_id: str
    room_id: str
    version: RoomVersion
    additional_creators: Sequence[str] = ()
    """Counts where the version has such."""

    @property
    def creators(self) -> frozenset[str]:
        """The creators of the new room."""
        return frozenset((self.user_id, *self.additional_creators))


@dataclass(frozen=True, slots=True)
class _OldRoom:
    """The room that comes to its end, in its turn to write."""

    request: UpgradeRequest
    working: WorkingHead
    recommended: Recommended
    state: Mapping[StateKey, Event]
    """What is looked at of its state before the end."""
    aliases: Sequence[str]
    """Those of this server."""

    @property
    def create(self) -> Event:
        return self.state[CREATE]

    def draft(self, key: StateKey, content: JsonObject) -> EventDraft:
        """What the user who asks for the upgrade is to say, in either room."""
        return EventDraft(key[0], self.request.user_id, content, key[1])


class RoomUpgrades:
    """Replaces rooms by new ones."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        writers: RoomWriters,
        sender: Sender,
        governed: GovernedEvents,
        profiles: MemberProfiles,
        settings: PersonalSettings,
        signer: Signer,
        clock: Clock,
    ) -> None:
        self._database = database
        self._heads = heads
        self._writers = writers
        self._sender = sender
        self._governed = governed
        self._profiles = profiles
        self._settings = settings
        self._signer = signer
        self._clock = clock

    async def upgrade(self, request: UpgradeRequest) -> str:
        """Replace a room, and return the ID of the new one. Who asks for the same again gets the same room.

        Raises ``Forbidden`` for who is not in the room or may not end it, with a ``reason`` (``last_owner``,
        ``not_owner``) where the rules of governance refuse it; ``InvalidParam`` and ``TooLarge`` where no room can be
        made of what the request says; and what a policy server's refusal or silence raises.
        """
        member = await self._profiles.member_content(request.user_id, "join")
        # Chosen once, so that a policy server is not asked anew because they have changed.
        new_id, now_ms = new_room_id(self._signer.server_name), self._clock.now_ms()
        made: list[str] = []
        late: list[EventDraft] = []

        async def job(working: WorkingHead, recommended: Recommended) -> WorkingHead | None:
            old = await self._look_at(request, working, recommended)
            if (before := await self._made_before(old)) is not None:
                made[:] = [before]
                return None
            create = await self._end(old, new_id, now_ms)
            opening, late[:] = await self._opening(old, member)
            new = await self._begin(create, opening)
            await self._close(old)
            made[:] = [create.room_id]
            return new

        await self._sender.replace(request.room_id, job)
        await self._send_late(made[0], late)
        await self._settings.take_along(request.user_id, made[0])
        return made[0]

    async def _look_at(self, request: UpgradeRequest, working: WorkingHead, recommended: Recommended) -> _OldRoom:
        if request.user_id not in working.head.joined:
            raise Forbidden("You are not in this room")
        state = await working.state_events(LOOKED_AT)
        names = await self._database.read(aliases.aliases_of, request.room_id)
        return _OldRoom(request, working, recommended, state, names)

    async def _made_before(self, old: _OldRoom) -> str | None:
        """The room that the same request made before, if its answer did not get through to the client."""
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

    # -- the old room --------------------------------------------------------------------------------------------------

    async def _end(self, old: _OldRoom, new_id: str, now_ms: int) -> Event:
        """Put the tombstone into the old room, if the user may; returns the event that the new room begins with."""
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

    async def _bury(self, old: _OldRoom, new_id: str) -> Event:
        draft = old.draft(TOMBSTONE, {"body": TOMBSTONE_TEXT, "replacement_room": new_id})
        try:
            new = await self._sender.compose_recommended(old.working, draft, old.recommended)
        except SentInBatch as passed_on:  # the policy server was faster
            return passed_on.event
        await self._governed.check_upgrade(old.working, new.event, old.request.version)
        await old.working.take_in(new)
        return new.event

    async def _close(self, old: _OldRoom) -> None:
        """Mute the old room, and take the names from it that lead elsewhere now, each as far as the user may do so."""
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
                logger.info("old room left as it is", room_id=room_id, type=draft.type, error=error.message)

    # -- the new room --------------------------------------------------------------------------------------------------

    async def _opening(self, old: _OldRoom, member: JsonObject) -> tuple[list[EventDraft], list[EventDraft]]:
        """The events that follow m.room.create, and those that are too many to be part of the same transaction.

        The power levels come last: until then the creator may set everything, whatever they say.
        """
        request = old.request
        drafts = [old.draft(("m.room.member", request.user_id), member)]
        for event_type, content in copied_state(old.state, request.version):
            drafts.append(old.draft((event_type, ""), content))
        if names := split_aliases(old.state.get(CANONICAL_ALIAS), old.aliases):
            drafts.append(old.draft(CANONICAL_ALIAS, names.goes))
        many = [*await self._bans(old), *await self._children(old)]
        drafts.extend(many[:AT_ONCE_MAX])
        levels = power_levels(
            old.create, old.state.get(POWER_LEVELS), request.version, request.user_id, request.additional_creators
        )
        drafts.append(old.draft(POWER_LEVELS, levels))
        return drafts, many[AT_ONCE_MAX:]

    async def _bans(self, old: _OldRoom) -> list[EventDraft]:
        """Who is put out stays put out.

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

    async def _children(self, old: _OldRoom) -> list[EventDraft]:
        """What a space holds: without it the new room would be an empty one."""
        if old.create.content.get("type") != "m.space":
            return []
        keys = [key for key in old.working.head.state if key[0] == "m.space.child" and not key[1].startswith("@")]
        found = await old.working.state_events(keys)
        return [old.draft(key, sayable(event.content)) for key, event in found.items() if event.content.get("via")]

    async def _begin(self, create: Event, drafts: Iterable[EventDraft]) -> WorkingHead:
        new = self._writers.empty(create.room_id, create.version)
        await new.take_in(NewEvent(create, new.head.snapshot))
        for number, draft in enumerate(drafts, start=1):
            await new.take_in(await self._sender.compose(new, draft, is_governed=False))
            if number % PORTION == 0:
                await asyncio.sleep(0)  # others have something to do as well
        return new

    async def _send_late(self, room_id: str, drafts: Sequence[EventDraft]) -> None:
        for start in range(0, len(drafts), PORTION):
            try:
                await self._sender.send_all(room_id, drafts[start : start + PORTION])
            except MatrixError as error:
                left = len(drafts) - start
                logger.warning("not all could be transferred", room_id=room_id, left=left, error=error.message)
                return
