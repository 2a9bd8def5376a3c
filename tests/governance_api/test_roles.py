from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from homeserver.governance.last_owner import MESSAGE
from homeserver.graph.append import RoomWriters
from homeserver.graph.send import Sender
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.protocol.compose import compose_event
from homeserver.protocol.events import EventDraft
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.signing import SigningKeys
from tests.fakes.servers import Servers, eventually
from tests.governance_api.people import ONE, TWO, Person, World, refused, tell


def names(group: list[JsonObject]) -> list[str]:
    return [member["user_id"][1:].partition(":")[0] for member in group]


def groups(roles: JsonObject) -> tuple[list[str], list[str], list[str]]:
    return names(roles["owners"]), names(roles["moderators"]), names(roles["members"])


def test_three_groups_in_their_order(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol, dave = [await world.person(name) for name in ("alice", "bob", "carol", "dave")]
        zoe = await world.person("zoe", TWO)
        for person, name in ((bob, "Zacharias"), (carol, "Carol"), (dave, "Carol"), (zoe, "Ann")):
            await person.client("PUT", f"/profile/{person.user_id}/displayname", {"displayname": name})
        room = await world.room_of(alice, bob, carol, dave, zoe)
        assert await alice.give(room, zoe, "moderator")
        roles = await bob.roles(room)
        assert set(roles) == {"my_role", "owners", "moderators", "members"}
        assert roles["my_role"] == "member"
        assert groups(roles) == (["alice"], ["zoe"], ["carol", "dave", "bob"])
        assert roles["moderators"] == [
            {
                "user_id": zoe.user_id,
                "display_name": "Ann",
                "avatar_url": None,
                "power_level": 50,
                "is_remote": True,
                "server_name": TWO,
                "is_creator": False,
            }
        ]
        (owner,) = roles["owners"]
        assert (owner["is_remote"], owner["server_name"], owner["power_level"]) == (False, ONE, 100)
        assert owner["is_creator"] is True
        assert (await alice.roles(room))["my_role"] == "owner"

        async def zoe_knows() -> bool:
            return (await zoe.roles(room))["my_role"] == "moderator"

        await eventually(zoe_knows)
        theirs = await zoe.roles(room)
        assert groups(theirs) == groups(roles)
        assert [member["is_remote"] for member in theirs["owners"] + theirs["moderators"]] == [True, False]

    tell(servers, story)


def test_pages(servers: Servers) -> None:
    async def story(world: World) -> None:
        people = [await world.person(name) for name in ("alice", "bob", "carol", "dave", "eve")]
        alice, bob = people[:2]
        room = await world.room_of(*people)
        await alice.give(room, bob, "moderator")
        seen: list[tuple[list[str], list[str], list[str]]] = []
        query: JsonObject = {}
        while True:
            page = await alice.roles(room, limit=2, **query)
            seen.append(groups(page))
            if "next" not in page:
                break
            query = {"from_": page["next"]}
        assert seen == [(["alice"], ["bob"], []), ([], [], ["carol", "dave"]), ([], [], ["eve"])]
        for query in ({"limit": 0}, {"limit": "x"}, {"from_": "nonsense"}, {"from_": "WzEsMl0"}):
            await refused(alice.roles(room, **query), 400, "M_INVALID_PARAM")

    tell(servers, story)


def test_only_for_members_and_without_telling_whether_there_is_such_a_room(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol = [await world.person(name) for name in ("alice", "bob", "carol")]
        room = await alice.create_room()
        await alice.invite(room, bob)
        answers = [
            await refused(person.governed(method, place, path, body))
            for person, place in ((bob, room), (carol, room), (carol, "!nowhere:one.test:8448"))
            for method, path, body in (
                ("GET", "roles", None),
                ("GET", "invitations", None),
                ("GET", "bans", None),
                ("GET", "events/$event/receipts", None),
                ("PUT", f"roles/{alice.user_id}", {"role": "member"}),
                ("DELETE", f"invitations/{bob.user_id}", None),
            )
        ]
        assert all(answer == answers[0] for answer in answers)

    tell(servers, story)


def test_giving_and_taking(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol = [await world.person(name) for name in ("alice", "bob", "carol")]
        room = await world.room_of(alice, bob, carol)
        for role, level in (("moderator", 50), ("member", 0), ("owner", 100)):
            event_id = await alice.give(room, bob, role)
            assert event_id is not None
            assert (await alice.levels(room))["users"][bob.user_id] == level
            assert await alice.give(room, bob, role) is None
        # An owner who made another owner cannot undo it; equals are untouchable.
        await refused(alice.give(room, bob, "member"), reason="equal_role")
        await refused(bob.give(room, alice, "moderator"), reason="equal_role")
        await refused(carol.give(room, carol, "owner"), reason="not_owner")
        await bob.give(room, carol, "moderator")
        await refused(carol.give(room, bob, "member"), reason="not_owner")
        await refused(carol.give(room, carol, "member", confirm=True), reason="not_owner")
        await refused(alice.give(room, bob, "emperor"), 400, "M_INVALID_PARAM")
        await refused(alice.governed("PUT", room, f"roles/{bob.user_id}", {}), 400, "M_MISSING_PARAM")
        await refused(alice.governed("PUT", room, f"roles/{bob.user_id}", {"role": 1}), 400, "M_BAD_JSON")
        dave = await world.person("dave")
        await refused(alice.give(room, dave, "moderator"), 404, "M_NOT_FOUND")
        await alice.invite(room, dave)
        await refused(alice.give(room, dave, "moderator"), 404, "M_NOT_FOUND")

    tell(servers, story)


def test_lowering_oneself_asks_first(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob")
        room = await world.room_of(alice, bob)
        await alice.give(room, bob, "owner")
        before = await alice.levels(room)
        for options in ({}, {"confirm": False}, {"dry_run": True}):
            body = await refused(alice.give(room, alice, "moderator", **options), 409, "HOMESERVER_LOSING_PRIVILEGES")
            assert "only another owner can give it back" in body["error"]
        assert await alice.give(room, alice, "moderator", confirm=True, dry_run=True) is None
        assert await alice.levels(room) == before
        assert await alice.give(room, alice, "moderator", confirm=True)
        assert (await alice.roles(room))["my_role"] == "moderator"
        await refused(alice.give(room, alice, "owner"), reason="not_owner")
        assert await bob.give(room, alice, "owner")

    tell(servers, story)


def test_rehearsals_answer_what_the_real_one_would(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol = [await world.person(name) for name in ("alice", "bob", "carol")]
        room = await world.room_of(alice, bob, carol)
        before = await alice.server.head(room)
        assert await alice.give(room, bob, "owner", dry_run=True) is None
        await refused(bob.give(room, carol, "owner", dry_run=True), reason="not_owner")
        body = await refused(alice.give(room, alice, "member", dry_run=True, confirm=True), reason="last_owner")
        assert body["error"] == MESSAGE
        assert await alice.server.head(room) == before

    tell(servers, story)


@pytest.mark.parametrize("version", ["1", "6", "9"])
def test_levels_of_others_survive_untouched_in_old_rooms(servers: Servers, version: str) -> None:
    async def story(world: World) -> None:
        alice, bob, carol, dave = [await world.person(name) for name in ("alice", "bob", "carol", "dave")]
        room = await world.room_of(alice, bob, carol, dave, room_version=version)
        levels = await alice.levels(room)
        users = {**levels["users"], bob.user_id: "75", carol.user_id: " 99 "}
        users["@gone:two.test"] = "+100"
        content = {**levels, "users": users, "users_default": "0", "org.example.unknown": {"deep": [1, None]}}
        # Clients cannot write strings here; other servers could.
        await alice.server.send_state(alice.user_id, room, "m.room.power_levels", content)
        assert groups(await alice.roles(room)) == (["alice"], ["bob", "carol"], ["dave"])
        assert [m["power_level"] for m in (await alice.roles(room))["moderators"]] == [75, 99]
        assert await alice.give(room, bob, "moderator") is None
        await alice.give(room, dave, "moderator")
        after = await alice.levels(room)
        assert after == {**content, "users": {**users, dave.user_id: 50}}

    tell(servers, story)


def test_custom_levels_and_unknown_keys_survive(servers: Servers) -> None:
    async def story(world: World) -> None:
        people = [await world.person(name) for name in ("alice", "bob", "carol", "dave", "eve")]
        alice, bob, carol, dave, eve = people
        room = await world.room_of(
            *people, power_level_content_override={"users": {alice.user_id: 150}, "org.example": {"kept": True}}
        )
        levels = await alice.levels(room)
        users = {alice.user_id: 150, bob.user_id: 75, carol.user_id: 99, dave.user_id: 120}
        await alice.put_state(room, "m.room.power_levels", {**levels, "users": users})
        assert groups(await eve.roles(room)) == (["alice", "dave"], ["bob", "carol"], ["eve"])
        await dave.give(room, eve, "moderator")
        after = await alice.levels(room)
        assert after == {**levels, "users": {**users, eve.user_id: 50}}
        # By Matrix alone alice could lower dave, being above him; but they are equals.
        await refused(alice.give(room, dave, "member"), reason="equal_role")
        raw = {**after, "users": {**after["users"], dave.user_id: 0}}
        await refused(alice.put_state(room, "m.room.power_levels", raw), reason="equal_role")
        # Within a role the level may be changed.
        raw = {**after, "users": {**after["users"], dave.user_id: 100}}
        await alice.put_state(room, "m.room.power_levels", raw)

    tell(servers, story)


def test_creators_in_version_12(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol = [await world.person(name) for name in ("alice", "bob", "carol")]
        room = await world.room_of(
            alice, bob, carol, room_version="12", creation_content={"additional_creators": [bob.user_id]}
        )
        roles = await carol.roles(room)
        assert groups(roles) == (["alice", "bob"], [], ["carol"])
        assert [m["is_creator"] for m in roles["owners"]] == [True, True]
        assert all(m["power_level"] == 2**53 - 1 for m in roles["owners"])
        await refused(alice.give(room, bob, "member"), reason="creator")
        await refused(alice.give(room, alice, "moderator", confirm=True), reason="creator")
        assert await alice.give(room, bob, "owner") is None
        await alice.give(room, carol, "owner")
        assert (await alice.levels(room))["users"] == {carol.user_id: 100}
        await refused(carol.give(room, alice, "member"), reason="creator")
        await refused(alice.give(room, carol, "member"), reason="equal_role")
        levels = await alice.levels(room)
        raw = {**levels, "users": {**levels["users"], bob.user_id: 0}}
        await refused(alice.put_state(room, "m.room.power_levels", raw), 400, "M_BAD_JSON", reason="creator")
        await bob.leave(room)
        await alice.sees(room, bob, "leave")
        await refused(alice.give(room, bob, "member"), 404, "M_NOT_FOUND")

    tell(servers, story)


def test_two_owners_change_roles_at_the_same_moment(servers: Servers) -> None:
    async def story(world: World) -> None:
        people = [await world.person(name) for name in ("alice", "bob", "carol", "dave", "eve", "frank")]
        alice, bob, *others = people
        room = await world.room_of(*people)
        await alice.give(room, bob, "owner")
        changes = [
            (alice, others[0], "moderator"),
            (bob, others[1], "moderator"),
            (alice, others[2], "owner"),
            (bob, others[3], "moderator"),
        ]
        event_ids = await asyncio.gather(*(owner.give(room, other, role) for owner, other, role in changes))
        assert len(set(event_ids)) == len(changes)
        users = (await alice.levels(room))["users"]
        assert {user: users[user.user_id] for user in others} == {
            others[0]: 50,
            others[1]: 50,
            others[2]: 100,
            others[3]: 50,
        }

    tell(servers, story)


def test_a_room_without_power_levels_event(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob")
        room = await bare_room(alice)
        await bob.join(room)
        assert groups(await bob.roles(room)) == (["alice"], [], ["bob"])
        await alice.give(room, bob, "moderator")
        assert await alice.levels(room) == {"users": {alice.user_id: 100, bob.user_id: 50}}

    tell(servers, story)


async def bare_room(alice: Person) -> str:
    """A room as a client could not make it: without power levels."""
    server, version, room_id = alice.server, ROOM_VERSIONS["11"], f"!bare:{ONE}"
    drafts = [
        EventDraft("m.room.member", alice.user_id, {"membership": "join"}, alice.user_id),
        EventDraft("m.room.join_rules", alice.user_id, {"join_rule": "public"}, ""),
    ]

    async def job(working: WorkingHead) -> Sequence[NewEvent]:
        create = compose_event(
            EventDraft("m.room.create", alice.user_id, {"room_version": "11"}, ""),
            version,
            room_id=room_id,
            prev_events=[],
            auth_events=[],
            depth=1,
            origin_server_ts=1,
            signer=server.get(SigningKeys),
        )
        await working.take_in(NewEvent(create, working.head.snapshot))
        for draft in drafts:
            await working.take_in(await server.get(Sender).compose(working, draft))
        return []

    await server.get(RoomWriters).create(room_id, version, job, 1)
    return room_id


@pytest.mark.parametrize("version", ["10", "11"])
def test_what_was_redacted_of_the_levels_is_not_published_again(servers: Servers, version: str) -> None:
    """A level that holds in spite of it stays, such as the one for inviting, which older versions redact too."""

    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob")
        room = await world.room_of(alice, bob, room_version=version)
        head = await alice.server.head(room)
        levels = await alice.server.get_state(head, "m.room.power_levels")
        event = await alice.put_state(room, "m.room.power_levels", {**levels, "invite": 50, "org.insult": "bob is bad"})
        await alice.room("PUT", room, f"redact/{event}/r1", {})
        await alice.give(room, bob, "moderator")
        now = await alice.server.get_state(await alice.server.head(room), "m.room.power_levels")
        assert now["users"][bob.user_id] == 50
        assert "org.insult" not in now
        assert now["invite"] == 50

    tell(servers, story)
