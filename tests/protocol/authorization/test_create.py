"""Rule 1: m.room.create, in every room version."""

from __future__ import annotations

import pytest

from homeserver.protocol.events import Event
from homeserver.protocol.room_versions import RoomVersion
from tests.protocol.symbolic import ALICE, BOB, VERSIONS, create_event, event, refusal, versions

each_version = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: f"v{version.identifier}")


def bare_create(version: RoomVersion, **content: object) -> Event:
    return event(version, "m.room.create", ALICE, content, state_key="", prev=())


@each_version
def test_a_first_event_is_allowed(version: RoomVersion) -> None:
    assert refusal(create_event(version), {}) is None


@each_version
def test_an_event_with_predecessors_is_no_beginning(version: RoomVersion) -> None:
    create = event(version, "m.room.create", ALICE, {"creator": ALICE}, state_key="", prev=("$other",))
    assert refusal(create, {}) == "a create event must be the first of its room"


@pytest.mark.parametrize("version", versions(1, 11), ids=lambda version: version.identifier)
def test_the_room_id_is_of_the_senders_server(version: RoomVersion) -> None:
    create = event(version, "m.room.create", BOB, {"creator": BOB}, state_key="", prev=())
    assert refusal(create, {}) == "the room ID is not of the creator's server"


def test_the_server_name_includes_the_port() -> None:
    for room_id, reason in (
        ("!r:a.example:8448", None),
        ("!r:a.example", "the room ID is not of the creator's server"),
    ):
        create = event(versions(11)[0], "m.room.create", "@a:a.example:8448", state_key="", prev=(), room_id=room_id)
        assert refusal(create, {}) == reason


def test_version_12_spells_no_room_id() -> None:
    (version,) = versions(12)
    create = create_event(version)
    assert refusal(create, {}) is None
    create.pdu["room_id"] = "!create"
    assert refusal(create, {}) == "a create event must not name a room ID"


@each_version
@pytest.mark.parametrize("wanted", ["99", "", 1, None, ["1"], {}])
def test_an_unknown_room_version_is_refused(version: RoomVersion, wanted: object) -> None:
    create = bare_create(version, creator=ALICE, room_version=wanted)
    assert refusal(create, {}) == "the create event asks for an unknown room version"


@each_version
def test_a_missing_room_version_is_allowed(version: RoomVersion) -> None:
    assert refusal(bare_create(version, creator=ALICE), {}) is None


@each_version
def test_the_creator_is_named_before_version_11(version: RoomVersion) -> None:
    before_11 = version in versions(1, 10)
    assert refusal(bare_create(version), {}) == ("the create event names no creator" if before_11 else None)


@pytest.mark.parametrize(
    ("additional", "allowed"),
    [
        ([], True),
        ([BOB], True),
        (["@historical USER:a.example"], True),
        (None, False),
        (BOB, False),
        ({BOB: 1}, False),
        ([BOB, 1], False),
        ([None], False),
        (["bob"], False),
        (["@bob"], False),
        (["@bob:b b"], False),
        (["@" + "b" * 250 + ":b.example"], False),
    ],
)
def test_additional_creators_are_user_ids_since_version_12(additional: object, allowed: bool) -> None:
    for version in versions(11, 12):
        reason = refusal(create_event(version, additional_creators=additional), {})
        if allowed or version.identifier == "11":
            assert reason is None
        else:
            assert reason == "additional_creators is not a list of user IDs"
