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
from homeserver.protocol.power_levels import Level, PowerLevels, power_levels_of
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


_Listed: TypeAlias = tuple[int, str, str, str | None, str | None]
"""A joined user in its place: the number of its group, the name that it is sorted by, its ID, name and picture."""
_GROUPS = (Role.OWNER, Role.MODERATOR, Role.MEMBER)
"""In the order in which they are listed."""


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
        named = listed_users(power_levels)
        listed = await self._database.read(_joined_in_order, head.room_nid, levels, named)
        start = bisect_right(listed, after, key=_place) if after is not None else 0
        end = len(listed) if page.limit is None else min(len(listed), start + page.limit)
        groups = self._grouped(listed[start:end], levels, named)
        answer: RoleList = {
            "my_role": role_of(levels.of_user(user_id)).value,
            "owners": groups[0],
            "moderators": groups[1],
            "members": groups[2],
        }
        if await self._is_ownerless(head, (user[2] for user in listed if _GROUPS[user[0]] is Role.OWNER)):
            answer["ownerless"] = True
        if end < len(listed):
            answer["next"] = token_of(_place(listed[end - 1]))
        return answer

    def _grouped(self, listed: Iterable[_Listed], levels: PowerLevels, named: Iterable[str]) -> list[list[RoleHolder]]:
        groups: list[list[RoleHolder]] = [[] for _ in _GROUPS]
        creators = levels.creators
        shown = {user_id: _shown_level(levels.of_user(user_id)) for user_id in (*named, *creators)}
        others = _shown_level(levels.users_default)
        for order, _, user_id, display_name, avatar_url in listed:
            server = server_of(user_id)
            groups[order].append(
                {
                    "user_id": user_id,
                    "display_name": display_name,
                    "avatar_url": avatar_url,
                    "power_level": shown.get(user_id, others),
                    "is_remote": server != self._server_name,
                    "server_name": server,
                    "is_creator": user_id in creators,
                }
            )
        return groups

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


def _joined_in_order(connection: Connection, room_nid: int, levels: PowerLevels, named: Iterable[str]) -> list[_Listed]:
    """The joined users by role, name and ID. ``named`` are the users whom m.room.power_levels names."""
    groups = {user_id: _group(levels.of_user(user_id)) for user_id in (*named, *levels.creators)}
    others = _group(levels.users_default)
    return sorted(
        (groups.get(user_id, others), display_name or "", user_id, display_name, avatar_url)
        for user_id, display_name, avatar_url in store.joined_members(connection, room_nid)
    )


def _group(level: Level) -> int:
    return _GROUPS.index(role_of(level))


def _place(listed: _Listed) -> tuple[str | int, ...]:
    return listed[:3]


def _shown_level(level: Level) -> int:
    """What JSON can hold: infinity cannot be written, and strings of old room versions know no bounds."""
    return int(max(INTEGER_MIN, min(level, INTEGER_MAX)))
