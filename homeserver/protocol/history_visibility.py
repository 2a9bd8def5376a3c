"""Who may see which past event.

https://spec.matrix.org/v1.19/client-server-api/#room-history-visibility
"""

from __future__ import annotations

from collections.abc import Iterable

from homeserver.protocol.events import Event

DEFAULT = "shared"
"""The default "if no history_visibility is set, or if the value is not understood"."""
_KNOWN = frozenset({"world_readable", "shared", "invited", "joined"})


def effective_visibility(value: object) -> str:
    """The history visibility for any value of ``content.history_visibility``."""
    return value if isinstance(value, str) and value in _KNOWN else DEFAULT


def may_see(visibility: str | None, membership_at_event: str | None, *, joined_later: bool) -> bool:
    """Whether a user may see an event, by the state at the event.

    ``joined_later`` says whether the user joined the room at any point after the event was sent. For events that change
    the visibility or the membership, use ``may_see_event``.

    https://spec.matrix.org/v1.19/client-server-api/#room-history-visibility
    """
    effective = effective_visibility(visibility)
    # 1. "If the history_visibility was set to world_readable, allow."
    if effective == "world_readable":
        return True
    # 2. "If the user's membership was join, allow."
    if membership_at_event == "join":
        return True
    # 3. "If history_visibility was set to shared, and the user joined the room at any point after the event was sent,
    #    allow."
    if effective == "shared" and joined_later:
        return True
    # 4. "If the user's membership was invite, and the history_visibility was set to invited, allow."
    # 5. "Otherwise, deny."
    return effective == "invited" and membership_at_event == "invite"


def may_see_event(
    event: Event, user_id: str, visibility: str | None, membership: str | None, *, joined_later: bool
) -> bool:
    """Whether a user may see an event, by the history visibility and the user's membership in the state before it.

    If the event itself changes one of the two, the value after it counts as well as the one before it.
    """
    return any(
        may_see(visibility_then, membership_then, joined_later=joined_later)
        for visibility_then in _visibilities(event, visibility)
        for membership_then in _memberships(event, user_id, membership)
    )


def server_may_see(visibility: str | None, memberships_at_event: Iterable[str | None]) -> bool:
    """Whether a server that is in the room may see an event, by the memberships of its users in the state at the event.

    ``shared`` shows all history to every user who joins, and so to the server of any user who is joined now.

    https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events
    """
    effective = effective_visibility(visibility)
    if effective in ("world_readable", "shared"):
        return True
    shown_to = ("join", "invite") if effective == "invited" else ("join",)
    return any(membership in shown_to for membership in memberships_at_event)


def server_may_see_event(
    event: Event, server_name: str, visibility: str | None, memberships: Iterable[str | None]
) -> bool:
    """The same as ``server_may_see``, by the state before the event and what the event itself changes of it.

    A server always sees its own users' member events, and the events that its users have sent.
    """
    if event.sender_domain == server_name:
        return True
    if event.type == "m.room.member" and (event.state_key or "").partition(":")[2] == server_name:
        return True
    seen_by = tuple(memberships)
    return any(server_may_see(visibility_then, seen_by) for visibility_then in _visibilities(event, visibility))


def _visibilities(event: Event, before: str | None) -> tuple[str | None, ...]:
    # "For m.room.history_visibility events themselves, the user should be allowed to see the event if the
    # history_visibility before or after the event would allow them to see it."
    if event.type == "m.room.history_visibility" and event.state_key == "":
        return (before, effective_visibility(event.content.get("history_visibility")))
    return (before,)


def _memberships(event: Event, user_id: str, before: str | None) -> tuple[str | None, ...]:
    # "Likewise, for the user's own m.room.member events, the user should be allowed to see the event if their
    # membership before or after the event would allow them to see it."
    if event.type == "m.room.member" and event.state_key == user_id:
        return (before, event.membership)
    return (before,)
