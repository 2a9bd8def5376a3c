"""What changes in a room's current state when the whole of it is replaced: after a join through another server."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, bindparam, select

from homeserver.storage.prepared import prepared_upsert
from homeserver.storage.tables import current_state, current_state_changes

_STATE = select(current_state.c.state_key_nid, current_state.c.event_nid).where(
    current_state.c.room_nid == bindparam("room_nid")
)
_PUT_CHANGES = prepared_upsert(current_state_changes, "room_nid", "position", "state_key_nid")


def record_replaced_state(connection: Connection, room_nid: int, position: int, new_state: Mapping[int, int]) -> None:
    """Write the differences between a room's current state and ``new_state`` into ``current_state_changes``.

    Call it before ``current_state`` is overwritten. ``new_state`` maps numeric IDs of state keys to those of events.
    The changes get the ``position`` of the join that brought the new state. Clients whose tokens are from the time
    before our server left the room are told the state by these changes, as if they had happened at the join.

    A room of which no state was stored gets no changes: nobody has a token from an earlier stay in it, and a client
    that newly sees a room is sent the whole state.
    """
    old_state = {row[0]: row[1] for row in connection.execute(_STATE, {"room_nid": room_nid})}
    if not old_state:
        return
    differences: dict[int, int | None] = {key: nid for key, nid in new_state.items() if old_state.get(key) != nid}
    differences.update((key, None) for key in old_state if key not in new_state)
    _PUT_CHANGES.run(
        connection,
        [
            {"room_nid": room_nid, "position": position, "state_key_nid": key, "event_nid": nid}
            for key, nid in differences.items()
        ],
    )
