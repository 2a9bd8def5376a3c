"""The sequence of rules: federation, aliases, membership of the sender, required levels, redactions."""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.errors import NotAuthorized
from homeserver.protocol.authorization import authorize, redaction_applies
from homeserver.protocol.events import Event
from homeserver.protocol.power_levels import power_levels_of
from homeserver.protocol.room_versions import RoomVersion
from tests.protocol.symbolic import ALICE, BOB, CAROL, DAVE, VERSIONS, create_event, event, refusal, room, versions

each_version = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: f"v{version.identifier}")
JOINED = {ALICE: "join", BOB: "join", CAROL: "join", DAVE: "join"}


def message(version: RoomVersion, sender: str) -> Event:
    return event(version, "m.room.message", sender, {"body": "hello"})


@each_version
def test_without_a_create_event_nothing_is_allowed(version: RoomVersion) -> None:
    state = room(version, JOINED)
    del state["m.room.create", ""]
    with pytest.raises(NotAuthorized, match="no create event"):
        authorize(message(version, ALICE), state)
    authorize(message(version, ALICE), state, create=create_event(version))


@each_version
@pytest.mark.parametrize(("federate", "closed"), [(False, True), (True, False), (None, False), ("false", False)])
def test_a_room_may_be_closed_to_other_servers(version: RoomVersion, federate: object, closed: bool) -> None:
    state = room(version, JOINED, create={"m.federate": federate})
    assert refusal(message(version, DAVE), state) is None
    assert refusal(message(version, BOB), state) == ("the room is closed to other servers" if closed else None)


@each_version
def test_aliases_have_a_rule_before_version_6(version: RoomVersion) -> None:
    def aliases(sender: str, state_key: str | None) -> Event:
        return event(version, "m.room.aliases", sender, {"aliases": []}, state_key=state_key)

    state = room(version, {ALICE: "join"})
    assert refusal(aliases(ALICE, "a.example"), state) is None
    if version in versions(1, 5):
        # It comes before the membership of the sender.
        assert refusal(aliases(BOB, "b.example"), state) is None
        assert refusal(aliases(BOB, "a.example"), state) == "aliases may be set for the sender's own server only"
        assert refusal(aliases(ALICE, ""), state) == "aliases may be set for the sender's own server only"
        assert refusal(aliases(ALICE, None), state) == "aliases must be a state event"
    else:
        assert refusal(aliases(BOB, "b.example"), state) == "the sender is not in the room"
        assert refusal(aliases(ALICE, "b.example"), state) is None
        assert refusal(aliases(ALICE, None), state) is None


@each_version
@pytest.mark.parametrize("membership", ["invite", "leave", "ban", "knock", None])
def test_only_members_send(version: RoomVersion, membership: str | None) -> None:
    state = room(version, {ALICE: "join", **({BOB: membership} if membership else {})})
    assert refusal(message(version, ALICE), state) is None
    assert refusal(message(version, BOB), state) == "the sender is not in the room"


@each_version
def test_required_levels(version: RoomVersion) -> None:
    levels = {
        "users": {ALICE: 100, BOB: 30, CAROL: 20},
        "events_default": 20,
        "state_default": 30,
        "events": {"m.special": 30, "m.free": 0},
    }
    state = room(
        version,
        JOINED,
        power_levels=levels if version not in versions(12) else {**levels, "users": {BOB: 30, CAROL: 20}},
    )

    def reason(sender: str, event_type: str, state_key: str | None = None) -> str | None:
        return refusal(event(version, event_type, sender, {}, state_key=state_key), state)

    for sender, event_type, state_key, allowed in (
        (CAROL, "m.room.message", None, True),
        (DAVE, "m.room.message", None, False),
        (BOB, "m.room.topic", "", True),
        (CAROL, "m.room.topic", "", False),
        (BOB, "m.special", None, True),
        (CAROL, "m.special", None, False),
        (DAVE, "m.free", "", True),
        (DAVE, "m.free", None, True),
        (ALICE, "m.room.topic", "", True),
    ):
        expected = None if allowed else f"the sender's power level is too low to send {event_type}"
        assert reason(sender, event_type, state_key) == expected


@each_version
def test_levels_without_a_power_levels_event(version: RoomVersion) -> None:
    state = room(version, JOINED)
    topic = "the sender's power level is too low to send m.room.topic"
    assert refusal(message(version, BOB), state) is None
    assert refusal(event(version, "m.room.topic", ALICE, {}, state_key=""), state) is None
    assert refusal(event(version, "m.room.topic", BOB, {}, state_key=""), state) == topic


@each_version
def test_state_under_a_user_id_is_that_users(version: RoomVersion) -> None:
    state = room(version, JOINED, power_levels={"state_default": 0})
    for state_key, allowed in ((BOB, True), (BOB + "_x", False), (ALICE, False), ("@", False), ("x" + ALICE, True)):
        reason = None if allowed else "state under a user's ID is that user's own"
        assert refusal(event(version, "org.example.beacon", BOB, {}, state_key=state_key), state) == reason


# -- redactions


def redaction(version: RoomVersion, sender: str, target: Any, event_id: str) -> Event:
    if version.redacts_in_content:
        return event(version, "m.room.redaction", sender, {"redacts": target}, event_id=event_id)
    return event(version, "m.room.redaction", sender, {}, event_id=event_id, redacts=target)


@pytest.mark.parametrize("version", versions(1, 2), ids=lambda version: version.identifier)
@pytest.mark.parametrize(
    ("sender", "target", "allowed"),
    [
        (CAROL, "$x:a.example", True),
        (BOB, "$x:b.example", True),
        (BOB, "$x:a.example", False),
        (BOB, "$x", False),
        (BOB, None, False),
        (BOB, 5, False),
    ],
)
def test_redactions_have_a_rule_in_versions_1_and_2(
    version: RoomVersion, sender: str, target: Any, allowed: bool
) -> None:
    state = room(version, JOINED, power_levels={"users": {CAROL: 50, BOB: 49}})
    reason = None if allowed else "the sender may not redact events of other servers"
    assert refusal(redaction(version, sender, target, "$r:b.example"), state) == reason


@pytest.mark.parametrize("version", versions(3), ids=lambda version: version.identifier)
def test_redactions_are_ordinary_events_since_version_3(version: RoomVersion) -> None:
    state = room(version, JOINED, power_levels={"redact": 100})
    assert refusal(redaction(version, BOB, "$x", "$r"), state) is None
    guarded = room(version, JOINED, power_levels={"events": {"m.room.redaction": 1}})
    assert refusal(redaction(version, BOB, "$x", "$r"), guarded) == (
        "the sender's power level is too low to send m.room.redaction"
    )


@pytest.mark.parametrize("version", versions(3), ids=lambda version: version.identifier)
def test_when_a_redaction_takes_effect(version: RoomVersion) -> None:
    state = room(version, JOINED, power_levels={"users": {CAROL: 50}})
    levels = power_levels_of(version, state["m.room.create", ""], state["m.room.power_levels", ""])
    for sender, author, applies in (
        (CAROL, BOB, True),
        (BOB, BOB, True),
        (BOB, "@other:b.example", True),
        (BOB, CAROL, False),
    ):
        target = message(version, author)
        assert redaction_applies(redaction(version, sender, "$event", "$r"), target, levels) is applies
    elsewhere = event(version, "m.room.message", BOB, {}, room_id="!elsewhere:a.example")
    assert not redaction_applies(redaction(version, CAROL, "$event", "$r"), elsewhere, levels)
