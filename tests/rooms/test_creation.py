"""homeserver/rooms/creation.py: the events of a new room. https://spec.matrix.org/v1.19/client-server-api/#creation"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select

from homeserver.errors import (
    BadJson,
    Forbidden,
    InvalidParam,
    InvalidRoomState,
    NotFound,
    RemoteFailed,
    RoomInUse,
    TooLarge,
)
from homeserver.governance.room_defaults import default_power_levels
from homeserver.protocol.authorization import authorize, check_auth_events
from homeserver.protocol.events import Event
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.rooms import creation
from homeserver.rooms.creation import INITIAL_STATE_MAX, INVITES_MAX, RoomRequest
from homeserver.storage import aliases, user_rooms
from homeserver.storage.database import Database
from homeserver.storage.integrity import find_problems
from homeserver.storage.tables import rooms
from tests.fakes.homeserver import ALICE, BOB, CAROL, ZOE, CoreServer, add_users, count_rooms, events_of

PRESETS: dict[str, tuple[str, str, str]] = {
    "private_chat": ("invite", "shared", "can_join"),
    "trusted_private_chat": ("invite", "shared", "can_join"),
    "public_chat": ("public", "shared", "forbidden"),
}


@pytest.fixture
def server(shared_database: Database) -> CoreServer:
    add_users(shared_database, ALICE, BOB, CAROL)
    return CoreServer(shared_database)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_every_version_and_preset(server: CoreServer, version: str, preset: str) -> None:
    async def story() -> None:
        before = server.notifier.position
        room_id = await server.create_room(
            version=version,
            preset=preset,
            alias_localpart=f"room-{version}-{preset}",
            name="A name",
            topic="A topic",
            invite=[BOB, BOB],
            is_direct=True,
            initial_state=[("org.example.note", "key", {"n": 1})],
            creation_content={"m.federate": True, "type": "org.example.kind", "creator": ZOE, "room_version": "99"},
        )
        made = events_of(server, room_id)
        assert [(event.type, event.state_key) for event in made] == [
            ("m.room.create", ""),
            ("m.room.member", ALICE),
            ("m.room.power_levels", ""),
            ("m.room.canonical_alias", ""),
            ("m.room.join_rules", ""),
            ("m.room.history_visibility", ""),
            ("m.room.guest_access", ""),
            ("org.example.note", "key"),
            ("m.room.name", ""),
            ("m.room.topic", ""),
            ("m.room.member", BOB),
        ]
        # One transaction, so nobody saw half of it.
        assert (await server.heads.get(room_id)).generation == 1
        assert server.notifier.position == before + len(made)
        contents = {event.type: event.content for event in made if event.state_key != BOB}
        rules = (contents["m.room.join_rules"], contents["m.room.history_visibility"], contents["m.room.guest_access"])
        assert rules == (
            {"join_rule": PRESETS[preset][0]},
            {"history_visibility": PRESETS[preset][1]},
            {"guest_access": PRESETS[preset][2]},
        )
        assert contents["m.room.canonical_alias"] == {"alias": f"#room-{version}-{preset}:example.org"}
        assert contents["m.room.topic"]["topic"] == "A topic"
        assert made[-1].content == {"membership": "invite", "is_direct": True}
        check_create(made[0], version, preset)
        check_levels(contents["m.room.power_levels"], version, preset)
        check_all_are_allowed(made)

    asyncio.run(story())


def check_create(create: Event, version: str, preset: str) -> None:
    rules = ROOM_VERSIONS[version]
    content: dict[str, Any] = {"m.federate": True, "type": "org.example.kind", "room_version": version}
    if not rules.creator_is_sender:
        content["creator"] = ALICE
    if rules.creators_have_infinite_power and preset == "trusted_private_chat":
        content["additional_creators"] = [BOB]
    assert create.content == content
    if rules.room_id_is_create_hash:
        assert create.room_id == "!" + create.event_id[1:]
        assert "room_id" not in create.pdu


def check_levels(levels: dict[str, Any], version: str, preset: str) -> None:
    rules = ROOM_VERSIONS[version]
    owners = [ALICE, *([BOB] if preset == "trusted_private_chat" else [])]
    assert levels == default_power_levels(rules, [] if rules.creators_have_infinite_power else owners, None)


def check_all_are_allowed(made: list[Event]) -> None:
    state: dict[tuple[str, str], Event] = {}
    by_id = {event.event_id: event for event in made}
    for event in made:
        if event.type != "m.room.create":
            cited = [by_id[event_id] for event_id in event.auth_events]
            check_auth_events(event, cited, frozenset(), create=made[0])
            authorize(event, state, create=made[0])
        state[event.key] = event


def test_the_whole_database_is_sound(server: CoreServer) -> None:
    asyncio.run(server.create_room())
    assert server.database.read_now(find_problems) == []


def test_what_the_request_says_goes_before_what_the_preset_says(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room(
            preset="public_chat",
            name="from name",
            initial_state=[
                ("m.room.name", "", {"name": "from initial_state"}),
                ("m.room.topic", "", {"topic": "from initial_state"}),
                ("m.room.join_rules", "", {"join_rule": "knock"}),
                ("m.room.encryption", "", {"algorithm": "m.megolm.v1.aes-sha2"}),
            ],
        )
        made = [event for event in events_of(server, room_id) if event.type != "m.room.member"]
        contents = {event.type: event.content for event in made}
        assert len(contents) == len(made)
        assert contents["m.room.name"] == {"name": "from name"}
        assert contents["m.room.topic"] == {"topic": "from initial_state"}
        assert contents["m.room.join_rules"] == {"join_rule": "knock"}
        assert contents["m.room.history_visibility"] == {"history_visibility": "shared"}

    asyncio.run(story())


def test_power_levels_of_the_request(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room(power_levels={"invite": 0, "events": {"m.room.name": 10}})
        expected = default_power_levels(ROOM_VERSIONS["11"], [ALICE], None)
        expected |= {"invite": 0, "events": {"m.room.name": 10}}
        assert (await server.state(room_id))["m.room.power_levels", ""].content == expected
        given = {"users": {ALICE: 100}, "users_default": 1}
        room_id = await server.create_room(
            initial_state=[("m.room.power_levels", "", given)], power_levels={"users_default": 2}
        )
        levels = (await server.state(room_id))["m.room.power_levels", ""].content
        assert levels == {**given, "users_default": 2}

    asyncio.run(story())


@pytest.mark.parametrize(
    "request_",
    [
        {"power_levels": {"users": {BOB: 100}}, "name": "nobody may set it"},
        {"power_levels": {"users": {ALICE: 40}}, "topic": "too low"},
        {"power_levels": {"users": "everybody"}},
        {"version": "12", "power_levels": {"users": {ALICE: 100}}},
        {"initial_state": [("m.room.create", "", {})]},
        {"initial_state": [("m.room.member", BOB, {"membership": "join"})]},
    ],
)
def test_a_room_that_its_creator_cannot_set_up(server: CoreServer, request_: dict[str, Any]) -> None:
    before = count_rooms(server)
    with pytest.raises(InvalidRoomState) as caught:
        asyncio.run(server.create_room(**request_))
    assert (caught.value.status, caught.value.errcode) == (400, "M_INVALID_ROOM_STATE")
    assert count_rooms(server) == before


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"invite": ["bob"]}, InvalidParam),
        ({"invite": [ALICE]}, InvalidParam),
        ({"invite": [f"@user{n}:other.org" for n in range(INVITES_MAX + 1)]}, InvalidParam),
        ({"invite": ["@nobody:example.org"]}, NotFound),
        ({"initial_state": [("t", str(n), {}) for n in range(INITIAL_STATE_MAX + 1)]}, InvalidParam),
        ({"initial_state": [("t", "", {"body": "x" * 70_000})]}, TooLarge),
        ({"initial_state": [("t", "", {"n": 1.5})]}, BadJson),
        ({"name": "x" * 70_000}, TooLarge),
        ({"alias_localpart": "with:colon"}, InvalidParam),
        ({"alias_localpart": "x" * 300}, InvalidParam),
        ({"alias_localpart": ""}, InvalidParam),
        ({"creation_content": {"m.federate": False}, "invite": [ZOE]}, Forbidden),
        ({"creation_content": {"m.federate": "no"}}, BadJson),
        ({"version": "12", "creation_content": {"additional_creators": "bob"}}, InvalidParam),
        ({"version": "12", "creation_content": {"additional_creators": ["bob"]}}, InvalidParam),
    ],
)
def test_requests_that_make_no_room(server: CoreServer, request_: dict[str, Any], error: type[Exception]) -> None:
    before = count_rooms(server)
    with pytest.raises(error):
        asyncio.run(server.create_room(**request_))
    assert count_rooms(server) == before


def test_additional_creators(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room(
            version="12",
            preset="trusted_private_chat",
            creation_content={"additional_creators": [CAROL, BOB, ALICE, CAROL]},
            invite=[BOB],
        )
        state = await server.state(room_id)
        assert state["m.room.create", ""].content["additional_creators"] == [CAROL, BOB]
        assert state["m.room.power_levels", ""].content["users"] == {}
        room_id = await server.create_room(version="11", creation_content={"additional_creators": [CAROL]})
        assert (await server.state(room_id))["m.room.power_levels", ""].content["users"] == {ALICE: 100}

    asyncio.run(story())


def test_an_alias_is_taken_with_the_room_or_the_room_is_not_made(server: CoreServer) -> None:
    async def story() -> None:
        before = count_rooms(server)
        results = await asyncio.gather(
            *(server.create_room(alias_localpart="wanted") for _ in range(4)), return_exceptions=True
        )
        (room_id,) = [result for result in results if isinstance(result, str)]
        assert sum(isinstance(result, RoomInUse) for result in results) == 3
        assert count_rooms(server) == before + 1
        assert server.database.read_now(aliases.alias_row, "#wanted:example.org") == (room_id, ALICE)
        with pytest.raises(RoomInUse):
            await server.create_room(alias_localpart="wanted")

    asyncio.run(story())


def test_two_rooms_in_one_millisecond_are_two_rooms(server: CoreServer) -> None:
    async def story() -> None:
        made = await asyncio.gather(*(server.create_room(version="12", name=str(number)) for number in range(5)))
        assert len(set(made)) == 5
        names = [(await server.state(room_id))["m.room.name", ""].content["name"] for room_id in made]
        assert names == ["0", "1", "2", "3", "4"]

    asyncio.run(story())


def test_published_rooms(server: CoreServer) -> None:
    async def story() -> None:
        listed, hidden = await server.create_room(published=True), await server.create_room()
        statement = select(rooms.c.room_id).where(rooms.c.published, rooms.c.room_id.in_([listed, hidden]))
        assert server.database.read_now(lambda c: list(c.scalars(statement))) == [listed]

    asyncio.run(story())


# -- users of other servers --------------------------------------------------------------------------------------------


def test_users_of_other_servers_are_invited_once_the_room_is_there(server: CoreServer) -> None:
    async def story() -> None:
        room_id = await server.create_room(invite=[ZOE, BOB], is_direct=True)
        invitation = (await server.state(room_id))["m.room.member", ZOE]
        assert invitation.content == {"membership": "invite", "is_direct": True}
        assert set(invitation.pdu["signatures"]) == {"example.org", "other.org"}

    asyncio.run(story())


def test_a_direct_chat_with_somebody_who_cannot_be_reached_leaves_nothing(server: CoreServer) -> None:
    async def story() -> None:
        server.remote.refusal = RemoteFailed("nobody there")
        position = server.notifier.position
        for _ in range(2):  # the same request can be made again
            with pytest.raises(RemoteFailed):
                await server.create_room(invite=[ZOE], is_direct=True, alias_localpart="us", published=True)
        changes = server.notifier.changes_since(position)
        assert changes
        room_id = changes[0].room_id
        assert room_id is not None
        assert await server.membership(room_id, ALICE) == "leave"
        standing = server.database.read_now(user_rooms.standing_of, ALICE, room_id)
        assert standing is not None
        assert standing.forgotten
        assert server.database.read_now(aliases.aliases_of, room_id) == []
        published = select(rooms.c.published).where(rooms.c.room_id == room_id)
        assert server.database.read_now(lambda c: c.scalar(published)) is False

    asyncio.run(story())


@pytest.mark.parametrize("is_direct", [False, True])
def test_a_room_stands_without_those_who_cannot_be_reached_and_says_so(server: CoreServer, is_direct: bool) -> None:
    """Whoever was invited besides keeps an invitation that is good."""

    async def story() -> None:
        server.remote.refusal = RemoteFailed("nobody there")
        asked = [ZOE, BOB] if is_direct else [ZOE]
        request = RoomRequest(
            ROOM_VERSIONS["11"],
            creation.PRESETS["private_chat"],
            invite=asked,
            is_direct=is_direct,
            alias_localpart=f"plans-{is_direct}".lower(),
        )
        created = await server.creation.create(ALICE, request)
        assert [failure.body() for failure in created.failed_invitations] == [
            {"user_id": ZOE, "errcode": "M_UNKNOWN", "error": "nobody there"}
        ]
        assert server.database.read_now(aliases.aliases_of, created.room_id) == [
            f"#plans-{is_direct}:example.org".lower()
        ]
        assert await server.membership(created.room_id, ALICE) == "join"
        assert await server.membership(created.room_id, ZOE) is None
        if is_direct:
            await server.memberships.join(BOB, created.room_id)

    asyncio.run(story())


def test_a_server_that_cannot_be_reached_is_asked_once(server: CoreServer) -> None:
    async def story() -> None:
        server.remote.refusal = RemoteFailed("nobody there")
        users = [f"@user{number}:other.org" for number in range(5)]
        request = RoomRequest(ROOM_VERSIONS["11"], creation.PRESETS["private_chat"], invite=users)
        created = await server.creation.create(ALICE, request)
        assert [failure.user_id for failure in created.failed_invitations] == users
        assert server.remote.invites == 1
        server.remote.refusal = Forbidden("not this one")
        created = await server.creation.create(ALICE, request)
        assert len(created.failed_invitations) == 5
        assert server.remote.invites == 6

    asyncio.run(story())


def test_a_room_for_many_stands_without_those_who_cannot_be_reached(server: CoreServer) -> None:
    async def story() -> None:
        server.remote.refusal = RemoteFailed("nobody there")
        room_id = await server.create_room(invite=[ZOE, "@yan:third.org", BOB])
        assert await server.membership(room_id, ALICE) == "join"
        assert await server.membership(room_id, BOB) == "invite"
        assert await server.membership(room_id, ZOE) is None

    asyncio.run(story())
