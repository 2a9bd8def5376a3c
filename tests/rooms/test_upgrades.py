"""homeserver/rooms/upgrades.py. https://spec.matrix.org/v1.19/client-server-api/#room-upgrades"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from sqlalchemy import select

from homeserver.accounts.account_data import AccountData
from homeserver.errors import Forbidden, InvalidParam, TooLarge
from homeserver.protocol.authorization import authorize
from homeserver.protocol.events import Event, EventDraft
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.rooms import upgrades
from homeserver.rooms.old_rooms import UpgradeRequest
from homeserver.storage import account_data, aliases
from homeserver.storage.appends import Appended, RoomAppend
from homeserver.storage.database import Database
from homeserver.storage.integrity import find_problems
from homeserver.storage.tables import rooms
from tests.factories.rooms import RoomFactory
from tests.fakes.homeserver import ALICE, BOB, CAROL, DAVE, ZOE, CoreServer, add_users, count_rooms, events_of

STATE: dict[str, JsonObject] = {
    "m.room.name": {"name": "A room"},
    "m.room.topic": {"topic": "About"},
    "m.room.avatar": {"url": "mxc://example.org/a"},
    "m.room.encryption": {"algorithm": "m.megolm.v1.aes-sha2"},
    "m.room.server_acl": {"allow": ["*"], "deny": ["evil.org"], "allow_ip_literals": False},
    "m.room.guest_access": {"guest_access": "forbidden"},
    "m.room.history_visibility": {"history_visibility": "invited"},
}
NOT_TRANSFERRED: dict[str, JsonObject] = {
    "m.room.pinned_events": {"pinned": []},
    "org.example.widget": {"url": "https://example.org"},
    "m.space.parent": {"via": ["example.org"]},
    "m.space.child": {"via": ["example.org"]},
}
"""Sensitive to who sent it, about other events, or of no use in a room that is no space."""
DIRECTIONS = [
    ("1", "11"), ("5", "6"), ("10", "11"), ("11", "11"), ("11", "12"), ("12", "12"), ("12", "11"), ("12", "10"),
    ("11", "1"), ("3", "12"),
]  # fmt: skip
TO_AND_FRO = pytest.mark.parametrize(("old_version", "new_version"), DIRECTIONS)


@pytest.fixture
def server(shared_database: Database) -> CoreServer:
    add_users(shared_database, ALICE, BOB, CAROL, DAVE)
    return CoreServer(shared_database)


async def upgrade(server: CoreServer, room_id: str, version: str, user: str = ALICE, *creators: str) -> str:
    return await server.upgrades.upgrade(UpgradeRequest(user, room_id, ROOM_VERSIONS[version], creators))


async def contents(server: CoreServer, room_id: str) -> dict[str, JsonObject]:
    """The contents of the state events that have no state key."""
    return {kind: event.content for (kind, key), event in (await server.state(room_id)).items() if not key}


async def levels(server: CoreServer, room_id: str) -> JsonObject:
    return (await contents(server, room_id))["m.room.power_levels"]


@TO_AND_FRO
def test_what_becomes_of_both_rooms(server: CoreServer, old_version: str, new_version: str) -> None:
    async def story() -> None:
        localpart = f"from-{old_version}-to-{new_version}"
        old = await server.create_room(
            version=old_version,
            preset="public_chat",
            alias_localpart=localpart,
            creation_content={"type": "org.example.kind", "m.federate": False, "org.example.other": 1},
        )
        await server.memberships.join(BOB, old)
        for kind, content in {**STATE, **NOT_TRANSFERRED}.items():
            await server.set_state(old, kind, content, "!child:example.org" if kind.startswith("m.space") else "")
        before = await levels(server, old)

        new = await upgrade(server, old, new_version)

        made = events_of(server, new)
        tombstone, canonical, muted = events_of(server, old)[-3:]
        assert tombstone.content == {"body": "This room has been replaced", "replacement_room": new}
        assert (tombstone.key, tombstone.sender) == (("m.room.tombstone", ""), ALICE)
        assert (canonical.key, canonical.content) == (("m.room.canonical_alias", ""), {})
        assert (muted.key, muted.content) == (
            ("m.room.power_levels", ""), {**before, "events_default": 50, "invite": 50},
        )  # fmt: skip

        create = made[0]
        predecessor = {"room_id": old}
        if new_version != "12":
            predecessor["event_id"] = tombstone.event_id
        creator = {} if ROOM_VERSIONS[new_version].creator_is_sender else {"creator": ALICE}
        assert create.content == {
            "room_version": new_version,
            "predecessor": predecessor,
            "type": "org.example.kind",
            "m.federate": False,
            **creator,
        }
        assert create.version is ROOM_VERSIONS[new_version]
        state = await contents(server, new)
        assert {kind: state[kind] for kind in STATE} == STATE
        assert state["m.room.join_rules"] == {"join_rule": "public"}
        assert state["m.room.canonical_alias"] == {"alias": f"#{localpart}:example.org"}
        assert not NOT_TRANSFERRED.keys() & {event.type for event in made}
        assert [event.state_key for event in made if event.type == "m.room.member"] == [ALICE]
        assert {event.sender for event in made} == {ALICE}
        check_all_are_allowed(made)
        assert server.database.read_now(aliases.aliases_of, new) == [f"#{localpart}:example.org"]
        assert server.database.read_now(aliases.aliases_of, old) == []
        assert await server.membership(old, BOB) == "join"

    asyncio.run(story())


def check_all_are_allowed(made: list[Event]) -> None:
    state: dict[tuple[str, str], Event] = {}
    for event in made:
        if event.type != "m.room.create":
            authorize(event, state, create=made[0])
        state[event.key] = event


def test_the_whole_database_is_sound(server: CoreServer) -> None:
    async def story() -> None:
        old = await server.create_room(invite=[BOB])
        new = await upgrade(server, old, "12")
        await server.send(new)
        await server.send(old)
        await server.memberships.invite(ALICE, new, BOB)
        assert server.database.read_now(find_problems) == []
        fresh = CoreServer(server.database)
        assert (await fresh.heads.get(new)).state == (await server.heads.get(new)).state
        assert (await fresh.heads.get(old)).state == (await server.heads.get(old)).state

    asyncio.run(story())


def test_the_new_room_comes_first_in_the_stream_and_everybody_is_told(server: CoreServer) -> None:
    async def story() -> None:
        old = await server.create_room(preset="public_chat")
        await server.memberships.join(BOB, old)
        position = server.notifier.position
        new = await upgrade(server, old, "11")
        changes = server.notifier.changes_since(position)
        assert changes
        in_rooms = [change.room_id for change in changes]
        assert in_rooms == sorted(in_rooms, key=lambda room_id: room_id == old)
        assert set(in_rooms) == {new, old}
        assert all(change.wakes_room for change in changes)
        assert (await server.heads.get(new)).generation == 1

    asyncio.run(story())


# -- power levels ------------------------------------------------------------------------------------------------------


async def room_with_levels(server: CoreServer, version: str, **changes: Any) -> str:
    room_id = await server.create_room(version=version, preset="public_chat")
    await server.memberships.join(BOB, room_id)
    await server.set_state(room_id, "m.room.power_levels", {**await levels(server, room_id), **changes})
    return room_id


def test_power_levels_are_carried_over(server: CoreServer) -> None:
    async def story() -> None:
        users = {ALICE: 100, BOB: 75, ZOE: 100, CAROL: -5}
        old = await room_with_levels(server, "11", users=users, kick=60, notifications={"room": 70}, future={"a": 1})
        before = await levels(server, old)
        new = await upgrade(server, old, "11")
        assert await levels(server, new) == before
        assert before["future"] == {"a": 1}

    asyncio.run(story())


def test_power_levels_into_version_12(server: CoreServer) -> None:
    async def story() -> None:
        old = await room_with_levels(server, "11", users={ALICE: 100, BOB: 100, CAROL: 50, ZOE: 75})
        before = await levels(server, old)
        new = await upgrade(server, old, "12", ALICE, CAROL, CAROL, ALICE)
        after = await levels(server, new)
        assert after["users"] == {BOB: 100, ZOE: 75}
        # As in any new room of version 12, only creators go on to the next one.
        assert after["events"] == {**before["events"], "m.room.tombstone": 150}
        create = (await server.state(new))["m.room.create", ""]
        assert create.content["additional_creators"] == [CAROL]

    asyncio.run(story())


@pytest.mark.parametrize(("version", "level"), [("11", 150), ("10", 150), ("1", 150)])
def test_power_levels_out_of_version_12(server: CoreServer, version: str, level: int) -> None:
    """Who stood above all levels is below nobody."""

    async def story() -> None:
        old = await server.create_room(
            version="12", preset="public_chat", creation_content={"additional_creators": [ZOE]}
        )
        await server.set_state(old, "m.room.power_levels", {**await levels(server, old), "users": {BOB: 50}})
        new = await upgrade(server, old, version, ALICE, CAROL)
        after = await levels(server, new)
        assert after["users"] == {ALICE: level, ZOE: level, BOB: 50}
        assert after["events"]["m.room.tombstone"] == 150
        assert "additional_creators" not in (await server.state(new))["m.room.create", ""].content
        # So it can be replaced again.
        await upgrade(server, new, "12")

    asyncio.run(story())


def test_creators_are_not_carried_over_but_stay_owners(server: CoreServer) -> None:
    async def story() -> None:
        old = await server.create_room(
            version="12", preset="public_chat", creation_content={"additional_creators": [BOB, ZOE]}
        )
        new = await upgrade(server, old, "12", ALICE, ZOE)
        create = (await server.state(new))["m.room.create", ""]
        assert create.content["additional_creators"] == [ZOE]
        assert (await levels(server, new))["users"] == {BOB: 150}

    asyncio.run(story())


@pytest.mark.parametrize(
    ("version", "target", "users"), [("10", "11", {ALICE: 100}), ("11", "12", {}), ("12", "11", {ALICE: 100})]
)
def test_a_room_without_power_levels(server: CoreServer, version: str, target: str, users: dict[str, int]) -> None:
    """Made elsewhere: then the creator has level 100, or stands above all levels."""

    async def story() -> None:
        room = RoomFactory(version, room_localpart=f"bare{version}")
        room.create("alice", bare=True)
        room.join("alice")
        await server.adopt(room)
        new = await upgrade(server, room.room_id, target)
        assert (await levels(server, new))["users"] == users
        kept = {} if version == "12" else {"users": {ALICE: 100}}
        assert await levels(server, room.room_id) == {"events_default": 50, "invite": 50, **kept}
        await server.set_state(new, "m.room.name", {"name": "mine"})

    asyncio.run(story())


def test_a_room_that_asks_more_than_its_owner_has(server: CoreServer) -> None:
    """What stands in the old room is transferred even if the user could not set it there any more."""

    async def story() -> None:
        old = await server.create_room(name="A room")
        asks = {**await levels(server, old), "state_default": 100, "ban": 100}
        asks["events"] = {**asks["events"], "m.room.name": 100, "m.room.tombstone": 50}
        await server.memberships.ban(ALICE, old, CAROL)
        await server.set_state(old, "m.room.power_levels", {**asks, "users": {ALICE: 50}})
        new = await upgrade(server, old, "11")
        assert (await contents(server, new))["m.room.name"] == {"name": "A room"}
        assert await server.membership(new, CAROL) == "ban"
        assert (await levels(server, new))["users"] == {ALICE: 50}
        # The old room's levels were not in her power.
        assert (await levels(server, old))["events_default"] == 0
        assert events_of(server, old)[-1].type == "m.room.tombstone"

    asyncio.run(story())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"users_default": 60}, {"events_default": 61, "invite": 61}),
        ({"invite": 80, "events_default": 70}, {"events_default": 70, "invite": 80}),
        ({"users_default": -10}, {"events_default": 50, "invite": 50}),
    ],
)
def test_how_the_old_room_is_muted(server: CoreServer, before: dict[str, int], after: dict[str, int]) -> None:
    async def story() -> None:
        old = await room_with_levels(server, "11", **before)
        await upgrade(server, old, "11")
        levels_now = await levels(server, old)
        assert {name: levels_now[name] for name in after} == after
        with pytest.raises(Forbidden):
            await server.send(old, BOB)
        await server.send(old, ALICE)

    asyncio.run(story())


# -- what else is transferred ------------------------------------------------------------------------------------------


@TO_AND_FRO
def test_bans(server: CoreServer, old_version: str, new_version: str) -> None:
    async def story() -> None:
        old = await server.create_room(version=old_version, preset="public_chat")
        for user in (BOB, CAROL, DAVE):
            await server.memberships.join(user, old)
        await server.memberships.ban(ALICE, old, BOB, "spam")
        await server.memberships.ban(ALICE, old, ZOE)
        await server.memberships.ban(ALICE, old, DAVE)
        await server.memberships.unban(ALICE, old, DAVE)
        new = await upgrade(server, old, new_version)
        state = await server.state(new)
        members = {key[1]: event.content for key, event in state.items() if key[0] == "m.room.member"}
        assert members.pop(ALICE)["membership"] == "join"
        assert members == {BOB: {"membership": "ban", "reason": "spam"}, ZOE: {"membership": "ban"}}
        with pytest.raises(Forbidden):
            await server.memberships.join(BOB, new)
        await server.memberships.join(CAROL, new)

    asyncio.run(story())


def test_who_is_made_a_creator_is_not_banned(server: CoreServer) -> None:
    async def story() -> None:
        old = await server.create_room(version="12", preset="public_chat")
        await server.memberships.ban(ALICE, old, BOB)
        await server.memberships.ban(ALICE, old, CAROL)
        new = await upgrade(server, old, "12", ALICE, BOB)
        assert await server.membership(new, BOB) is None
        assert await server.membership(new, CAROL) == "ban"

    asyncio.run(story())


@pytest.mark.parametrize("at_once", [0, 1, 3])
def test_what_is_too_much_for_one_transaction_follows(
    server: CoreServer, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(upgrades, "AT_ONCE_MAX", at_once)
    monkeypatch.setattr(upgrades, "PORTION", 1)

    async def story() -> None:
        old = await server.create_room()
        for user in (BOB, CAROL, ZOE):
            await server.memberships.ban(ALICE, old, user)
        new = await upgrade(server, old, "11")
        assert (await server.heads.get(new)).generation == 1 + 3 - at_once
        for user in (BOB, CAROL, ZOE):
            assert await server.membership(new, user) == "ban"

    asyncio.run(story())


def test_spaces_keep_what_is_in_them(server: CoreServer) -> None:
    async def story() -> None:
        old = await server.create_room(creation_content={"type": "m.space"})
        child = {"via": ["example.org"], "order": "a"}
        await server.set_state(old, "m.space.child", child, "!one:example.org")
        await server.set_state(old, "m.space.child", {}, "!removed:example.org")
        await server.set_state(old, "m.space.child", child, ALICE)
        new = await upgrade(server, old, "11")
        state = await server.state(new)
        children = {key[1]: event.content for key, event in state.items() if key[0] == "m.space.child"}
        assert children == {"!one:example.org": child}

    asyncio.run(story())


@pytest.mark.parametrize(
    ("version", "target", "rules", "expected"),
    [
        ("11", "12", {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": "!a:b.c"}]}, None),
        ("10", "11", {"join_rule": "knock_restricted", "allow": []}, None),
        ("11", "7", {"join_rule": "restricted", "allow": []}, {"join_rule": "invite", "allow": []}),
        ("11", "9", {"join_rule": "knock_restricted", "allow": []}, {"join_rule": "restricted", "allow": []}),
        ("11", "7", {"join_rule": "knock_restricted"}, {"join_rule": "knock"}),
        ("11", "6", {"join_rule": "knock_restricted"}, {"join_rule": "invite"}),
        ("11", "6", {"join_rule": "knock"}, {"join_rule": "invite"}),
        ("11", "1", {"join_rule": "public"}, None),
    ],
)
def test_join_rules(
    server: CoreServer, version: str, target: str, rules: JsonObject, expected: JsonObject | None
) -> None:
    async def story() -> None:
        old = await server.create_room(version=version)
        await server.set_state(old, "m.room.join_rules", rules)
        new = await upgrade(server, old, target)
        assert (await contents(server, new))["m.room.join_rules"] == (expected or rules)

    asyncio.run(story())


def test_aliases(server: CoreServer) -> None:
    async def story() -> None:
        one, two, three = (f"#alias-{name}:example.org" for name in ("one", "two", "three"))
        old = await server.create_room(alias_localpart="alias-one", preset="public_chat")
        await server.aliases.add(two, old, ALICE)
        await server.aliases.add(three, old, ALICE)
        elsewhere = "#room:other.org"
        await server.set_state(
            old, "m.room.canonical_alias", {"alias": elsewhere, "alt_aliases": [two, elsewhere, one], "more": 1}
        )
        new = await upgrade(server, old, "11")
        assert server.database.read_now(aliases.aliases_of, new) == [one, three, two]
        assert server.database.read_now(aliases.alias_row, one) == (new, ALICE)
        assert (await contents(server, new))["m.room.canonical_alias"] == {"alt_aliases": [two, one]}
        left = (await contents(server, old))["m.room.canonical_alias"]
        assert left == {"alias": elsewhere, "alt_aliases": [elsewhere], "more": 1}

    asyncio.run(story())


def test_a_canonical_alias_that_names_only_what_moves_becomes_empty(server: CoreServer) -> None:
    async def story() -> None:
        names = ["#moves-one:example.org", "#moves-two:example.org"]
        old = await server.create_room(alias_localpart="moves-one")
        await server.aliases.add(names[1], old, ALICE)
        named = {"alias": names[0], "alt_aliases": names}
        await server.set_state(old, "m.room.canonical_alias", named)
        new = await upgrade(server, old, "11")
        assert (await contents(server, new))["m.room.canonical_alias"] == named
        assert (await contents(server, old))["m.room.canonical_alias"] == {}

    asyncio.run(story())


def test_a_canonical_alias_of_another_server_stays(server: CoreServer) -> None:
    async def story() -> None:
        old = await server.create_room()
        await server.set_state(old, "m.room.canonical_alias", {"alias": "#room:other.org"})
        new = await upgrade(server, old, "11")
        assert "m.room.canonical_alias" not in await contents(server, new)
        assert (await contents(server, old))["m.room.canonical_alias"] == {"alias": "#room:other.org"}

    asyncio.run(story())


@pytest.mark.parametrize("published", [True, False])
def test_the_room_directory_lists_the_new_room_instead(server: CoreServer, published: bool) -> None:
    async def story() -> None:
        old = await server.create_room(published=published)
        new = await upgrade(server, old, "11")
        statement = select(rooms.c.room_id).where(rooms.c.published, rooms.c.room_id.in_([old, new]))
        assert server.database.read_now(lambda c: list(c.scalars(statement))) == ([new] if published else [])

    asyncio.run(story())


# -- what users have set for a room ------------------------------------------------------------------------------------


async def put_data(server: CoreServer, user_id: str, type_: str, content: bytes, room_id: str = "") -> None:
    await AccountData(server.database, server.notifier).store(user_id, type_, orjson.loads(content), room_id)


def data_of(server: CoreServer, user_id: str, type_: str, room_id: str = "") -> bytes | None:
    return server.database.read_now(account_data.get_account_data, user_id, room_id, type_)


def test_tags_and_direct_chats_go_along(server: CoreServer) -> None:
    async def story() -> None:
        old = await server.create_room(preset="public_chat")
        await server.memberships.join(BOB, old)
        tags = b'{"tags":{"m.favourite":{}}}'
        for user, other in ((ALICE, BOB), (BOB, ALICE)):
            await put_data(server, user, "m.tag", tags, old)
            await put_data(server, user, "m.direct", f'{{"{other}":["!x:y.z","{old}"],"odd":1}}'.encode())
        new = await upgrade(server, old, "12")
        assert data_of(server, ALICE, "m.tag", new) == tags
        assert data_of(server, ALICE, "m.direct") == f'{{"{BOB}":["!x:y.z","{old}","{new}"],"odd":1}}'.encode()
        assert data_of(server, BOB, "m.tag", new) is None
        position = server.notifier.position
        await server.memberships.join(BOB, new)
        assert data_of(server, BOB, "m.tag", new) == tags
        assert data_of(server, BOB, "m.direct") == f'{{"{ALICE}":["!x:y.z","{old}","{new}"],"odd":1}}'.encode()
        told = [(change.stream.name, change.room_id) for change in server.notifier.changes_since(position) or ()]
        assert told == [("EVENTS", new), ("ACCOUNT_DATA", new), ("ACCOUNT_DATA", None)]
        # What is set for the new room stays.
        await put_data(server, BOB, "m.tag", b'{"tags":{}}', new)
        await server.memberships.leave(BOB, new)
        await server.memberships.send_member(new, EventDraft("m.room.member", BOB, {"membership": "join"}, BOB))
        assert data_of(server, BOB, "m.tag", new) == b'{"tags":{}}'
        assert (data_of(server, BOB, "m.direct") or b"").count(new.encode()) == 1

    asyncio.run(story())


def test_only_a_room_that_was_really_replaced_has_settings_to_take_along(server: CoreServer) -> None:
    async def story() -> None:
        victim = await server.create_room(preset="public_chat")
        await put_data(server, ALICE, "m.tag", b'{"tags":{}}', victim)
        for predecessor in ({"room_id": victim}, {"room_id": 1}, {"room_id": "!nowhere:example.org"}, [], "x"):
            fake = await server.create_room(BOB, preset="public_chat", creation_content={"predecessor": predecessor})
            await server.memberships.join(ALICE, fake)
            assert data_of(server, ALICE, "m.tag", fake) is None

    asyncio.run(story())


# -- refusals, and what must not go wrong ------------------------------------------------------------------------------


def test_who_may_not(server: CoreServer) -> None:
    async def story() -> None:
        old = await server.create_room(preset="public_chat", alias_localpart="who-may-not")
        await server.memberships.join(BOB, old)
        head, before = await server.heads.get(old), count_rooms(server)
        for user, room in ((BOB, old), (CAROL, old), (ALICE, "!nowhere:example.org")):
            for version in ("11", "12"):
                with pytest.raises(Forbidden):
                    await upgrade(server, room, version, user)
        assert await server.heads.get(old) is head
        assert count_rooms(server) == before
        assert len(server.database.read_now(aliases.aliases_of, old)) == 1

    asyncio.run(story())


@pytest.mark.parametrize("creators", [["alice"], [""], ["@bob"]])
def test_creators_that_are_none(server: CoreServer, creators: list[str]) -> None:
    async def story() -> None:
        old = await server.create_room()
        head = await server.heads.get(old)
        with pytest.raises(InvalidParam):
            await upgrade(server, old, "12", ALICE, *creators)
        assert await server.heads.get(old) is head
        await upgrade(server, old, "11", ALICE, *creators)  # where it has no effect

    asyncio.run(story())


def test_a_request_that_makes_no_room_leaves_the_old_one_alone(server: CoreServer) -> None:
    async def story() -> None:
        old = await server.create_room()
        head, before = await server.heads.get(old), count_rooms(server)
        with pytest.raises(TooLarge):
            await upgrade(server, old, "12", ALICE, *(f"@user{n}:a-rather-long-name.example.org" for n in range(2000)))
        assert await server.heads.get(old) is head
        assert count_rooms(server) == before
        await server.send(old)

    asyncio.run(story())


@pytest.mark.parametrize("fails_in", ["new", "old"])
def test_a_failure_of_the_database_leaves_no_half_of_it(
    server: CoreServer, monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    async def story() -> None:
        old = await server.create_room(alias_localpart=f"fails-in-{fails_in}", preset="public_chat")
        before, count = server.notifier.position, count_rooms(server)
        append = server.graph.append

        def failing(connection: Any, appends: list[RoomAppend]) -> list[Appended | BaseException]:
            done = append(connection, appends if fails_in == "old" else appends[:1])
            raise OSError("the disk is full") if done else AssertionError

        with monkeypatch.context() as patch:
            patch.setattr(server.graph, "append", failing)
            with pytest.raises(OSError, match="disk"):
                await upgrade(server, old, "11")
        assert (server.notifier.position, count_rooms(server)) == (before, count)
        assert len(server.database.read_now(aliases.aliases_of, old)) == 1
        assert "m.room.tombstone" not in await contents(server, old)
        new = await upgrade(server, old, "11")
        assert len(server.database.read_now(aliases.aliases_of, new)) == 1
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


def test_another_process_that_is_faster(server: CoreServer) -> None:
    async def story() -> None:
        other = CoreServer(server.database)
        for version in ("11", "12"):
            old = await server.create_room(preset="public_chat")
            await server.send(old)
            await other.send(old, body="of which the first process has not heard yet")
            before = count_rooms(server)
            new = await upgrade(server, old, version)
            assert count_rooms(server) == before + 1
            assert (await server.heads.get(new)).version is ROOM_VERSIONS[version]
            tombstone = (await server.state(old))["m.room.tombstone", ""]
            assert tombstone.content["replacement_room"] == new
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


@pytest.mark.parametrize("version", ["11", "12"])
def test_the_same_request_again_gets_the_same_room(server: CoreServer, version: str) -> None:
    async def story() -> None:
        old = await server.create_room(preset="public_chat")
        before = count_rooms(server)
        made = await asyncio.gather(*(upgrade(server, old, version, ALICE, BOB) for _ in range(3)))
        assert len(set(made)) == 1
        assert count_rooms(server) == before + 1
        assert await upgrade(CoreServer(server.database), old, version, ALICE, BOB) == made[0]
        # Another request makes another room.
        if version == "12":
            assert await upgrade(server, old, "12", ALICE) != made[0]
        again = await upgrade(server, old, "10")
        assert again != made[0]
        assert (await server.state(old))["m.room.tombstone", ""].content["replacement_room"] == again
        await server.memberships.leave(ALICE, again)
        assert await upgrade(server, old, "10") != again

    asyncio.run(story())


def test_tombstones_that_say_something_else(server: CoreServer) -> None:
    async def story() -> None:
        old = await server.create_room()
        for replacement in (old, 1, "!nowhere:example.org", await server.create_room(), None, "\0"):
            await server.set_state(old, "m.room.tombstone", {"body": "x", "replacement_room": replacement})
            new = await upgrade(server, old, "11")
            assert new != replacement
            assert (await server.state(old))["m.room.tombstone", ""].content["replacement_room"] == new

    asyncio.run(story())


def test_others_may_write_meanwhile(server: CoreServer) -> None:
    async def story() -> None:
        old = await server.create_room(preset="public_chat")
        results = await asyncio.gather(
            *(server.send(old, body=str(number)) for number in range(5)),
            upgrade(server, old, "11"),
            *(server.send(old, body=str(number)) for number in range(5)),
        )
        assert len(results) == 11
        assert len((await server.heads.get(old)).extremities) == 1
        assert server.database.read_now(find_problems) == []

    asyncio.run(story())


def test_two_rooms_in_one_millisecond_are_two_rooms(server: CoreServer) -> None:
    async def story() -> None:
        old = await server.create_room(version="12")
        first = await server.create_room(version="12", creation_content={"predecessor": {"room_id": old}})
        bare = (await server.state(first))["m.room.create", ""].content
        new = await upgrade(server, old, "12")
        assert new != first
        assert (await server.state(new))["m.room.create", ""].content == bare

    asyncio.run(story())
