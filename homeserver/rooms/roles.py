"""Who is Owner, Moderator and Member of a room, and giving somebody another role.

Rules 1 to 3 of the governance API; see ``homeserver.governance.role_changes``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypedDict

from sqlalchemy import Connection

from homeserver.governance.role_changes import is_change, with_role
from homeserver.governance.roles import Role, listed_users, role_of
from homeserver.protocol.canonical_json import INTEGER_MAX, INTEGER_MIN
from homeserver.protocol.events import EventDraft, StateKey
from homeserver.protocol.identifiers import server_of
from homeserver.protocol.power_levels import PowerLevels, power_levels_of
from homeserver.rooms.append import RoomWriters
from homeserver.rooms.governed_events import GovernedEvents
from homeserver.rooms.listings import PageRequest, place_of, room_of_member, token_of
from homeserver.rooms.send import Sender
from homeserver.rooms.state import RoomHead, RoomHeads
from homeserver.rooms.working_head import NewEvent, WorkingHead
from homeserver.storage import listings as store
from homeserver.storage.database import Database

CREATE: StateKey = ("m.room.create", "")
POWER_LEVELS: StateKey = ("m.room.power_levels", "")


class RoleHolder(TypedDict):
    """A joined user with what its role follows from."""

    user_id: str
    display_name: str | None
    avatar_url: str | None
    power_level: int
    """That of a creator whom the room version sets above everybody is the greatest there can be."""
    is_remote: bool
    server_name: str
    is_creator: bool


class RoleList(TypedDict, total=False):
    """The joined users of a room by role, each group sorted by display name, then by user ID."""

    my_role: str
    owners: list[RoleHolder]
    moderators: list[RoleHolder]
    members: list[RoleHolder]
    ownerless: bool
    """Only there if it is true."""
    next: str
    """Only there if there is more."""


_Place: TypeAlias = tuple[int, str, str]
"""What the list is sorted by: the rank of the role (negative: the highest goes first), display name, user ID."""


class Roles:
    """The roles in all rooms."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        writers: RoomWriters,
        sender: Sender,
        governed: GovernedEvents,
        server_name: str,
    ) -> None:
        self._database = database
        self._heads = heads
        self._writers = writers
        self._sender = sender
        self._governed = governed
        self._server_name = server_name

    async def of_room(self, user_id: str, room_id: str, page: PageRequest) -> RoleList:
        """The joined users of a room, for one of them. Raises ``Forbidden``, ``InvalidParam``."""
        after = place_of(page.after, (int, str, str)) if page.after is not None else None
        head = await room_of_member(self._heads, user_id, room_id)
        state = await self._heads.state_events(head, (CREATE, POWER_LEVELS))
        power_levels = state.get(POWER_LEVELS)
        levels = power_levels_of(head.version, state.get(CREATE), power_levels)
        places, holders = await self._database.read(
            _role_holders, head.room_nid, levels, listed_users(power_levels), self._server_name
        )
        start = bisect_right(places, after) if after is not None else 0
        end = len(places) if page.limit is None else min(len(places), start + page.limit)
        answer: RoleList = {
            "my_role": role_of(levels.of_user(user_id)).value,
            "owners": [],
            "moderators": [],
            "members": [],
        }
        groups = {
            -Role.OWNER.rank: answer["owners"],
            -Role.MODERATOR.rank: answer["moderators"],
            -Role.MEMBER.rank: answer["members"],
        }
        for rank, _, holder in places[start:end]:
            groups[rank].append(holders[holder])
        if await self._is_ownerless(head, (place[2] for place in places if place[0] == -Role.OWNER.rank)):
            answer["ownerless"] = True
        if end < len(places):
            answer["next"] = token_of(places[end - 1])
        return answer

    async def _is_ownerless(self, head: RoomHead, owners: Iterable[str]) -> bool:
        """Whether nobody is in charge: owners whose accounts were closed do not count."""
        for user_id in owners:
            if user_id not in head.joined_local or not await self._governed.closed_among([user_id]):
                return False
        return True

    async def give(
        self,
        sender: str,
        room_id: str,
        user_id: str,
        role: Role,
        *,
        is_confirmed: bool = False,
        is_rehearsal: bool = False,
    ) -> str | None:
        """Give a joined user a role; returns the ID of the event, or None where the user has the role already.

        A rehearsal answers as it would be, with None, and changes nothing. Two changes at the same moment come one
        after the other, each on what the other left.

        Raises ``Forbidden`` (with a ``reason``: ``not_owner``, ``equal_role``, ``creator``, ``last_owner``),
        ``NotFound`` for who is not in the room, ``LosingPrivileges`` for lowering oneself unconfirmed.
        """
        await room_of_member(self._heads, sender, room_id)

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            head = working.head
            state = await working.state_events((CREATE, POWER_LEVELS))
            power_levels = state.get(POWER_LEVELS)
            levels = power_levels_of(head.version, state.get(CREATE), power_levels)
            if not is_change(
                head.version,
                levels,
                head.joined,
                sender=sender,
                target=user_id,
                role=role,
                is_confirmed=is_confirmed,
            ):
                return []
            content = with_role(head.version, levels, power_levels, user_id, role)
            new = await self._sender.compose(working, EventDraft("m.room.power_levels", sender, content, ""))
            return [] if is_rehearsal else [new]

        stored = await self._writers.submit(room_id, job)
        return stored[0].event_id if stored else None


def _role_holders(
    connection: Connection, room_nid: int, levels: PowerLevels, listed: Iterable[str], server_name: str
) -> tuple[list[_Place], dict[str, RoleHolder]]:
    """The joined users by their ID, and the order in which they are listed."""
    creators = levels.creators
    special = {user_id: levels.of_user(user_id) for user_id in (*listed, *creators)}
    default = levels.users_default
    places: list[_Place] = []
    holders: dict[str, RoleHolder] = {}
    for user_id, display_name, avatar_url in store.joined_members(connection, room_nid):
        level = special.get(user_id, default)
        server = server_of(user_id)
        holders[user_id] = {
            "user_id": user_id,
            "display_name": display_name,
            "avatar_url": avatar_url,
            # What JSON can hold: infinity cannot be written, and strings of old room versions know no bounds.
            "power_level": int(max(INTEGER_MIN, min(level, INTEGER_MAX))),
            "is_remote": server != server_name,
            "server_name": server,
            "is_creator": user_id in creators,
        }
        places.append((-role_of(level).rank, display_name or "", user_id))
    places.sort()
    return places, holders
