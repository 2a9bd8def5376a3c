"""The rule for m.room.member, clause by clause, in every room version that has the clause."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.room_versions import RoomVersion
from tests.protocol.symbolic import ALICE, BOB, CAROL, DAVE, VERSIONS, event, member, refusal, room, versions

State = Mapping[StateKey, Event]
Case = tuple[list[RoomVersion], dict[str, Any], Callable[[RoomVersion], Event], str | None]

LEVELS = {"users": {ALICE: 100, BOB: 50, CAROL: 50}, "invite": 50, "kick": 50, "ban": 60}
JOINED = {ALICE: "join", BOB: "join", CAROL: "join"}


def by(target: str, membership: str, sender: str | None = None, **content: Any) -> Callable[[RoomVersion], Event]:
    return lambda version: member(version, target, membership, sender, content=content)


def joins(join_rule: str | None, current: str | None, **content: Any) -> tuple[dict[str, Any], Any]:
    members = {ALICE: "join", CAROL: "join", **({BOB: current} if current else {})}
    setup = {"members": members, "join_rule": join_rule, "power_levels": LEVELS}
    return setup, by(BOB, "join", **content)


NOT_INVITED = "the user is not invited to the room"
CLOSED = "the room's join rule does not let anybody in"
BANNED = "the user is banned from the room"
NOBODY_VOUCHES = "nobody in the room vouches for the user's right to join"
RESTRICTED_SINCE = {"restricted": 8, "knock_restricted": 10}

CASES: dict[str, Case] = {
    # If there is no state_key property, or no membership property in content, reject.
    "no state key": (
        VERSIONS,
        {},
        lambda version: event(version, "m.room.member", ALICE, {"membership": "join"}),
        "a membership must be a state event",
    ),
    "no membership": (
        VERSIONS,
        {},
        lambda version: event(version, "m.room.member", ALICE, {}, state_key=ALICE),
        "the membership is missing",
    ),
    # 1. If the only previous event is an m.room.create and the state_key is the creator, allow.
    "the creator joins first": (
        VERSIONS,
        {"members": {}},
        lambda version: member(version, ALICE, "join", prev=("$create",)),
        None,
    ),
    "the creator joins not right after the create event": (
        VERSIONS,
        {"members": {BOB: "leave"}},
        lambda version: member(version, ALICE, "join", prev=("$else",)),
        NOT_INVITED,
    ),
    "the creator joins after the create event and another": (
        VERSIONS,
        {"members": {BOB: "leave"}},
        lambda version: member(version, ALICE, "join", prev=("$create", "$else")),
        NOT_INVITED,
    ),
    "another one joins first": (
        VERSIONS,
        {"members": {BOB: "leave"}},
        lambda version: member(version, BOB, "join", prev=("$create",)),
        NOT_INVITED,
    ),
    "an additional creator joins first": (
        versions(12),
        {"members": {BOB: "leave"}, "create": {"additional_creators": [BOB]}},
        lambda version: member(version, BOB, "join", prev=("$create",)),
        NOT_INVITED,
    ),
    # 2. If the sender does not match state_key, reject.
    "to join for somebody else": (
        VERSIONS,
        {"join_rule": "public"},
        by(BOB, "join", ALICE),
        "nobody can join for somebody else",
    ),
    # 3. If the sender is banned, reject.
    **{f"banned, {rule}": (VERSIONS, *joins(rule, "ban"), BANNED) for rule in ("public", "invite", "knock")},
    # 4. If the join_rule is invite or knock then allow if membership state is invite or join.
    "invited": (VERSIONS, *joins("invite", "invite"), None),
    "joined already": (VERSIONS, *joins("invite", "join"), None),
    "left": (VERSIONS, *joins("invite", "leave"), NOT_INVITED),
    "knocked, not invited": (versions(7), *joins("knock", "knock"), NOT_INVITED),
    "never in": (VERSIONS, *joins("invite", None), NOT_INVITED),
    "no join rule is invite": (VERSIONS, *joins(None, None), NOT_INVITED),
    "no join rule, but invited": (VERSIONS, *joins(None, "invite"), None),
    "knock, invited": (versions(7), *joins("knock", "invite"), None),
    "knock before version 7, invited": (versions(1, 6), *joins("knock", "invite"), CLOSED),
    # 5. If the join_rule is restricted or knock_restricted: …
    **{
        f"{rule}, {current}": (versions(since), *joins(rule, current), None)
        for rule, since in RESTRICTED_SINCE.items()
        for current in ("join", "invite")
    },
    **{
        f"{rule} before its version, {current}": (versions(1, since - 1), *joins(rule, current), CLOSED)
        for rule, since in RESTRICTED_SINCE.items()
        for current in ("join", "invite", "leave")
    },
    **{
        f"{rule}, nobody vouches": (versions(since), *joins(rule, "leave"), NOBODY_VOUCHES)
        for rule, since in RESTRICTED_SINCE.items()
    },
    **{
        f"{rule}, a member who may invite vouches": (
            versions(since),
            *joins(rule, None, join_authorised_via_users_server=CAROL),
            None,
        )
        for rule, since in RESTRICTED_SINCE.items()
    },
    "somebody who is not in the room vouches": (
        versions(8),
        {"members": {ALICE: "leave"}, "join_rule": "restricted", "power_levels": LEVELS},
        by(BOB, "join", join_authorised_via_users_server=CAROL),
        "the user who vouches for the join is not in the room",
    ),
    "somebody who may not invite vouches": (
        versions(8),
        {"members": {DAVE: "join"}, "join_rule": "restricted", "power_levels": LEVELS},
        by(BOB, "join", join_authorised_via_users_server=DAVE),
        "the user who vouches for the join may not invite",
    ),
    "a creator of version 12 vouches without being listed": (
        versions(12),
        {"members": {ALICE: "join"}, "join_rule": "restricted", "power_levels": {"invite": 100}},
        by(BOB, "join", join_authorised_via_users_server=ALICE),
        None,
    ),
    "something that is no user vouches": (
        versions(8),
        *joins("restricted", None, join_authorised_via_users_server=[CAROL]),
        NOBODY_VOUCHES,
    ),
    "banned, but somebody vouches": (
        versions(8),
        *joins("restricted", "ban", join_authorised_via_users_server=CAROL),
        BANNED,
    ),
    # 6. If the join_rule is public, allow.
    "public": (VERSIONS, *joins("public", None), None),
    "public, left before": (VERSIONS, *joins("public", "leave"), None),
    # 7. Otherwise, reject.
    "private": (VERSIONS, *joins("private", "invite"), CLOSED),
    "an unknown join rule": (VERSIONS, *joins("whatever", "join"), CLOSED),
    # invite
    "to invite": (VERSIONS, {"members": JOINED, "power_levels": LEVELS}, by(DAVE, "invite", BOB), None),
    "to invite again": (
        VERSIONS,
        {"members": {**JOINED, DAVE: "invite"}, "power_levels": LEVELS},
        by(DAVE, "invite", BOB),
        None,
    ),
    "to invite from outside": (
        VERSIONS,
        {"members": {ALICE: "join", BOB: "invite"}, "power_levels": LEVELS},
        by(DAVE, "invite", BOB),
        "only members of the room can invite",
    ),
    "to invite a member": (
        VERSIONS,
        {"members": JOINED, "power_levels": LEVELS},
        by(CAROL, "invite", BOB),
        "the invited user is in the room already",
    ),
    "to invite a banned user": (
        VERSIONS,
        {"members": {**JOINED, DAVE: "ban"}, "power_levels": LEVELS},
        by(DAVE, "invite", BOB),
        "the invited user is banned from the room",
    ),
    "to invite without the level": (
        VERSIONS,
        {"members": JOINED, "power_levels": {**LEVELS, "invite": 51}},
        by(DAVE, "invite", BOB),
        "the sender's power level is too low to invite",
    ),
    "everybody may invite by default": (
        VERSIONS,
        {"members": JOINED, "power_levels": {}},
        by(DAVE, "invite", BOB),
        None,
    ),
    # leave
    **{
        f"to leave, {current}": (VERSIONS, {"members": {BOB: current}}, by(BOB, "leave"), None)
        for current in ("join", "invite")
    },
    **{
        f"to leave, {current}": (
            VERSIONS,
            {"members": {BOB: current}},
            by(BOB, "leave"),
            "the user is neither in the room nor invited",
        )
        for current in ("leave", "ban")
    },
    "to leave without ever being in": (
        VERSIONS,
        {},
        by(BOB, "leave"),
        "the user is neither in the room nor invited",
    ),
    "to take a knock back": (versions(7), {"members": {BOB: "knock"}}, by(BOB, "leave"), None),
    "to take a knock back before version 7": (
        versions(1, 6),
        {"members": {BOB: "knock"}},
        by(BOB, "leave"),
        "the user is neither in the room nor invited",
    ),
    "to kick": (VERSIONS, {"members": {**JOINED, DAVE: "join"}, "power_levels": LEVELS}, by(DAVE, "leave", BOB), None),
    "to kick from outside": (
        VERSIONS,
        {"members": {ALICE: "join", BOB: "leave"}, "power_levels": LEVELS},
        by(DAVE, "leave", BOB),
        "only members of the room can remove others",
    ),
    "to kick without the level": (
        VERSIONS,
        {"members": JOINED, "power_levels": {**LEVELS, "kick": 51}},
        by(DAVE, "leave", BOB),
        "the sender's power level is too low to remove others",
    ),
    "to kick an equal": (
        VERSIONS,
        {"members": JOINED, "power_levels": LEVELS},
        by(CAROL, "leave", BOB),
        "the sender's power level does not exceed that of the user to be removed",
    ),
    "to lift a ban": (
        VERSIONS,
        {"members": {**JOINED, DAVE: "ban"}, "power_levels": {**LEVELS, "ban": 50}},
        by(DAVE, "leave", BOB),
        None,
    ),
    "to lift a ban without the ban level": (
        VERSIONS,
        {"members": {**JOINED, DAVE: "ban"}, "power_levels": LEVELS},
        by(DAVE, "leave", BOB),
        "the sender's power level is too low to lift a ban",
    ),
    "to lift a ban without the kick level": (
        VERSIONS,
        {"members": {**JOINED, DAVE: "ban"}, "power_levels": {**LEVELS, "ban": 0, "kick": 51}},
        by(DAVE, "leave", BOB),
        "the sender's power level is too low to remove others",
    ),
    "to kick a creator": (
        versions(12),
        {"members": JOINED, "power_levels": {"users": {BOB: 9_999}}},
        by(ALICE, "leave", BOB),
        "the sender's power level does not exceed that of the user to be removed",
    ),
    "one creator kicks another": (
        versions(12),
        {"members": JOINED, "create": {"additional_creators": [BOB]}},
        by(ALICE, "leave", BOB),
        "the sender's power level does not exceed that of the user to be removed",
    ),
    # ban
    "to ban": (VERSIONS, {"members": JOINED, "power_levels": LEVELS}, by(BOB, "ban", ALICE), None),
    "to ban somebody who was never in": (
        VERSIONS,
        {"members": JOINED, "power_levels": LEVELS},
        by(DAVE, "ban", ALICE),
        None,
    ),
    "to ban from outside": (
        VERSIONS,
        {"members": {ALICE: "leave"}, "power_levels": LEVELS},
        by(DAVE, "ban", ALICE),
        "only members of the room can ban others",
    ),
    "to ban without the level": (
        VERSIONS,
        {"members": JOINED, "power_levels": LEVELS},
        by(DAVE, "ban", BOB),
        "the sender's power level is too low to ban others",
    ),
    "to ban an equal": (
        VERSIONS,
        {"members": JOINED, "power_levels": {**LEVELS, "ban": 50}},
        by(CAROL, "ban", BOB),
        "the sender's power level does not exceed that of the user to be banned",
    ),
    "to ban oneself": (
        VERSIONS,
        {"members": JOINED, "power_levels": {**LEVELS, "ban": 50}},
        by(BOB, "ban", BOB),
        "the sender's power level does not exceed that of the user to be banned",
    ),
    "to ban a creator": (
        versions(12),
        {"members": JOINED, "power_levels": {"users": {BOB: 9_999}}},
        by(ALICE, "ban", BOB),
        "the sender's power level does not exceed that of the user to be banned",
    ),
    # knock
    "to knock": (versions(7), {"join_rule": "knock"}, by(BOB, "knock"), None),
    "to knock again": (versions(7), {"join_rule": "knock", "members": {BOB: "knock"}}, by(BOB, "knock"), None),
    "to knock after leaving": (versions(7), {"join_rule": "knock", "members": {BOB: "leave"}}, by(BOB, "knock"), None),
    "to knock on knock_restricted": (versions(10), {"join_rule": "knock_restricted"}, by(BOB, "knock"), None),
    "to knock on knock_restricted before version 10": (
        versions(7, 9),
        {"join_rule": "knock_restricted"},
        by(BOB, "knock"),
        "the room's join rule does not allow knocking",
    ),
    **{
        f"to knock on {rule}": (
            versions(7),
            {"join_rule": rule},
            by(BOB, "knock"),
            "the room's join rule does not allow knocking",
        )
        for rule in ("invite", "public", "restricted", None)
    },
    "to knock for somebody else": (
        versions(7),
        {"join_rule": "knock"},
        by(BOB, "knock", ALICE),
        "nobody can knock for somebody else",
    ),
    **{
        f"to knock, {current}": (
            versions(7),
            {"join_rule": "knock", "members": {BOB: current}},
            by(BOB, "knock"),
            "the user is banned, invited, or in the room already",
        )
        for current in ("ban", "invite", "join")
    },
    "to knock before version 7": (
        versions(1, 6),
        {"join_rule": "knock"},
        by(BOB, "knock"),
        "the membership is not one that this room version knows",
    ),
    # Otherwise, the membership is unknown. Reject.
    **{
        f"membership {membership!r}": (
            VERSIONS,
            {"join_rule": "public"},
            by(BOB, membership),
            "the membership is not one that this room version knows",
        )
        for membership in ("", "JOIN", None, 1, ["join"], {"join": "join"})
    },
}


def rows() -> Iterator[Any]:
    for name, (in_versions, setup, build, reason) in CASES.items():
        for version in in_versions:
            yield pytest.param(version, setup, build, reason, id=f"v{version.identifier}-{name}")


@pytest.mark.parametrize(("version", "setup", "build", "reason"), list(rows()))
def test_membership(
    version: RoomVersion, setup: dict[str, Any], build: Callable[[RoomVersion], Event], reason: str | None
) -> None:
    assert refusal(build(version), room(version, **setup)) == reason


def test_the_creator_is_content_creator_before_version_11_and_the_sender_since() -> None:
    for version in VERSIONS:
        content = {"creator": BOB, "room_version": version.identifier}
        create = event(version, "m.room.create", ALICE, content, state_key="", event_id="$create", prev=())
        first = ALICE if version in versions(11) else BOB
        for user_id in (ALICE, BOB):
            reason = refusal(member(version, user_id, "join", prev=("$create",)), {create.key: create})
            assert reason == (None if user_id == first else NOT_INVITED)


@pytest.mark.parametrize("join_rule", [1, ["public"], {}])
def test_a_join_rule_that_is_no_string_lets_nobody_in(join_rule: object) -> None:
    for version in VERSIONS:
        state = room(version, {ALICE: "join", BOB: "invite"}, join_rule=join_rule)
        assert refusal(member(version, BOB, "join"), state) == CLOSED


def test_a_membership_in_the_state_that_is_no_string_counts_as_none() -> None:
    for version in VERSIONS:
        state = room(version, {ALICE: "join", BOB: ["join"]}, join_rule="invite")
        assert refusal(member(version, BOB, "join"), state) == NOT_INVITED
