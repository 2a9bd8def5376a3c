"""Where each invitation stands: pending, accepted, rejected or revoked.

A row for the latest invitation of each user in each room, written in the transaction of the membership event that
changes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, and_, bindparam, func, update

from homeserver.protocol.events import Event
from homeserver.storage.database import upsert
from homeserver.storage.tables import invitations

PENDING, ACCEPTED, REJECTED, REVOKED = "pending", "accepted", "rejected", "revoked"


@dataclass(frozen=True, slots=True)
class Step:
    """A membership event, as far as it concerns an invitation."""

    room_nid: int
    event: Event
    event_nid: int


_END = (
    update(invitations)
    .where(
        and_(
            invitations.c.room_nid == bindparam("b_room_nid"),
            invitations.c.user_id == bindparam("b_user_id"),
            invitations.c.status == PENDING,
        )
    )
    .values(
        status=bindparam("b_status"),
        updated_ts=bindparam("b_updated_ts"),
        reason=func.coalesce(bindparam("b_reason", type_=invitations.c.reason.type), invitations.c.reason),
    )
)


def follow(connection: Connection, steps: Iterable[Step]) -> None:
    """Bring invitations in line with membership events, in their order."""
    for step in steps:
        event = step.event
        reason = event.content.get("reason")
        reason = reason if isinstance(reason, str) else None
        if event.membership == "invite":
            row = {
                "room_nid": step.room_nid,
                "user_id": event.state_key,
                "status": PENDING,
                "invited_by": event.sender,
                "invited_ts": event.origin_server_ts,
                "updated_ts": event.origin_server_ts,
                "reason": reason,
                "event_nid": step.event_nid,
            }
            upsert(connection, invitations, [row], ["room_nid", "user_id"])
        else:
            connection.execute(
                _END,
                {
                    "b_room_nid": step.room_nid,
                    "b_user_id": event.state_key,
                    "b_status": _status_after(event),
                    "b_updated_ts": event.origin_server_ts,
                    "b_reason": reason,
                },
            )


def _status_after(event: Event) -> str:
    if event.membership == "join":
        return ACCEPTED
    return REJECTED if event.sender == event.state_key else REVOKED
