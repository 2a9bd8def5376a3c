from __future__ import annotations

import asyncio
from typing import Any

import pytest

from homeserver.graph.send import Sender
from homeserver.protocol.compose import compose_event
from homeserver.protocol.events import EventDraft
from homeserver.protocol.json_types import JsonObject
from tests.factories.rooms import server_key
from tests.fakes.servers import Servers, eventually
from tests.governance_api.people import ONE, THREE, TWO, Person, World, refused, tell

AWAY = pytest.mark.parametrize("away", [ONE, TWO], ids=["same server", "other server"])


async def becomes(person: Person, room: str, expected: dict[str, str]) -> None:
    """Where invitations stand, soon."""

    async def probe() -> bool:
        return await person.statuses(room) == expected

    await eventually(probe)


@AWAY
def test_who_when_and_why(servers: Servers, away: str) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob", away)
        room = await alice.create_room()
        assert await alice.governed("GET", room, "invitations") == {"invitations": []}
        before = alice.server.get(Sender)._clock.now_ms()
        await alice.invite(room, bob, reason="we need you")
        (pending,) = await alice.invitations(room)
        assert before <= pending["invited_at"] == pending["updated_at"]
        assert pending == {
            "user_id": bob.user_id,
            "status": "pending",
            "invited_by": alice.user_id,
            "invited_at": pending["invited_at"],
            "updated_at": pending["invited_at"],
            "reason": "we need you",
            "is_remote": away == TWO,
        }
        await bob.sees_invitation(room)
        await bob.leave(room, reason="no time")
        await becomes(alice, room, {"bob": "rejected"})
        (rejected,) = await alice.invitations(room)
        assert rejected["updated_at"] > rejected["invited_at"] == pending["invited_at"]
        assert (rejected["reason"], rejected["invited_by"]) == ("no time", alice.user_id)

    tell(servers, story)


@AWAY
def test_accept_decline_revoke_and_again(servers: Servers, away: str) -> None:
    async def story(world: World) -> None:
        alice = await world.person("alice")
        bob, carol, dave = [await world.person(name, away) for name in ("bob", "carol", "dave")]
        room = await alice.create_room()
        for other in (bob, carol, dave):
            await alice.invite(room, other)
            await other.sees_invitation(room)
        assert [i["user_id"] for i in await alice.invitations(room)] == [o.user_id for o in (dave, carol, bob)]
        await carol.leave(room)
        await becomes(alice, room, {"bob": "pending", "carol": "rejected", "dave": "pending"})
        assert await alice.revoke(room, dave, reason="a mistake")
        await becomes(alice, room, {"bob": "pending", "carol": "rejected", "dave": "revoked"})
        assert (await alice.invitations(room))[0]["reason"] == "a mistake"

        async def dave_is_rid_of_it() -> bool:
            return room not in (await dave.sync()).get("rooms", {}).get("invite", {})

        await eventually(dave_is_rid_of_it)
        await refused(dave.join(room))
        # A revoked or rejected invitation touches no one but its user.
        await bob.join(room)
        await becomes(alice, room, {"bob": "accepted", "carol": "rejected", "dave": "revoked"})
        for other in (bob, carol, dave):
            await refused(alice.revoke(room, other), 409, "M_BAD_STATE")
        await refused(alice.governed("DELETE", room, "invitations/@nobody:one.test:8448"), 409, "M_BAD_STATE")
        await alice.invite(room, carol, reason="once more")
        (again, *_) = await alice.invitations(room)
        assert (again["user_id"], again["status"], again["reason"]) == (carol.user_id, "pending", "once more")
        await carol.sees_invitation(room)
        await carol.join(room)
        await becomes(alice, room, {"bob": "accepted", "carol": "accepted", "dave": "revoked"})
        # The other server, which joined later, knows all of it as well.
        assert await bob.invitations(room) == [
            {**i, "is_remote": False if away == TWO else i["is_remote"]} for i in await alice.invitations(room)
        ]
        # What happens later does not change what became of the invitation.
        await bob.leave(room)
        await alice.sees(room, bob, "leave")
        assert (await alice.statuses(room))["bob"] == "accepted"

    tell(servers, story)


@AWAY
def test_ban_of_a_pending_invitee(servers: Servers, away: str) -> None:
    async def story(world: World) -> None:
        alice = await world.person("alice")
        bob, carol = await world.person("bob", away), await world.person("carol", away)
        room = await alice.create_room()
        await alice.invite(room, bob)
        await alice.invite(room, carol)
        await bob.sees_invitation(room)
        await carol.sees_invitation(room)
        await alice.ban(room, bob, reason="spam")
        await alice.put_state(room, "m.room.member", {"membership": "ban", "reason": "spam"}, carol.user_id)
        await becomes(alice, room, {"bob": "revoked", "carol": "revoked"})
        assert [i["reason"] for i in await alice.invitations(room)] == ["spam", "spam"]
        assert {b["user_id"] for b in await alice.bans(room)} == {bob.user_id, carol.user_id}

        async def both_are_rid_of_it() -> bool:
            rooms = [(await person.sync()).get("rooms", {}) for person in (bob, carol)]
            return all(room not in found.get("invite", {}) for found in rooms)

        await eventually(both_are_rid_of_it)
        await refused(bob.join(room))

    tell(servers, story)


def test_who_may_revoke(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol, dave = [await world.person(name) for name in ("alice", "bob", "carol", "dave")]
        room = await world.room_of(alice, bob, carol, power_level_content_override={"invite": 0})
        await bob.invite(room, dave)
        await refused(bob.revoke(room, dave))
        assert await alice.statuses(room) == {"dave": "pending"}
        await alice.give(room, carol, "moderator")
        await carol.revoke(room, dave)
        assert await alice.statuses(room) == {"dave": "revoked"}
        await refused(alice.governed("DELETE", room, f"invitations/{dave.user_id}", {"reason": 1}), 400, "M_BAD_JSON")

    tell(servers, story)


def test_invited_server_is_down(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob", TWO)
        room = await alice.create_room()
        before = await alice.server.head(room)
        world.servers.network.split(ONE, TWO)
        body = await refused(alice.invite(room, bob), 502, "M_UNKNOWN")
        assert TWO in body["error"]
        assert await alice.server.head(room) == before
        assert await alice.invitations(room) == []
        world.servers.network.heal(ONE, TWO)
        await alice.invite(room, bob)
        await bob.sees_invitation(room)
        # It is down when the invitation is taken back: it hears of that when it is there again.
        world.servers.network.split(ONE, TWO)
        await alice.revoke(room, bob)
        assert await alice.statuses(room) == {"bob": "revoked"}
        assert room in (await bob.sync())["rooms"]["invite"]
        world.servers.network.heal(ONE, TWO)
        await bob.join(await alice.create_room("public_chat"))  # whose server is heard of again is tried again

        async def it_has_arrived() -> bool:
            return room not in (await bob.sync()).get("rooms", {}).get("invite", {})

        await eventually(it_has_arrived)

    tell(servers, story)


def test_inviting_server_is_gone(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob", TWO)
        room = await alice.create_room()
        await alice.invite(room, bob)
        world.servers.network.split(ONE, TWO)
        body = await refused(bob.join(room), 502, "M_UNKNOWN")
        assert ONE in body["error"]
        assert room in (await bob.sync())["rooms"]["invite"]
        await bob.leave(room)
        assert room not in (await bob.sync()).get("rooms", {}).get("invite", {})

    tell(servers, story)


def test_pages(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, *others = [await world.person(name) for name in ("alice", "bob", "carol", "dave", "eve", "frank")]
        room = await alice.create_room(invite=[other.user_id for other in others])
        whole = await alice.governed("GET", room, "invitations")
        assert set(whole) == {"invitations"}
        assert sorted(i["user_id"] for i in whole["invitations"]) == sorted(o.user_id for o in others)
        assert all(i["status"] == "pending" for i in whole["invitations"])
        seen: list[Any] = []
        query: dict[str, Any] = {}
        for _ in range(3):
            page = await alice.governed("GET", room, "invitations", limit=2, **query)
            seen += page["invitations"]
            query = {"from_": page.get("next", "")}
        assert seen == whole["invitations"]
        assert "next" not in page
        for wrong in ("", "x", "WzFd", "WzEsIngiXQ"):
            await refused(alice.governed("GET", room, "invitations", from_=wrong), 400, "M_INVALID_PARAM")

    tell(servers, story)


@pytest.mark.parametrize(("visibility", "expected"), [("shared", 3), ("invited", 2), ("joined", 0)])
@AWAY
def test_messages_while_pending(servers: Servers, away: str, visibility: str, expected: int) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob", away)
        history = {"type": "m.room.history_visibility", "content": {"history_visibility": visibility}}
        room = await alice.create_room(initial_state=[history])
        sent = [await alice.send(room, "before")]
        await alice.invite(room, bob)
        sent += [await alice.send(room, f"while pending {number}") for number in range(2)]
        await bob.sees_invitation(room)
        await refused(bob.room("GET", room, "messages", dir="b"))
        await bob.join(room)
        page = await bob.room("GET", room, "messages", dir="b", limit=100)
        readable = [event["event_id"] for event in page["chunk"] if event["event_id"] in sent]
        assert readable[::-1] == sent[len(sent) - expected :]

    tell(servers, story)


def test_group_direct_message_of_five_servers(servers: Servers) -> None:
    async def story(world: World) -> None:
        names = [f"s{number}.test:8448" for number in range(5)]
        alice, *others = [await world.person(f"u{number}", name) for number, name in enumerate(names)]
        room = await alice.create_room(
            "trusted_private_chat", is_direct=True, invite=[other.user_id for other in others]
        )
        assert await alice.statuses(room) == {f"u{n}": "pending" for n in range(1, 5)}
        for other in others[:3]:
            await other.sees_invitation(room)
            await other.join(room)
        await others[3].leave(room)
        expected = {"u1": "accepted", "u2": "accepted", "u3": "accepted", "u4": "rejected"}
        for person in (alice, *others[:3]):
            await becomes(person, room, expected)
        said = await others[2].send(room, "we are all here")
        for person in (alice, *others[:2]):
            await person.server.wait_for(said)

    tell(servers, story)


def test_rooms_that_are_closed_to_other_servers(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol = await world.person("alice"), await world.person("bob", TWO), await world.person("carol")
        room = await alice.create_room(creation_content={"m.federate": False})
        body = await refused(alice.invite(room, bob))
        assert "closed to other servers" in body["error"]
        closed = {"preset": "private_chat", "creation_content": {"m.federate": False}, "invite": [bob.user_id]}
        body = await refused(alice.client("POST", "/createRoom", closed))
        assert "closed to other servers" in body["error"]
        await refused(alice.put_state(room, "m.room.member", {"membership": "invite"}, bob.user_id))
        await alice.invite(room, carol)
        assert await alice.statuses(room) == {"carol": "pending"}
        assert not world.servers.network.requests(TWO, "/invite/")

    tell(servers, story)


def in_order(invitation: JsonObject) -> tuple[int, str]:
    return invitation["invited_at"], invitation["user_id"]


def test_who_joins_later_through_another_server_knows_all_invitations(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol, dave, eve = [
            await world.person(name, server)
            for name, server in (("alice", ONE), ("bob", TWO), ("carol", THREE), ("dave", TWO), ("eve", THREE))
        ]
        room = await alice.create_room(invite=[person.user_id for person in (bob, carol, dave, eve)])
        await dave.leave(room, reason="not me")
        await becomes(alice, room, {"bob": "pending", "carol": "pending", "dave": "rejected", "eve": "pending"})
        await alice.revoke(room, eve, reason="nor you")
        await carol.join(room)
        expected = {"bob": "pending", "carol": "accepted", "dave": "rejected", "eve": "revoked"}
        await becomes(alice, room, expected)
        assert await carol.statuses(room) == expected
        ours, theirs = await alice.invitations(room), await carol.invitations(room)
        for invitation in (*ours, *theirs):
            del invitation["is_remote"]
        # Who was invited within the same millisecond may come in another order.
        assert sorted(ours, key=in_order) == sorted(theirs, key=in_order)
        # It leaves, things go on without it, and it comes back.
        await carol.leave(room)
        await alice.sees(room, carol, "leave")
        await bob.join(room)
        await becomes(alice, room, {**expected, "bob": "accepted"})
        await alice.invite(room, carol)
        await alice.invite(room, eve)
        await carol.sees_invitation(room)
        await carol.join(room)
        expected = {"bob": "accepted", "carol": "accepted", "dave": "rejected", "eve": "pending"}
        await becomes(alice, room, expected)
        assert await carol.statuses(room) == expected

    tell(servers, story)


def test_branches_that_meet(servers: Servers) -> None:
    """One server revokes an invitation while the invited user, on another, accepts it: both end with the same list."""

    async def story(world: World) -> None:
        alice, bob, carol = (
            await world.person("alice"),
            await world.person("bob", TWO),
            await world.person("carol", TWO),
        )
        room = await world.room_of(alice, carol)
        await alice.put_state(room, "m.room.join_rules", {"join_rule": "invite"})
        await alice.invite(room, bob)
        await becomes(carol, room, {"bob": "pending"})
        world.servers.network.split(ONE, TWO)
        await alice.revoke(room, bob)
        await bob.join(room)
        assert (await alice.statuses(room), await bob.statuses(room)) == ({"bob": "revoked"}, {"bob": "accepted"})
        world.servers.network.heal(ONE, TWO)
        await alice.send(room, "hello?")
        await carol.send(room, "hello?")

        async def settled() -> bool:
            ours, theirs = (await alice.server.head(room)).state, (await carol.server.head(room)).state
            return ours == theirs

        await eventually(settled)
        expected = "accepted" if await alice.membership(room, bob) == "join" else "revoked"
        assert await alice.statuses(room) == await carol.statuses(room) == {"bob": expected}

    tell(servers, story)


def test_a_reason_that_is_redacted_is_gone(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob")
        room = await alice.create_room()
        await alice.invite(room, bob, reason="something unkind")
        event = (await alice.server.head(room)).state["m.room.member", bob.user_id]
        await alice.room("PUT", room, f"redact/{event}/r1", {})
        (invitation,) = await alice.invitations(room)
        assert (invitation["status"], invitation["reason"]) == ("pending", None)

    tell(servers, story)


def test_accepting_and_revoking_at_the_same_moment(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob")
        room = await alice.create_room()
        await alice.invite(room, bob)
        outcomes = await asyncio.gather(bob.join(room), alice.revoke(room, bob), return_exceptions=True)
        joined = await alice.membership(room, bob) == "join"
        assert sum(isinstance(outcome, Exception) for outcome in outcomes) == 1
        assert await alice.statuses(room) == {"bob": "accepted" if joined else "revoked"}

    tell(servers, story)


def test_revoked_by_somebody_else_than_who_invited(servers: Servers) -> None:
    """The invited user's server cannot know who may do that, and asks where the invitation came from."""

    async def story(world: World) -> None:
        alice, carol = await world.person("alice"), await world.person("carol", THREE)
        bob, dave = await world.person("bob", TWO), await world.person("dave", TWO)
        room = await world.room_of(alice, carol)
        await alice.put_state(room, "m.room.join_rules", {"join_rule": "invite"})
        await alice.give(room, carol, "moderator")

        async def carol_knows() -> bool:
            return (await carol.roles(room))["my_role"] == "moderator"

        await eventually(carol_knows)
        for other in (bob, dave):
            await alice.invite(room, other)
            await other.sees_invitation(room)
            await carol.sees(room, other, "invite")
        world.servers.network.split(THREE, TWO)
        await carol.revoke(room, bob)
        await alice.sees(room, bob, "leave")
        world.servers.network.heal(THREE, TWO)
        await bob.join(await carol.create_room("public_chat"), via=THREE)

        async def bob_is_rid_of_it() -> bool:
            return room not in (await bob.sync()).get("rooms", {}).get("invite", {})

        await eventually(bob_is_rid_of_it)
        assert room in (await dave.sync())["rooms"]["invite"]
        await dave.join(room)

    tell(servers, story)


def test_who_is_not_allowed_to_cannot_revoke_at_the_invited_server(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob", TWO)
        mallory = world.servers.remote("mallory.test:8448")
        room = await alice.create_room("public_chat")
        await alice.invite(room, bob)
        await bob.sees_invitation(room)
        head = await alice.server.head(room)
        invitation = head.state["m.room.member", bob.user_id]
        forged = compose_event(
            EventDraft("m.room.member", "@m:mallory.test:8448", {"membership": "leave"}, bob.user_id),
            head.version,
            room_id=room,
            prev_events=[(invitation, "")],
            auth_events=[(invitation, "")],
            depth=100,
            origin_server_ts=1,
            signer=server_key("mallory.test:8448"),
        )
        await mallory.transaction(TWO, [forged])

        async def was_asked_about() -> bool:
            return bool(world.servers.network.requests(ONE, "make_join"))

        await eventually(was_asked_about)
        await bob.join(room)
        await alice.sees(room, bob, "join")

    tell(servers, story)


def test_taken_back_and_made_again_at_once(servers: Servers) -> None:
    """The news that the first was taken back may come after the second: it is not about that."""

    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob", TWO)
        room = await alice.create_room()
        for _ in range(3):
            await alice.invite(room, bob)
            await alice.revoke(room, bob)
        await alice.invite(room, bob)

        async def has_arrived() -> bool:
            sent = world.servers.network.requests(TWO, "/send/")
            return any(b'"leave"' in request.body for request in sent)

        await eventually(has_arrived)
        await bob.sees_invitation(room)
        await bob.join(room)
        await alice.sees(room, bob, "join")

    tell(servers, story)
