"""The auth events selection, and the rules on what an event cites."""

from __future__ import annotations

import pytest

from homeserver.errors import NotAuthorized
from homeserver.protocol.authorization import auth_event_keys, check_auth_events
from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import RoomVersion
from tests.protocol.symbolic import ALICE, BOB, CAROL, VERSIONS, event, member, room, versions

each_version = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: f"v{version.identifier}")

CREATE = ("m.room.create", "")
POWER = ("m.room.power_levels", "")
RULES = ("m.room.join_rules", "")


def keys(version: RoomVersion, event_type: str, content: JsonObject, state_key: str | None = None) -> set[object]:
    selected = auth_event_keys(event_type, ALICE, state_key, content, version)
    assert len(selected) == len(set(selected))
    return set(selected)


def always(version: RoomVersion) -> set[object]:
    return {POWER, ("m.room.member", ALICE)} | (set() if version.identifier == "12" else {CREATE})


@each_version
def test_the_create_event_cites_nothing(version: RoomVersion) -> None:
    assert keys(version, "m.room.create", {}, "") == set()


@each_version
def test_messages_and_state(version: RoomVersion) -> None:
    assert keys(version, "m.room.message", {"body": "hello"}) == always(version)
    assert keys(version, "m.room.topic", {"membership": "join"}, "") == always(version)
    assert keys(version, "m.room.member", {"membership": "join"}, None) == always(version)


@each_version
def test_memberships(version: RoomVersion) -> None:
    target = {("m.room.member", BOB)}
    assert keys(version, "m.room.member", {"membership": "join"}, ALICE) == always(version) | {RULES}
    assert keys(version, "m.room.member", {"membership": "knock"}, ALICE) == always(version) | {RULES}
    assert keys(version, "m.room.member", {"membership": "invite"}, BOB) == always(version) | target | {RULES}
    assert keys(version, "m.room.member", {"membership": "leave"}, BOB) == always(version) | target
    assert keys(version, "m.room.member", {"membership": "ban"}, BOB) == always(version) | target


@each_version
def test_third_party_invitations(version: RoomVersion) -> None:
    content = {"membership": "invite", "third_party_invite": {"signed": {"token": "t"}}}
    promise = ("m.room.third_party_invite", "t")
    assert promise in keys(version, "m.room.member", content, BOB)
    assert promise not in keys(version, "m.room.member", {**content, "membership": "leave"}, BOB)


@each_version
def test_restricted_joins(version: RoomVersion) -> None:
    content = {"membership": "join", "join_authorised_via_users_server": CAROL}
    expected = always(version) | {RULES}
    if version in versions(8):
        expected |= {("m.room.member", CAROL)}
    assert keys(version, "m.room.member", content, ALICE) == expected
    assert ("m.room.member", CAROL) not in keys(version, "m.room.member", {**content, "membership": "invite"}, BOB)


@pytest.mark.parametrize(
    "content",
    [
        {"membership": ["join"]},
        {"membership": None},
        {"membership": "invite", "third_party_invite": None},
        {"membership": "invite", "third_party_invite": {"signed": []}},
        {"membership": "invite", "third_party_invite": {"signed": {"token": {}}}},
        {"membership": "join", "join_authorised_via_users_server": ["@x:y"]},
        {"membership": "join", "join_authorised_via_users_server": ALICE},
    ],
)
def test_odd_contents_are_no_accident(content: JsonObject) -> None:
    for version in VERSIONS:
        assert keys(version, "m.room.member", content, BOB) <= always(version) | {RULES, ("m.room.member", BOB)}


# -- what an event cites


def judged(version: RoomVersion) -> tuple[Event, list[Event], Event]:
    state = room(version, {ALICE: "join"}, power_levels={}, join_rule="public")
    cited = [state[POWER], state[("m.room.member", ALICE)]]
    if not version.room_id_is_create_hash:
        cited.insert(0, state[CREATE])
    return event(version, "m.room.message", ALICE, {}), cited, state[CREATE]


def test_good_citations_are_allowed() -> None:
    for version in VERSIONS:
        message, cited, create = judged(version)
        check_auth_events(message, cited, set(), create=create)
        check_auth_events(create, [], set())


@each_version
def test_duplicates_are_refused(version: RoomVersion) -> None:
    message, cited, create = judged(version)
    other = event(version, "m.room.power_levels", ALICE, {}, state_key="", event_id="$other")
    with pytest.raises(NotAuthorized, match="two auth events"):
        check_auth_events(message, [*cited, other], set(), create=create)


@each_version
def test_what_is_not_selected_is_refused(version: RoomVersion) -> None:
    message, cited, create = judged(version)
    for extra in (
        event(version, "m.room.topic", ALICE, {}, state_key=""),
        event(version, "m.room.message", ALICE, {}),
        event(version, "m.room.join_rules", ALICE, {}, state_key=""),
        event(version, "m.room.power_levels", ALICE, {}),
        member(version, BOB, "join"),
    ):
        with pytest.raises(NotAuthorized, match="not an auth event"):
            check_auth_events(message, [*cited, extra], set(), create=create)


@each_version
def test_rejected_ones_are_refused(version: RoomVersion) -> None:
    message, cited, create = judged(version)
    with pytest.raises(NotAuthorized, match="was rejected"):
        check_auth_events(message, cited, {"$power_levels"}, create=create)
    with pytest.raises(NotAuthorized, match="was rejected"):
        check_auth_events(message, cited, {"$create"}, create=create)


@each_version
def test_those_of_other_rooms_are_refused(version: RoomVersion) -> None:
    message, cited, create = judged(version)
    foreign = event(version, "m.room.power_levels", ALICE, {}, state_key="", room_id="!other:a.example")
    cited[-2] = foreign
    with pytest.raises(NotAuthorized, match="of another room"):
        check_auth_events(message, cited, set(), create=create)


@pytest.mark.parametrize("version", versions(1, 11), ids=lambda version: version.identifier)
def test_the_create_event_must_be_cited_before_version_12(version: RoomVersion) -> None:
    message, cited, create = judged(version)
    with pytest.raises(NotAuthorized, match="does not cite the room's create event"):
        check_auth_events(message, cited[1:], set(), create=create)


def test_the_create_event_must_not_be_cited_in_version_12() -> None:
    message, cited, create = judged(versions(12)[0])
    with pytest.raises(NotAuthorized, match="not an auth event"):
        check_auth_events(message, [create, *cited], set(), create=create)


def test_the_room_id_of_version_12_is_that_of_a_create_event() -> None:
    (version,) = versions(12)
    message, cited, create = judged(version)
    other = event(version, "m.room.create", ALICE, {}, state_key="", event_id="$another")
    topic = event(version, "m.room.topic", ALICE, {}, state_key="", event_id="$create")
    for wrong in (None, other, topic):
        with pytest.raises(NotAuthorized, match="not that of a known create event"):
            check_auth_events(message, cited, set(), create=wrong)
    with pytest.raises(NotAuthorized, match="create event was rejected"):
        check_auth_events(message, cited, {"$create"}, create=create)
