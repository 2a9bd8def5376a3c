"""How a change of a room's current state changes its head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from immutables import Map

from homeserver.graph.state import RoomHead, StateSnapshot
from homeserver.protocol.events import StateKey
from homeserver.protocol.identifiers import server_of
from homeserver.storage.appends import CurrentChange


def differing_keys(old: StateSnapshot, new: StateSnapshot) -> set[StateKey]:
    """The keys under which two states have different events."""
    keys: set[StateKey] = set()
    step: StateSnapshot | None = new
    while step is not None and step is not old:
        if step.base is None or step.delta is None:
            # The states have no known relation: compare them completely.
            return {k for k in {*old.state, *new.state} if old.state.get(k) != new.state.get(k)}
        keys.update(step.delta)
        step = step.base
    return {key for key in keys if old.state.get(key) != new.state.get(key)}


def overtaken(key: StateKey, first: str | None, changes: Iterable[CurrentChange]) -> list[str]:
    """The IDs of events under a key that were replaced by events that do not follow them.

    ``first`` is the event that was there before the changes.
    """
    found: list[str] = []
    current = first
    for change in changes:
        if change.key == key:
            if current is not None and change.event is not None and current not in change.event.auth_events:
                found.append(current)
            current = change.event.event_id if change.event is not None else None
    return found


def change_members(head: RoomHead, changes: Iterable[CurrentChange], is_local: Callable[[str], bool]) -> RoomHead:
    """The head with its lists of members updated by changes of the state."""
    of_members = [change for change in changes if change.key[0] == "m.room.member"]
    if not of_members:
        return head
    # Persistent maps: a change costs the same in a room of twenty thousand members as in a small one.
    joined, servers = head.joined, head.joined_servers
    local, invited = head.joined_local, head.invited
    for change in of_members:
        user_id = change.key[1]
        membership = change.event.membership if change.event else None
        if (membership == "join") != (user_id in joined):
            server = server_of(user_id)  # a user who joins has a valid ID; a banned one need not
            count = servers.get(server, 0) + (1 if membership == "join" else -1)
            servers = servers.set(server, count) if count > 0 else servers.delete(server)
            joined = _with(joined, user_id, membership == "join")
            if is_local(user_id):
                local = _with(local, user_id, membership == "join")
        invited = _with(invited, user_id, membership == "invite")
    return replace(head, joined=joined, joined_servers=servers, joined_local=local, invited=invited)


def _with(users: Map[str, bool], user_id: str, is_in: bool) -> Map[str, bool]:
    if (user_id in users) == is_in:
        return users
    return users.set(user_id, True) if is_in else users.delete(user_id)
