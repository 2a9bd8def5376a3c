"""The Owners, Moderators and Members of a room, and giving a user another role.

Rules 1 to 3 of the governance API; see ``homeserver.governance.role_changes``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias, TypedDict, cast

from sqlalchemy import Connection

from homeserver.governance.role_changes import is_change, with_role
from homeserver.governance.roles import Role, listed_users, role_of
from homeserver.graph.send import Recommended, Sender
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.protocol.canonical_json import INTEGER_MAX, INTEGER_MIN
from homeserver.protocol.events import CREATE, POWER_LEVELS, EventDraft
from homeserver.protocol.power_levels import Level, PowerLevels, power_levels_of
from homeserver.reading.listings import PageRequest, place_of, room_of_member, token_of
from homeserver.storage import accounts
from homeserver.storage import listings as store
from homeserver.storage.database import Database


class RoleHolder(TypedDict):
    """A joined user, and the facts that decide their role."""

    user_id: str
    display_name: str | None
    avatar_url: str | None
    power_level: int
    """For a creator with infinite power, the greatest integer that JSON allows."""
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
    """Only present if true."""
    next: str
    """The token of the next page, if there is one."""


_GROUPS = (Role.OWNER, Role.MODERATOR, Role.MEMBER)
"""In the order in which they are listed."""
_Place: TypeAlias = tuple[int, str, str]
"""The sort key of a joined user: the number of the group, the name to sort by, the user ID."""


class Roles:
    """Lists and changes the roles in rooms."""

    def __init__(
        self,
        database: Database,
        heads: RoomHeads,
        sender: Sender,
        server_name: str,
    ) -> None:
        self._database = database
        self._heads = heads
        self._sender = sender
        self._server_name = server_name

    async def of_room(self, user_id: str, room_id: str, page: PageRequest) -> RoleList:
        """The joined users of a room by role, for one of them. Raises ``Forbidden``, ``InvalidParam``."""
        after = cast("_Place", place_of(page.after, (int, str, str))) if page.after is not None else None
        head = await room_of_member(self._heads, user_id, room_id)
        state = await self._heads.original_state_events(head, (CREATE, POWER_LEVELS))
        power_levels = state.get(POWER_LEVELS)
        levels = power_levels_of(head.version, state.get(CREATE), power_levels)
        ranks = _Ranks(head, levels, listed_users(power_levels), self._server_name)
        answer: RoleList = {"my_role": role_of(levels.of_user(user_id)).value}
        answer.update(await self._database.read(_read_list, ranks, page.limit, after))
        return answer

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

        A rehearsal raises the same errors, but changes nothing and returns None. Simultaneous changes are made one
        after the other, each based on the one before.

        Raises ``Forbidden`` (with a ``reason``: ``not_owner``, ``equal_role``, ``creator``, ``last_owner``),
        ``NotFound`` if the user is not in the room, ``LosingPrivileges`` if a user lowers their own role unconfirmed.
        """
        await room_of_member(self._heads, sender, room_id)

        async def job(working: WorkingHead, recommended: Recommended) -> Sequence[NewEvent]:
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
            content = with_role(head.version, levels, await working.power_levels_to_build_on(), user_id, role)
            draft = EventDraft("m.room.power_levels", sender, content, "")
            if is_rehearsal:
                await self._sender.compose(working, draft)
                return []
            return [await self._sender.compose_recommended(working, draft, recommended)]

        stored = await self._sender.submit(room_id, job)
        return stored[0].event_id if stored else None


class _Ranks:
    """The groups of a room's users: most have the default level, and some a level of their own."""

    def __init__(self, head: RoomHead, levels: PowerLevels, named: Iterable[str], server_name: str) -> None:
        self.head = head
        self._server_name = server_name
        self._creators = levels.creators
        self._level = _shown_level(levels.users_default)
        known = {user_id: levels.of_user(user_id) for user_id in (*named, *levels.creators)}
        self._levels = {user_id: _shown_level(level) for user_id, level in known.items()}
        self.group = _group(levels.users_default)
        """The number of the group of all users who are not in ``apart``."""
        self.apart = {user_id: group for user_id, level in known.items() if (group := _group(level)) != self.group}
        """Users of other groups, joined or not, with the numbers of their groups."""

    def place(self, member: store.JoinedMember) -> _Place:
        """The sort key of a member."""
        return self.apart.get(member[0], self.group), *store.name_place(member)

    def joined_owners(self) -> Iterator[str]:
        """The joined Owners, as an iterator since in some rooms all members are Owners."""
        owners = _GROUPS.index(Role.OWNER)
        joined = self.head.joined
        if self.group == owners:
            return (user_id for user_id in joined if user_id not in self.apart)
        return (user_id for user_id, group in self.apart.items() if group == owners and user_id in joined)

    def grouped(self, members: Iterable[store.JoinedMember]) -> RoleList:
        """The lists of members by role, in the given order."""
        groups: list[list[RoleHolder]] = [[] for _ in _GROUPS]
        for user_id, display_name, avatar_url, _ in members:
            server = user_id.partition(":")[2]
            groups[self.apart.get(user_id, self.group)].append(
                {
                    "user_id": user_id,
                    "display_name": display_name,
                    "avatar_url": avatar_url,
                    "power_level": self._levels.get(user_id, self._level),
                    "is_remote": server != self._server_name,
                    "server_name": server,
                    "is_creator": user_id in self._creators,
                }
            )
        return {"owners": groups[0], "moderators": groups[1], "members": groups[2]}


def _read_list(connection: Connection, ranks: _Ranks, limit: int | None, after: _Place | None) -> RoleList:
    """The list or, with a limit, a page of it, and whether the room is ownerless."""
    if limit is None:
        answer = ranks.grouped(store.joined_members(connection, ranks.head.room_nid))
    else:
        found = _members_after(connection, ranks, after or (0, *store.FIRST), limit + 1)
        answer = ranks.grouped(found[:limit])
        if len(found) > limit:
            answer["next"] = token_of(ranks.place(found[limit - 1]))
    if _is_ownerless(connection, ranks):
        answer["ownerless"] = True
    return answer


def _members_after(connection: Connection, ranks: _Ranks, after: _Place, most: int) -> list[store.JoinedMember]:
    """At most ``most`` members after a sort key, group by group."""
    room_nid = ranks.head.room_nid
    found: list[store.JoinedMember] = []
    for group in range(len(_GROUPS)):
        if group < after[0] or len(found) == most:
            continue
        place = after[1:] if group == after[0] else store.FIRST
        if group == ranks.group:
            found.extend(store.joined_after(connection, room_nid, place, most - len(found), ranks.apart))
        elif apart := [user_id for user_id, its_group in ranks.apart.items() if its_group == group]:
            members = store.joined_among(connection, room_nid, apart)
            found.extend([member for member in members if store.name_place(member) > place][: most - len(found)])
    return found


def _is_ownerless(connection: Connection, ranks: _Ranks) -> bool:
    """Whether the room has no Owner; those with closed accounts do not count."""
    return all(
        user_id in ranks.head.joined_local and accounts.closed_among(connection, [user_id])
        for user_id in ranks.joined_owners()
    )


def _group(level: Level) -> int:
    return _GROUPS.index(role_of(level))


def _shown_level(level: Level) -> int:
    """A level within the range of JSON integers; levels may be infinite, and in old room versions any integer."""
    return int(max(INTEGER_MIN, min(level, INTEGER_MAX)))
