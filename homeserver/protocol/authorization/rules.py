"""The authorization rules in their sequence.

https://spec.matrix.org/v1.19/server-server-api/#authorisation-rules
"""

from __future__ import annotations

from homeserver.errors import NotAuthorized
from homeserver.protocol.authorization.aliases import check_aliases
from homeserver.protocol.authorization.create import check_create
from homeserver.protocol.authorization.member import check_member, membership_of
from homeserver.protocol.authorization.power_levels import check_power_levels
from homeserver.protocol.authorization.redaction import check_redaction
from homeserver.protocol.authorization.third_party_invite import check_third_party_invite
from homeserver.protocol.events import CREATE, POWER_LEVELS, Event, StateEvents
from homeserver.protocol.power_levels import power_levels_of


def authorize(event: Event, state: StateEvents, *, create: Event | None = None) -> None:
    """Judge an event by a state of its room: every rule except those on its citations (``check_auth_events``).

    ``state`` needs to hold no more than the keys of ``auth_event_keys``. Version 12 does not cite the create event:
    it is taken from ``state`` if it is there, otherwise from ``create``.

    Raises ``NotAuthorized``.
    """
    version = event.version
    event_type = event.type
    # If type is m.room.create: …
    if event_type == "m.room.create":
        check_create(event)
        return
    create = state.get(CREATE) or create
    if create is None:
        raise NotAuthorized("the room has no create event")
    # If the content of the m.room.create event in the room state has the property m.federate set to false, and the
    # sender domain of the event does not match the sender domain of the create event, reject.
    if create.content.get("m.federate") is False and event.sender_domain != create.sender_domain:
        raise NotAuthorized("the room is closed to other servers")
    # (versions 1 to 5) If type is m.room.aliases: …
    if event_type == "m.room.aliases" and version.aliases_rule:
        check_aliases(event)
        return
    levels = power_levels_of(version, create, state.get(POWER_LEVELS))
    # If type is m.room.member: …
    if event_type == "m.room.member":
        check_member(event, state, create, levels)
        return
    # If the sender's current membership state is not join, reject.
    if membership_of(state, event.sender) != "join":
        raise NotAuthorized("the sender is not in the room")
    # If type is m.room.third_party_invite: …
    if event_type == "m.room.third_party_invite":
        check_third_party_invite(event, levels)
        return
    # If the event type's required power level is greater than the sender's power level, reject.
    state_key = event.state_key
    if levels.to_send(event_type, state_key is not None) > levels.of_user(event.sender):
        raise NotAuthorized(f"the sender's power level is too low to send {event_type}")
    # If the event has a state_key that starts with an @ and does not match the sender, reject.
    if state_key is not None and state_key.startswith("@") and state_key != event.sender:
        raise NotAuthorized("state under a user's ID is that user's own")
    # If type is m.room.power_levels: …
    if event_type == "m.room.power_levels":
        check_power_levels(event, state, levels)
    # (versions 1 and 2) If type is m.room.redaction: …
    elif event_type == "m.room.redaction" and version.redaction_rule:
        check_redaction(event, levels)
    # Otherwise, allow.
