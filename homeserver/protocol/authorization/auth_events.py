"""Which state events an event must cite as its auth events, and whether those that it cites are valid.

https://spec.matrix.org/v1.19/server-server-api/#auth-events-selection
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from homeserver.errors import NotAuthorized
from homeserver.protocol.events import CREATE, JOIN_RULES, POWER_LEVELS, Event, StateKey
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import RoomVersion

_MEMBERSHIPS_UNDER_JOIN_RULES = ("join", "invite", "knock")


def auth_event_keys(
    event_type: str, sender: str, state_key: str | None, content: JsonObject, version: RoomVersion
) -> list[StateKey]:
    """The state keys of the auth events of such an event; keys without an entry in the state are not cited.

    No key occurs twice. Accepts any content without raising.
    """
    # The auth_events for the m.room.create event in a room is empty; for other events, it should be …
    if event_type == "m.room.create":
        return []
    sender_member = ("m.room.member", sender)
    # Depending on the room version, the m.room.create event. The current m.room.power_levels event, if any.
    # The sender's current m.room.member event, if any.
    keys = [POWER_LEVELS, sender_member] if version.room_id_is_create_hash else [CREATE, POWER_LEVELS, sender_member]
    # If type is m.room.member:
    if event_type == "m.room.member" and state_key is not None:
        _add_keys_of_membership(keys, sender, state_key, content, version)
    return keys


def _add_keys_of_membership(
    keys: list[StateKey], sender: str, target: str, content: JsonObject, version: RoomVersion
) -> None:
    membership = content.get("membership")
    # The target's current m.room.member event, if any.
    if target != sender:
        keys.append(("m.room.member", target))
    # If membership is join, invite or knock, the current m.room.join_rules event, if any.
    if membership in _MEMBERSHIPS_UNDER_JOIN_RULES:
        keys.append(JOIN_RULES)
    # If membership is invite and content contains a third_party_invite property, the current
    # m.room.third_party_invite event with state_key matching content.third_party_invite.signed.token, if any.
    if membership == "invite":
        token = third_party_token(content)
        if token is not None:
            keys.append(("m.room.third_party_invite", token))
    # If membership is join, content.join_authorised_via_users_server is present, and the room version supports
    # restricted rooms, then the m.room.member event with state_key matching it.
    elif membership == "join" and version.restricted_join_rule:
        authoriser = content.get("join_authorised_via_users_server")
        if isinstance(authoriser, str) and authoriser != sender and authoriser != target:
            keys.append(("m.room.member", authoriser))


def third_party_token(content: JsonObject) -> str | None:
    """``third_party_invite.signed.token`` of a membership's content, where it is a string."""
    invite = content.get("third_party_invite")
    signed = invite.get("signed") if isinstance(invite, dict) else None
    token = signed.get("token") if isinstance(signed, dict) else None
    return token if isinstance(token, str) else None


def check_auth_events(
    event: Event, auth_events: Sequence[Event], rejected: Container[str], *, create: Event | None = None
) -> None:
    """Judge the events that ``event`` cites: rule 2 of room versions 1 to 11, rules 2 and 3 of version 12.

    ``auth_events`` are all the events named by ``event.auth_events``; ``rejected`` holds the IDs of those (and of the
    create event) that were rejected. ``create`` is the room's m.room.create event, which version 12 does not cite:
    the one whose ID the room ID spells, if it is known.

    Raises ``NotAuthorized``.
    """
    if event.type == "m.room.create":
        return  # only rule 1 applies to it
    version = event.version
    if version.room_id_is_create_hash:
        _check_room_id(event, create, rejected)
    # Considering the event's auth_events:
    expected = set(auth_event_keys(event.type, event.sender, event.state_key, event.content, version))
    seen: set[StateKey] = set()
    for cited in auth_events:
        key = (cited.type, cited.state_key) if cited.state_key is not None else None
        # If there are duplicate entries for a given type and state_key pair, reject.
        if key in seen:
            raise NotAuthorized(f"the event cites two auth events for {key}")
        # If there are entries whose type and state_key don't match those specified by the auth events selection
        # algorithm described in the server specification, reject.
        if key is None or key not in expected:
            raise NotAuthorized(f"the event cites {cited.event_id} ({cited.type}), which is not an auth event for it")
        # If there are entries which were themselves rejected under the checks performed on receipt of a PDU, reject.
        if cited.event_id in rejected:
            raise NotAuthorized(f"the event cites {cited.event_id}, which was rejected")
        # If any event in auth_events has a room_id which does not match that of the event being authorised, reject.
        if cited.room_id != event.room_id:
            raise NotAuthorized(f"the event cites {cited.event_id}, which is of another room")
        seen.add(key)
    # (versions 1 to 11) If there is no m.room.create event among the entries, reject.
    if not version.room_id_is_create_hash and CREATE not in seen:
        raise NotAuthorized("the event does not cite the room's create event")


def _check_room_id(event: Event, create: Event | None, rejected: Container[str]) -> None:
    # If the event's room_id is not an event ID for an accepted (not rejected) m.room.create event, with the sigil !
    # instead of $, reject.
    if create is None or create.type != "m.room.create" or create.event_id[1:] != event.room_id[1:]:
        raise NotAuthorized("the room ID is not that of a known create event")
    if create.event_id in rejected:
        raise NotAuthorized("the room's create event was rejected")
