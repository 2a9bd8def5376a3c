"""Room upgrades: a new room of another version replaces an old one.

One transaction creates the new room with everything that is transferred to it, moves the aliases, and ends the old
room. Nobody sees one without the others, and an upgrade that fails changes nothing.

https://spec.matrix.org/v1.19/client-server-api/#room-upgrades
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import structlog

from homeserver.clock import Clock
from homeserver.errors import MatrixError
from homeserver.graph.append import RoomWriters
from homeserver.graph.send import Recommended, Sender
from homeserver.graph.transferred_state import copied_state, power_levels, split_aliases
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.membership.member_profiles import MemberProfiles
from homeserver.protocol.events import POWER_LEVELS, Event, EventDraft
from homeserver.protocol.json_types import JsonObject
from homeserver.rooms.creation import new_room_id
from homeserver.rooms.old_rooms import CANONICAL_ALIAS, OldRoom, OldRooms, UpgradeRequest
from homeserver.rooms.personal_settings import PersonalSettings

logger = structlog.get_logger(__name__)

AT_ONCE_MAX = 500
"""How many bans and children of a space the first transaction transfers; the others follow right after."""
PORTION = 100
"""How many of those others share a transaction."""


class RoomUpgrades:
    """Replaces rooms by new ones."""

    def __init__(
        self,
        old_rooms: OldRooms,
        writers: RoomWriters,
        sender: Sender,
        profiles: MemberProfiles,
        settings: PersonalSettings,
        clock: Clock,
        server_name: str,
    ) -> None:
        self._old_rooms = old_rooms
        self._writers = writers
        self._sender = sender
        self._profiles = profiles
        self._settings = settings
        self._clock = clock
        self._server_name = server_name

    async def upgrade(self, request: UpgradeRequest) -> str:
        """Replace a room, and return the ID of the new one. A repeated request returns the same room.

        Raises ``Forbidden`` if the user is not in the room or may not end it, with a ``reason`` (``last_owner``,
        ``not_owner``) if the rules of governance refuse it; ``InvalidParam`` and ``TooLarge`` if the request describes
        no valid room; and the errors of a policy server that refuses or does not answer.
        """
        member = await self._profiles.member_content(request.user_id, "join")
        # The job may run several times: with a new ID or time, the policy server would have to be asked again.
        new_id, now_ms = new_room_id(self._server_name), self._clock.now_ms()
        made: list[str] = []
        late: list[EventDraft] = []

        async def job(working: WorkingHead, recommended: Recommended) -> WorkingHead | None:
            old = await self._old_rooms.look_at(request, working, recommended)
            if (before := await self._old_rooms.made_before(old)) is not None:
                made[:] = [before]
                return None
            create = await self._old_rooms.end(old, new_id, now_ms)
            opening, late[:] = await self._opening(old, member)
            new = await self._begin(create, opening)
            await self._old_rooms.close(old)
            made[:] = [create.room_id]
            return new

        await self._sender.replace(request.room_id, job)
        await self._send_late(made[0], late)
        await self._settings.take_along(request.user_id, made[0])
        return made[0]

    async def _opening(self, old: OldRoom, member: JsonObject) -> tuple[list[EventDraft], list[EventDraft]]:
        """The events that follow m.room.create in the same transaction, and those that are left for later ones.

        The power levels come last: until then the creator may set everything.
        """
        request = old.request
        drafts = [old.draft(("m.room.member", request.user_id), member)]
        for event_type, content in copied_state(old.state, request.version):
            drafts.append(old.draft((event_type, ""), content))
        if names := split_aliases(old.state.get(CANONICAL_ALIAS), old.aliases):
            drafts.append(old.draft(CANONICAL_ALIAS, names.goes))
        many = [*await self._old_rooms.bans(old), *await self._old_rooms.children(old)]
        drafts.extend(many[:AT_ONCE_MAX])
        levels = power_levels(
            old.create, old.state.get(POWER_LEVELS), request.version, request.user_id, request.additional_creators
        )
        drafts.append(old.draft(POWER_LEVELS, levels))
        return drafts, many[AT_ONCE_MAX:]

    async def _begin(self, create: Event, drafts: Iterable[EventDraft]) -> WorkingHead:
        new = self._writers.empty(create.room_id, create.version)
        await new.take_in(NewEvent(create, new.head.snapshot))
        for number, draft in enumerate(drafts, start=1):
            await new.take_in(await self._sender.compose(new, draft, is_governed=False))
            if number % PORTION == 0:
                await asyncio.sleep(0)  # let other requests run
        return new

    async def _send_late(self, room_id: str, drafts: Sequence[EventDraft]) -> None:
        for start in range(0, len(drafts), PORTION):
            try:
                await self._sender.send_all(room_id, drafts[start : start + PORTION])
            except MatrixError as error:
                left = len(drafts) - start
                logger.warning(
                    "not all state could be transferred to the new room",
                    room_id=room_id,
                    left=left,
                    error=error.message,
                )
                return
