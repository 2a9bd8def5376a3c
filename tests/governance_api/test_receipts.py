from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tests.fakes.servers import Servers, eventually
from tests.governance_api.people import ONE, TWO, Person, World, refused, tell


async def read(person: Person, room: str, event_id: str, thread_id: str | None = None, kind: str = "m.read") -> None:
    body = {} if thread_id is None else {"thread_id": thread_id}
    await person.room("POST", room, f"receipt/{kind}/{quote(event_id)}", body)


async def receipts(person: Person, room: str, event_id: str, **query: Any) -> Any:
    return await person.governed("GET", room, f"events/{quote(event_id)}/receipts", **query)


async def told(person: Person, room: str, event_id: str, expected: set[str]) -> None:
    async def probe() -> bool:
        return set(await person.readers(room, event_id)) == expected

    await eventually(probe)


def in_thread(root: str) -> dict[str, Any]:
    return {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}


def test_who_has_read_up_to_it_or_past_it(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol = await world.person("alice"), await world.person("bob"), await world.person("carol", TWO)
        await bob.client("PUT", f"/profile/{bob.user_id}/displayname", {"displayname": "Bob"})
        room = await world.room_of(alice, bob, carol)
        first, second, third = [await alice.send(room, f"message {number}") for number in range(3)]
        await carol.server.wait_for(third)
        assert await receipts(alice, room, first) == {"receipts": []}
        await read(bob, room, second)
        await read(carol, room, third)
        await told(alice, room, first, {"bob", "carol"})
        await told(alice, room, second, {"bob", "carol"})
        await told(alice, room, third, {"carol"})
        found = {r["user_id"]: r for r in (await receipts(alice, room, first))["receipts"]}
        assert set(found[bob.user_id]) == {"user_id", "display_name", "ts", "thread_id", "is_remote"}
        for person, name, is_remote in ((bob, "Bob", False), (carol, None, True)):
            receipt = found[person.user_id]
            assert (receipt["display_name"], receipt["thread_id"], receipt["is_remote"]) == (name, None, is_remote)
            assert receipt["ts"] > 1_700_000_000_000
        # Its own server and ours say the same of when that was.
        await told(carol, room, third, {"carol"})
        (theirs,) = (await receipts(carol, room, third))["receipts"]
        assert theirs["ts"] == found[carol.user_id]["ts"]
        # Who says something has not read it for that.
        answer = await bob.send(room, "answer")
        assert await alice.readers(room, answer) == []

    tell(servers, story)


def test_private_receipts_are_not_listed_and_never_leave(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol = await world.person("alice"), await world.person("bob"), await world.person("carol", TWO)
        room = await world.room_of(alice, bob, carol)
        message = await alice.send(room)
        await read(bob, room, message, kind="m.read.private")
        await read(bob, room, message, kind="m.fully_read")
        for person in (alice, bob):
            assert await person.readers(room, message) == []
        await read(alice, room, message)
        await carol.server.wait_for(message)
        await told(carol, room, message, {"alice"})
        assert not any(
            b"m.read.private" in s.body or bob.user_id.encode() + b'":{"data' in s.body
            for s in world.servers.network.requests(TWO, "/send/")
        )

    tell(servers, story)


def test_threads(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol, dave, eve = [
            await world.person(name, server)
            for name, server in (("alice", ONE), ("bob", ONE), ("carol", TWO), ("dave", ONE), ("eve", ONE))
        ]
        room = await world.room_of(alice, bob, carol, dave, eve)
        root, other = await alice.send(room, "root"), await alice.send(room, "other")
        reply = await alice.send(room, "reply", **in_thread(root))
        last = await alice.send(room, "last in main")
        last_reply = await alice.send(room, "last reply", **in_thread(root))
        await carol.server.wait_for(last_reply)
        await read(bob, room, last, "main")
        await read(carol, room, last_reply, root)
        await read(dave, room, last_reply)
        await told(alice, room, reply, {"carol", "dave"})
        await told(alice, room, last_reply, {"carol", "dave"})
        await told(alice, room, other, {"bob", "dave"})
        await told(alice, room, root, {"bob", "carol", "dave"})
        threads = {r["user_id"]: r["thread_id"] for r in (await receipts(alice, room, root))["receipts"]}
        assert threads == {bob.user_id: "main", carol.user_id: root, dave.user_id: None}
        # Several devices and threads of one user: listed once, with the earliest time.
        (early,) = [r for r in (await receipts(alice, room, root))["receipts"] if r["user_id"] == bob.user_id]
        await read(bob, room, last_reply)
        await read(bob, room, last_reply, root)
        (again,) = [r for r in (await receipts(alice, room, root))["receipts"] if r["user_id"] == bob.user_id]
        assert again == early

    tell(servers, story)


def test_a_late_join_shows_nothing_false(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol = await world.person("alice"), await world.person("bob"), await world.person("carol", TWO)
        room = await world.room_of(alice, bob)
        early = await alice.send(room, "early")
        await read(bob, room, early)
        # A change of the profile is no late join.
        await bob.client("PUT", f"/profile/{bob.user_id}/displayname", {"displayname": "Bob"})
        await carol.join(room)
        await alice.sees(room, carol, "join")
        late = await alice.send(room, "late")
        await carol.server.wait_for(late)
        await read(carol, room, late)
        await read(bob, room, late)
        await told(alice, room, late, {"bob", "carol"})
        assert await alice.readers(room, early) == ["bob"]
        # It has been there before: what it has read then stays read, and what it missed is not.
        await bob.leave(room)
        missed = await alice.send(room, "missed")
        await bob.join(room)
        seen = await alice.send(room, "seen")
        await read(bob, room, seen)
        assert set(await alice.readers(room, early)) == {"bob"}
        assert await alice.readers(room, missed) == []
        assert await alice.readers(room, seen) == ["bob"]
        # Whoever names an event has read it, however late.
        dave = await world.person("dave")
        await dave.join(room)
        await read(dave, room, early)
        assert set(await alice.readers(room, early)) == {"bob", "dave"}
        # The server that came late knows what it was sent, and nothing else.
        page = await carol.room("GET", room, "messages", dir="b", limit=100)
        assert early in [event["event_id"] for event in page["chunk"]]
        assert carol.user_id not in str(await receipts(carol, room, early))

    tell(servers, story)


def test_who_may_ask_about_what(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob")
        history = {"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}}
        room = await alice.create_room("public_chat", initial_state=[history])
        other = await alice.create_room("public_chat")
        before = await alice.send(room, "before")
        await bob.join(room)
        await refused(receipts(bob, room, before), 404, "M_NOT_FOUND")
        await refused(receipts(bob, room, await alice.send(other)), 404, "M_NOT_FOUND")
        await refused(receipts(bob, room, "$nothing"), 404, "M_NOT_FOUND")
        await refused(receipts(bob, room, "$" + "x" * 300), 404, "M_NOT_FOUND")
        assert await alice.readers(room, before) == []
        await bob.leave(room)
        await refused(receipts(bob, room, before))

    tell(servers, story)


def test_pages(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, *others = [await world.person(name) for name in ("alice", "bob", "carol", "dave", "eve", "frank")]
        room = await world.room_of(alice, *others)
        message = await alice.send(room)
        for other in others:
            await read(other, room, message)
        whole = await receipts(alice, room, message)
        assert [r["user_id"] for r in whole["receipts"]] == [other.user_id for other in reversed(others)]
        seen: list[Any] = []
        query: dict[str, Any] = {}
        for _ in range(3):
            page = await receipts(alice, room, message, limit=2, **query)
            seen += page["receipts"]
            query = {"from_": page.get("next", "")}
        # By user ID: a place among the latest does not stay.
        assert seen == sorted(whole["receipts"], key=lambda receipt: receipt["user_id"])
        assert "next" not in page
        for query in ({"limit": 0}, {"limit": "x"}, {"from_": "?"}, {"from_": "WzFd"}):
            await refused(receipts(alice, room, message, **query), 400, "M_INVALID_PARAM")

    tell(servers, story)


def test_the_administrators_switch(servers: Servers) -> None:
    """Nothing is sent, taken in or shown; clients are answered as always."""

    async def story(world: World) -> None:
        await world.server(TWO, read_receipts={"enabled": False})
        alice, bob, carol = (
            await world.person("alice"),
            await world.person("bob", TWO),
            await world.person("carol", TWO),
        )
        room = await world.room_of(alice, bob, carol)
        message = await alice.send(room)
        await bob.server.wait_for(message)
        await read(bob, room, message)
        await read(bob, room, message, kind="m.read.private")
        await read(bob, room, message, kind="m.fully_read")
        await read(alice, room, message)
        await told(alice, room, message, {"alice"})
        body = await refused(receipts(bob, room, message))
        assert "switched off" in body["error"]
        answer = await bob.send(room, "this comes after the receipt")
        await alice.server.wait_for(answer)
        assert await alice.readers(room, message) == ["alice"]
        for person in (bob, carol):
            shown = (await person.sync())["rooms"]["join"][room].get("ephemeral", {}).get("events", [])
            assert not [event for event in shown if event["type"] == "m.receipt"]

    tell(servers, story)


def test_typing_shows_and_clears_across_servers(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob = await world.person("alice"), await world.person("bob", TWO)
        room = await world.room_of(alice, bob)

        async def typing() -> list[str]:
            events = (await bob.sync())["rooms"]["join"][room].get("ephemeral", {}).get("events", [])
            return next((e["content"]["user_ids"] for e in events if e["type"] == "m.typing"), [])

        async def alice_types() -> bool:
            return await typing() == [alice.user_id]

        async def nobody_types() -> bool:
            return await typing() == []

        async def types(**body: Any) -> None:
            await alice.room("PUT", room, f"typing/{alice.user_id}", body)

        await types(typing=True, timeout=60_000)
        await eventually(alice_types)
        await types(typing=False)
        await eventually(nobody_types)
        await types(typing=True, timeout=60_000)
        await eventually(alice_types)
        await types(typing=True, timeout=100)  # it is the last word that counts; nobody says that it is over
        await eventually(nobody_types)

    tell(servers, story)
