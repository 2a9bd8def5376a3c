from __future__ import annotations

from typing import Any

import pytest

from homeserver.protocol.compose import finish_template
from homeserver.protocol.events import Event
from homeserver.protocol.room_versions import ROOM_VERSIONS
from tests.factories.rooms import server_key
from tests.fakes.servers import RemoteServer, Servers, eventually
from tests.federation_api.asking import refused as refused_request
from tests.governance_api.people import ONE, THREE, TWO, World, refused, tell

AWAY = pytest.mark.parametrize("away", [ONE, TWO], ids=["same server", "other server"])


@AWAY
def test_who_when_and_why_until_the_unban(servers: Servers, away: str) -> None:
    async def story(world: World) -> None:
        alice, bob, carol = await world.person("alice"), await world.person("bob", away), await world.person("carol")
        room = await world.room_of(alice, bob, carol)
        assert await alice.governed("GET", room, "bans") == {"bans": []}
        await alice.ban(room, bob, reason="flooding")
        (ban,) = await alice.bans(room)
        assert ban == {
            "user_id": bob.user_id,
            "banned_by": alice.user_id,
            "banned_at": ban["banned_at"],
            "reason": "flooding",
            "is_remote": away == TWO,
        }
        assert ban["banned_at"] > 1_700_000_000_000
        assert await carol.bans(room) == [ban]
        await bob.sees(room, bob, "ban")
        await refused(bob.bans(room))
        await refused(bob.join(room))
        await refused(bob.send(room))
        await refused(bob.invite(room, carol))
        await refused(bob.put_state(room, "m.room.member", {"membership": "knock"}, bob.user_id))
        await refused(bob.put_state(room, "m.room.member", {"membership": "leave"}, bob.user_id))
        await refused(alice.invite(room, bob), reason="banned")
        again = {"membership": "invite"}
        await refused(alice.put_state(room, "m.room.member", again, bob.user_id), reason="banned")
        await alice.unban(room, bob)
        assert await alice.bans(room) == []
        await alice.invite(room, bob)
        await bob.sees_invitation(room)
        await bob.join(room)
        await alice.sees(room, bob, "join")

    tell(servers, story)


@AWAY
def test_ban_before_ever_joining(servers: Servers, away: str) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob", away)
        carol = await world.person("carol", TWO)
        room = await world.room_of(alice, carol)
        await alice.ban(room, bob, reason="known elsewhere")
        for person in (alice, carol):
            await person.sees(room, bob, "ban")
            assert [(b["user_id"], b["reason"]) for b in await person.bans(room)] == [(bob.user_id, "known elsewhere")]
        await refused(bob.join(room))
        await refused(carol.invite(room, bob))
        await alice.unban(room, bob)
        await carol.sees(room, bob, "leave")
        await bob.join(room)
        await alice.sees(room, bob, "join")

    tell(servers, story)


def test_what_the_banned_user_still_gets(servers: Servers) -> None:
    """The room goes to ``leave``, with the ban as the last thing seen; the server is sent nothing more."""

    async def story(world: World) -> None:
        alice, bob, carol = await world.person("alice"), await world.person("bob", TWO), await world.person("carol")
        room = await world.room_of(alice, bob, carol)
        for person in (bob, carol):
            since = (await person.sync())["next_batch"]
            await alice.send(room, "the last words")
            await alice.ban(room, person, reason="enough")
            await person.sees(room, person, "ban")
            after = [await alice.send(room, f"not for you {number}") for number in range(3)]
            await alice.put_state(room, "m.room.topic", {"topic": f"secret from {person.user_id}"})
            answer = await person.sync(since)
            assert room not in answer["rooms"].get("join", {})
            timeline = answer["rooms"]["leave"][room]["timeline"]["events"]
            last = timeline[-1]
            assert (last["type"], last["state_key"], last["sender"]) == ("m.room.member", person.user_id, alice.user_id)
            assert last["content"] == {"membership": "ban", "reason": "enough"}
            assert "the last words" in [event["content"].get("body") for event in timeline]
            later = await person.sync(answer["next_batch"])
            assert room not in later.get("rooms", {}).get("leave", {})
            for event_id in after:
                await refused(person.room("GET", room, f"event/{event_id}"), 404, "M_NOT_FOUND")
            page = await person.room("GET", room, "messages", dir="b", limit=100)
            assert not {event["event_id"] for event in page["chunk"]}.intersection(after)
            state = await person.room("GET", room, "state")
            assert f"secret from {person.user_id}" not in [event["content"].get("topic") for event in state]
        sent = [request.body for request in world.servers.network.requests(TWO, "/send/")]
        assert not any(b"not for you" in body or b"secret" in body for body in sent)

    tell(servers, story)


def test_equal_lists_on_all_servers(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob", TWO)
        carol = await world.person("carol", THREE)
        others = [await world.person(f"user{number}", (ONE, TWO, THREE)[number % 3]) for number in range(6)]
        room = await world.room_of(alice, bob)
        for number, other in enumerate(others[:4]):
            await alice.ban(room, other, reason=f"reason {number}")
        await carol.join(room)
        await bob.sees(room, carol, "join")
        await alice.give(room, bob, "moderator")

        async def bob_knows() -> bool:
            return (await bob.roles(room))["my_role"] == "moderator"

        await eventually(bob_knows)
        await bob.ban(room, others[4])
        await alice.sees(room, others[4], "ban")
        await alice.ban(room, others[5])
        await alice.unban(room, others[0])
        for person in (bob, carol):
            await person.sees(room, others[0], "leave")
            await person.sees(room, others[5], "ban")
        lists = [[{**b, "is_remote": None} for b in await person.bans(room)] for person in (alice, bob, carol)]
        assert lists[0] == lists[1] == lists[2]
        expected = [others[n].user_id for n in (5, 4, 3, 2, 1)]
        assert [b["user_id"] for b in lists[0]] == expected
        assert [b["banned_by"] for b in lists[0]][:2] == [alice.user_id, bob.user_id]

        seen: list[Any] = []
        query: dict[str, Any] = {}
        for _ in range(3):
            page = await alice.governed("GET", room, "bans", limit=2, **query)
            seen += page["bans"]
            query = {"from_": page.get("next", "")}
        assert [b["user_id"] for b in seen] == expected
        assert "next" not in page

    tell(servers, story)


def test_a_redacted_reason_is_not_shown(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob")
        room = await world.room_of(alice, bob)
        await alice.ban(room, bob, reason="something unkind")
        event = (await alice.server.head(room)).state["m.room.member", bob.user_id]
        await alice.room("PUT", room, f"redact/{event}/r1", {})
        assert [(b["user_id"], b["reason"]) for b in await alice.bans(room)] == [(bob.user_id, None)]

    tell(servers, story)


def test_equals_and_those_above_cannot_be_banned(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol = [await world.person(name) for name in ("alice", "bob", "carol")]
        room = await world.room_of(alice, bob, carol)
        await alice.give(room, bob, "owner")
        await refused(alice.ban(room, bob))
        await refused(carol.ban(room, bob))
        await bob.give(room, carol, "moderator")
        await refused(carol.ban(room, alice))
        assert await alice.bans(room) == []

    tell(servers, story)


@pytest.mark.parametrize("version", ["1", "11", "12"])
def test_a_banned_user_of_another_server_is_kept_out(servers: Servers, version: str) -> None:
    """Whatever that server sends: make_join, send_join with a template from before the ban, an event by /send."""

    async def story(world: World) -> None:
        remote = world.servers.remote("remote.test:8448")
        alice = await world.person("alice")
        user = "@mallory:remote.test:8448"
        room = await alice.create_room("public_chat", room_version=version)
        early = await template(remote, room, user, version)
        await alice.room("POST", room, "ban", {"user_id": user, "reason": "mallory"})
        answer = await remote.request("GET", ONE, f"/_matrix/federation/v1/make_join/{room}/{user}?ver={version}")
        refused_request(answer, 403, "M_FORBIDDEN")
        uri = f"/_matrix/federation/v2/send_join/{room}/{early.event_id}"
        refused_request(await remote.request("PUT", ONE, uri, early.pdu), 403, "M_FORBIDDEN")
        await remote.transaction(ONE, [early])
        assert await alice.server.membership(room, user) == "ban"
        assert (await alice.bans(room))[0]["reason"] == "mallory"

    tell(servers, story)


async def template(remote: RemoteServer, room: str, user: str, version: str) -> Event:
    response = await remote.request("GET", ONE, f"/_matrix/federation/v1/make_join/{room}/{user}?ver={version}")
    assert response.status_code == 200, response.text
    localpart = "chosen" if version in ("1", "2") else None
    key = server_key(user.partition(":")[2])
    return finish_template(response.json()["event"], ROOM_VERSIONS[version], key, 1_700_000_000_000, localpart)
