"""The rule for m.room.member: who may join, invite, leave, kick, ban, unban and knock.

https://spec.matrix.org/v1.19/rooms/v12/#authorisation-rules
"""

from __future__ import annotations

from homeserver.errors import NotAuthorized
from homeserver.protocol.authorization.third_party_invite import check_third_party_invitation
from homeserver.protocol.events import JOIN_RULES, Event, StateEvents
from homeserver.protocol.power_levels import PowerLevels, creators_of


def membership_of(state: StateEvents, user_id: str) -> str | None:
    """The user's membership in this state; ``None`` for a user who never had one."""
    member = state.get(("m.room.member", user_id))
    return None if member is None else member.membership


def check_member(event: Event, state: StateEvents, create: Event, levels: PowerLevels) -> None:
    """Rule 5 of version 12 (rule 4 of versions 6 to 11, rule 5 before). Raises ``NotAuthorized``."""
    # If there is no state_key property, or no membership property in content, reject.
    if event.state_key is None:
        raise NotAuthorized("a membership must be a state event")
    if "membership" not in event.content:
        raise NotAuthorized("the membership is missing")
    # If content has a join_authorised_via_users_server key: if the event is not validly signed by the homeserver of
    # the user ID denoted by the key, reject.
    #   That is done with the other signatures of the event, in check 2: see homeserver/protocol/signatures.py.
    membership = event.membership
    if membership == "join":
        _check_join(event, event.state_key, state, create, levels)
    elif membership == "invite":
        _check_invite(event, event.state_key, state, levels)
    elif membership == "leave":
        _check_leave(event, event.state_key, state, levels)
    elif membership == "ban":
        _check_ban(event, event.state_key, state, levels)
    elif membership == "knock" and event.version.knock_join_rule:
        _check_knock(event, event.state_key, state)
    # Otherwise, the membership is unknown. Reject.
    else:
        raise NotAuthorized("the membership is not one that this room version knows")


def _join_rule(state: StateEvents) -> str | None:
    """The join rule; ``invite`` if the state has none."""
    event = state.get(JOIN_RULES)
    rule = "invite" if event is None else event.content.get("join_rule", "invite")
    return rule if isinstance(rule, str) else None


def _check_join(event: Event, target: str, state: StateEvents, create: Event, levels: PowerLevels) -> None:
    version = event.version
    # If the only previous event is an m.room.create and the state_key is the sender of the m.room.create, allow.
    # (versions 1 to 10: … and the state_key is the creator, allow.)
    if event.prev_events == (create.event_id,):
        first = {create.sender} if version.creator_is_sender else creators_of(version, create)
        if target in first:
            return
    # If the sender does not match state_key, reject.
    if event.sender != target:
        raise NotAuthorized("nobody can join for somebody else")
    # If the sender is banned, reject.
    current = membership_of(state, target)
    if current == "ban":
        raise NotAuthorized("the user is banned from the room")
    # If the join_rule is invite or knock then allow if membership state is invite or join.
    rule = _join_rule(state)
    if rule == "invite" or (rule == "knock" and version.knock_join_rule):
        if current in ("invite", "join"):
            return
        raise NotAuthorized("the user is not invited to the room")
    # If the join_rule is restricted or knock_restricted:
    if (rule == "restricted" and version.restricted_join_rule) or (
        rule == "knock_restricted" and version.knock_restricted_join_rule
    ):
        # If membership state is join or invite, allow.
        if current not in ("invite", "join"):
            _check_authorising_user(event, state, levels)
        # Otherwise, allow.
        return
    # If the join_rule is public, allow.
    # Otherwise, reject.
    if rule != "public":
        raise NotAuthorized("the room's join rule does not let anybody in")


def _check_authorising_user(event: Event, state: StateEvents, levels: PowerLevels) -> None:
    # If the join_authorised_via_users_server key in content is not a user with sufficient permission to invite other
    # users or is not a joined member of the room, reject.
    authoriser = event.content.get("join_authorised_via_users_server")
    if not isinstance(authoriser, str):
        raise NotAuthorized("nobody in the room vouches for the user's right to join")
    if membership_of(state, authoriser) != "join":
        raise NotAuthorized("the user who vouches for the join is not in the room")
    if levels.of_user(authoriser) < levels.invite:
        raise NotAuthorized("the user who vouches for the join may not invite")


def _check_invite(event: Event, target: str, state: StateEvents, levels: PowerLevels) -> None:
    current = membership_of(state, target)
    # If content has a third_party_invite property: …
    if "third_party_invite" in event.content:
        check_third_party_invitation(event, state, current)
        return
    # If the sender's current membership state is not join, reject.
    if membership_of(state, event.sender) != "join":
        raise NotAuthorized("only members of the room can invite")
    # If target user's current membership state is join or ban, reject.
    if current == "join":
        raise NotAuthorized("the invited user is in the room already")
    if current == "ban":
        raise NotAuthorized("the invited user is banned from the room")
    # If the sender's power level is greater than or equal to the invite level, allow. Otherwise, reject.
    if levels.of_user(event.sender) < levels.invite:
        raise NotAuthorized("the sender's power level is too low to invite")


def _check_leave(event: Event, target: str, state: StateEvents, levels: PowerLevels) -> None:
    current = membership_of(state, target)
    # If the sender matches state_key, allow if and only if that user's current membership state is invite, join, or
    # knock.
    if event.sender == target:
        if current in ("invite", "join") or (current == "knock" and event.version.knock_join_rule):
            return
        raise NotAuthorized("the user is neither in the room nor invited")
    # If the sender's current membership state is not join, reject.
    if membership_of(state, event.sender) != "join":
        raise NotAuthorized("only members of the room can remove others")
    # If the target user's current membership state is ban, and the sender's power level is less than the ban level,
    # reject.
    sender_level = levels.of_user(event.sender)
    if current == "ban" and sender_level < levels.ban:
        raise NotAuthorized("the sender's power level is too low to lift a ban")
    # If the sender's power level is greater than or equal to the kick level, and the target user's power level is less
    # than the sender's power level, allow. Otherwise, reject.
    if sender_level < levels.kick:
        raise NotAuthorized("the sender's power level is too low to remove others")
    if levels.of_user(target) >= sender_level:
        raise NotAuthorized("the sender's power level does not exceed that of the user to be removed")


def _check_ban(event: Event, target: str, state: StateEvents, levels: PowerLevels) -> None:
    # If the sender's current membership state is not join, reject.
    if membership_of(state, event.sender) != "join":
        raise NotAuthorized("only members of the room can ban others")
    # If the sender's power level is greater than or equal to the ban level, and the target user's power level is less
    # than the sender's power level, allow. Otherwise, reject.
    sender_level = levels.of_user(event.sender)
    if sender_level < levels.ban:
        raise NotAuthorized("the sender's power level is too low to ban others")
    if levels.of_user(target) >= sender_level:
        raise NotAuthorized("the sender's power level does not exceed that of the user to be banned")


def _check_knock(event: Event, target: str, state: StateEvents) -> None:
    # If the join_rule is anything other than knock or knock_restricted, reject.
    rule = _join_rule(state)
    if rule != "knock" and not (rule == "knock_restricted" and event.version.knock_restricted_join_rule):
        raise NotAuthorized("the room's join rule does not allow knocking")
    # If sender does not match state_key, reject.
    if event.sender != target:
        raise NotAuthorized("nobody can knock for somebody else")
    # If the sender's current membership is not ban, invite, or join, allow. Otherwise, reject.
    if membership_of(state, target) in ("ban", "invite", "join"):
        raise NotAuthorized("the user is banned, invited, or in the room already")
