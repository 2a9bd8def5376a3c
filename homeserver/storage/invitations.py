"""The status of each invitation: pending, accepted, rejected or revoked.

There is one row for the latest invitation of each user in each room, written in the transaction of the membership event
that changes it. An invitation is ended by the membership event that cites it, or else by the first one after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, or_, select, update

from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.prepared import PreparedSelect, prepared_upsert
from homeserver.storage.tables import invitations

PENDING, ACCEPTED, REJECTED, REVOKED = "pending", "accepted", "rejected", "revoked"
STEPS_BACK_MAX = 100
"""How many membership events of a user are examined to find the invitation that let the user in."""


@dataclass(frozen=True, slots=True)
class Step:
    """A change of a user's membership, as far as it concerns invitations."""

    room_nid: int
    user_id: str
    event: Event | None
    """None: the room's state no longer has a membership of the user."""
    event_nid: int = 0
    cites: tuple[int, ...] = ()
    """The numeric IDs of its auth events."""


@dataclass(frozen=True, slots=True)
class Takeover:
    """A room whose state comes from another server."""

    room_nid: int
    members: Sequence[Event]
    """The member events of its state; each cites the one that it replaced."""
    known: Mapping[str, Event]
    """The events that came with the state, through which they lead back."""
    nids: Mapping[str, int]
    """The numeric IDs of all of these."""


_PUT = prepared_upsert(invitations, "room_nid", "user_id")
_PENDING = PreparedSelect(
    select(invitations.c.user_id).where(
        invitations.c.room_nid == bindparam("room_nid"),
        invitations.c.user_id.in_(bindparam("wanted", expanding=True)),
        invitations.c.status == PENDING,
    )
)
"""Which of some users have a pending invitation to a room."""
_END = (
    update(invitations)
    .where(
        and_(
            invitations.c.room_nid == bindparam("b_room_nid"),
            invitations.c.user_id == bindparam("b_user_id"),
            # Where branches of the room meet, another answer to the same invitation may replace the first one.
            or_(invitations.c.status == PENDING, invitations.c.event_nid.in_(bindparam("b_cites", expanding=True))),
        )
    )
    .values(
        status=bindparam("b_status"),
        updated_ts=func.coalesce(bindparam("b_updated_ts"), invitations.c.updated_ts),
        reason=func.coalesce(bindparam("b_reason", type_=invitations.c.reason.type), invitations.c.reason),
    )
)


def follow(connection: Connection, steps: Iterable[Step]) -> None:
    """Update invitations by changes of membership, in their order."""
    for step in steps:
        event = step.event
        if event is not None and event.membership == "invite":
            _PUT.run(connection, [_begun(step.room_nid, event, step.event_nid)])
            continue
        connection.execute(
            _END,
            {
                "b_room_nid": step.room_nid,
                "b_user_id": step.user_id,
                "b_cites": list(step.cites),
                "b_status": _status_after(event),
                "b_updated_ts": None if event is None else event.origin_server_ts,
                "b_reason": None if event is None else _reason(event.content),
            },
        )


def take_over(connection: Connection, takeover: Takeover) -> None:
    """Store the status of invitations in a room whose state comes from another server."""
    room_nid = takeover.room_nid
    rows: list[dict[str, Any]] = []
    others: dict[str, Event] = {}
    for member in takeover.members:
        invitation, answer = _invitation_before(member, takeover.known)
        if invitation is None:
            others[member.state_key or ""] = member
            continue
        row = _begun(room_nid, invitation, takeover.nids[invitation.event_id])
        if answer is not None:
            row["status"], row["updated_ts"] = _status_after(answer), answer.origin_server_ts
            row["reason"] = _reason(answer.content) or row["reason"]
        rows.append(row)
    _PUT.run(connection, rows)
    pending = _PENDING.rows(connection, room_nid=room_nid, wanted=others)
    follow(connection, (Step(room_nid, user_id, others[user_id]) for (user_id,) in pending))


def _invitation_before(member: Event, known: Mapping[str, Event]) -> tuple[Event | None, Event | None]:
    """The latest invitation that a member event leads back to, and the event that answered it."""
    answer: Event | None = None
    current = member
    for _ in range(STEPS_BACK_MAX):
        if current.membership == "invite":
            return current, answer
        before = _cited_membership(current, known)
        if before is None:
            break
        answer, current = current, before
    return None, None


def _cited_membership(member: Event, known: Mapping[str, Event]) -> Event | None:
    """The membership event of the same user among the auth events of a membership event."""
    for event_id in member.auth_events:
        cited = known.get(event_id)
        if cited is not None and cited.state_key == member.state_key and cited.type == "m.room.member":
            return cited
    return None


def forget_reason(connection: Connection, room_nid: int, user_id: str, content: JsonObject) -> None:
    """Delete the reason that a redacted member event with this content gave."""
    if (reason := _reason(content)) is not None:
        connection.execute(
            update(invitations)
            .where(
                invitations.c.room_nid == room_nid,
                invitations.c.user_id == user_id,
                invitations.c.reason == reason,
            )
            .values(reason=None)
        )


def _begun(room_nid: int, event: Event, event_nid: int) -> dict[str, Any]:
    return {
        "room_nid": room_nid,
        "user_id": event.state_key,
        "status": PENDING,
        "invited_by": event.sender,
        "invited_ts": event.origin_server_ts,
        "updated_ts": event.origin_server_ts,
        "reason": _reason(event.content),
        "event_nid": event_nid,
    }


def _reason(content: JsonObject) -> str | None:
    reason = content.get("reason")
    return reason if isinstance(reason, str) else None


def _status_after(event: Event | None) -> str:
    if event is not None and event.membership == "join":
        return ACCEPTED
    return REJECTED if event is not None and event.sender == event.state_key else REVOKED
