"""The memberships of our own users, including those in rooms that this server is not in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, case, exists, select, update

from homeserver.storage.database import upsert
from homeserver.storage.event_graph import Verdict
from homeserver.storage.prepared import PreparedSelect
from homeserver.storage.tables import events, rooms, user_rooms, users

OUTLIER = int(Verdict.OUTLIER)
_ANYBODY = PreparedSelect(
    select(user_rooms.c.user_id)
    .join_from(user_rooms, rooms, rooms.c.room_nid == user_rooms.c.room_nid)
    .where(rooms.c.room_id == bindparam("room_id"), user_rooms.c.membership == "join")
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Standing:
    """A user's membership in a room, and where it comes from."""

    room_id: str
    room_nid: int
    version: str
    """The version of the room, or the claimed one that came with an out-of-band membership."""
    membership: str
    event_id: str
    event_nid: int
    sender: str
    position: int
    forgotten: bool
    stripped_state: bytes | None
    verdict: int
    """The verdict of the membership event, as ``event_graph.Verdict``."""
    received_ts: int | None
    """When a membership came that is not part of a room's graph, in milliseconds; None for others."""

    @property
    def is_outlier(self) -> bool:
        """Whether the membership event is not in the graph: it came on its own, or with the room's state."""
        return bool(self.verdict & OUTLIER)


_STANDING = (
    select(
        rooms.c.room_id,
        rooms.c.room_nid,
        case((events.c.claimed_version == "", rooms.c.version), else_=events.c.claimed_version),
        user_rooms.c.membership,
        events.c.event_id,
        events.c.event_nid,
        user_rooms.c.sender,
        user_rooms.c.position,
        user_rooms.c.forgotten,
        user_rooms.c.stripped_state,
        events.c.verdict,
        case((events.c.claimed_version == "", None), else_=user_rooms.c.received_ts),
    )
    .join_from(user_rooms, rooms, rooms.c.room_nid == user_rooms.c.room_nid)
    .join(events, events.c.event_nid == user_rooms.c.event_nid)
)


def standing_of(connection: Connection, user_id: str, room_id: str) -> Standing | None:
    """The membership of a user of ours in a room; None if there never was one."""
    row = connection.execute(_STANDING.where(user_rooms.c.user_id == user_id, rooms.c.room_id == room_id)).first()
    return Standing(*tuple(row)) if row else None


def rooms_of(connection: Connection, user_id: str, membership: str) -> list[str]:
    """The rooms where a user of ours has this membership, oldest first."""
    statement = (
        select(rooms.c.room_id)
        .join_from(user_rooms, rooms, rooms.c.room_nid == user_rooms.c.room_nid)
        .where(user_rooms.c.user_id == user_id, user_rooms.c.membership == membership)
        .order_by(user_rooms.c.position)
    )
    return list(connection.execute(statement).scalars())


def closed_accounts_in_rooms(connection: Connection) -> list[str]:
    """Our users with closed accounts who are still in rooms or invited."""
    statement = (
        select(users.c.user_id)
        .where(
            users.c.deactivated_ts.is_not(None),
            exists().where(
                user_rooms.c.user_id == users.c.user_id, user_rooms.c.membership.in_(("join", "invite", "knock"))
            ),
        )
        .order_by(users.c.user_id)
    )
    return list(connection.execute(statement).scalars())


def is_anybody_in(connection: Connection, room_id: str) -> bool:
    """Whether any user of ours is in a room."""
    return bool(_ANYBODY.rows(connection, room_id=room_id))


def forget(connection: Connection, user_id: str, room_nid: int) -> None:
    """Make a user forget a room that it has left."""
    connection.execute(
        update(user_rooms)
        .where(user_rooms.c.user_id == user_id, user_rooms.c.room_nid == room_nid)
        .values(forgotten=True)
    )


def put_standing(connection: Connection, row: dict[str, Any]) -> None:
    """Store a row of ``graph_writes.user_room_row``."""
    upsert(connection, user_rooms, [row], ["user_id", "room_nid"])


def stripped_state_of(connection: Connection, user_id: str, room_nid: int) -> bytes | None:
    """The stripped state that came with a user's invitation."""
    statement = select(user_rooms.c.stripped_state).where(
        user_rooms.c.user_id == user_id, user_rooms.c.room_nid == room_nid
    )
    return connection.execute(statement).scalar_one_or_none()
