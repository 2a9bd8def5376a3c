"""Owners of two servers change roles at the same moment: no change is lost, unless it is about the same user."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from homeserver.graph.send import Sender
from homeserver.membership.lost_role_changes import ROUNDS_MAX, LostRoleChanges
from homeserver.protocol.events import EventDraft
from homeserver.protocol.json_types import JsonObject
from tests.fakes.servers import Servers, eventually
from tests.governance_api.people import ONE, TWO, Person, World, tell


@contextmanager
def unaware(world: World) -> Iterator[None]:
    """Neither server hears of what the other does in the meantime."""
    network = world.servers.network
    held = [network.hold(ONE, TWO), network.hold(TWO, ONE)]
    try:
        yield
    finally:
        for direction in held:
            direction.set()


async def two_owners(world: World, version: str = "11") -> tuple[Person, Person, Person, Person, str]:
    """Alice and Carol on one server, Bob and Dave on the other; Alice has made the room, and Bob an owner."""
    alice, carol = await world.person("alice"), await world.person("carol")
    bob, dave = await world.person("bob", TWO), await world.person("dave", TWO)
    room = await world.room_of(alice, bob, carol, dave, room_version=version)
    for other in (carol, dave):
        await bob.sees(room, other, "join")
    await alice.give(room, bob, "owner")
    await agree(room, (alice, bob), {bob: 100})
    return alice, bob, carol, dave, room


async def agree(room: str, people: tuple[Person, ...], expected: dict[Person, int]) -> None:
    """The servers of these people come to have these levels, all of them by the same event."""

    async def probe() -> bool:
        heads = [await person.server.head(room) for person in people]
        if len({head.state["m.room.power_levels", ""] for head in heads}) > 1:
            return False
        users = (await people[0].levels(room))["users"]
        return all(users.get(person.user_id) == level for person, level in expected.items())

    await eventually(probe)


async def settled(room: str, *people: Person) -> None:
    """What the servers of these people have to say to each other about roles has been said."""
    for _ in range(2):
        for speaker in people:
            await speaker.server.get(LostRoleChanges).idle()
            said = await speaker.send(room)
            for listener in people:
                await listener.server.wait_for(said)


async def changes(person: Person, room: str) -> list[JsonObject]:
    """The power levels events of a room since Bob became an owner, oldest first."""
    found = await person.room("GET", room, "messages", dir="b", limit=200)
    levels = [event for event in reversed(found["chunk"]) if event["type"] == "m.room.power_levels"]
    return [event for event in levels if f"@bob:{TWO}" in event["content"]["users"]][1:]


def ids(found: list[JsonObject]) -> set[str]:
    return {event["event_id"] for event in found}


async def in_order(first: bool, one: Awaitable[Any], other: Awaitable[Any]) -> None:
    for act in (one, other) if first else (other, one):
        await act


ALICE_FIRST = pytest.mark.parametrize("alice_first", [True, False], ids=["alice first", "bob first"])


@pytest.mark.parametrize("version", ["1", "11", "12"])
@ALICE_FIRST
def test_both_changes_hold(servers: Servers, version: str, alice_first: bool) -> None:
    async def story(world: World) -> None:
        alice, bob, carol, dave, room = await two_owners(world, version)
        with unaware(world):
            await in_order(alice_first, alice.give(room, carol, "moderator"), bob.give(room, dave, "moderator"))
        await agree(room, (alice, bob), {bob: 100, carol: 50, dave: 50})
        await settled(room, alice, bob)
        await agree(room, (alice, bob), {bob: 100, carol: 50, dave: 50})
        # The two, and once more the one that was lost.
        made = await changes(alice, room)
        assert len(made) == 3
        assert {event["sender"] for event in made} == {alice.user_id, bob.user_id}
        assert ids(made) == ids(await changes(bob, room))

    tell(servers, story)


@ALICE_FIRST
def test_about_the_same_user_the_winner_holds(servers: Servers, alice_first: bool) -> None:
    async def story(world: World) -> None:
        alice, bob, carol, dave, room = await two_owners(world)
        levels = await alice.levels(room)

        def with_users(users: dict[Person, int]) -> JsonObject:
            named = {person.user_id: level for person, level in users.items()}
            return {**levels, "users": {**levels["users"], **named}}

        with unaware(world):
            await in_order(
                alice_first,
                alice.put_state(room, "m.room.power_levels", with_users({carol: 50, dave: 50})),
                bob.put_state(room, "m.room.power_levels", with_users({carol: 60})),
            )
        await agree(room, (alice, bob), {bob: 100, dave: 50})
        await settled(room, alice, bob)
        made = await changes(alice, room)
        # Of two equals the later one holds; of the same moment, the one with the greater ID.
        winner = max(made[:2], key=lambda event: (event["origin_server_ts"], event["event_id"]))
        alice_won = winner["sender"] == alice.user_id
        await agree(room, (alice, bob), {bob: 100, carol: 50 if alice_won else 60, dave: 50})
        assert [event["sender"] for event in made[2:]] == ([] if alice_won else [alice.user_id])
        assert ids(made) == ids(await changes(bob, room))

    tell(servers, story)


def test_an_owner_whom_the_other_cannot_lower_wins(servers: Servers) -> None:
    """Alice's event would take from Dave what Bob gave him: by Matrix's own rules it cannot come after Bob's."""

    async def story(world: World) -> None:
        alice, bob, carol, dave, room = await two_owners(world)
        with unaware(world):
            await bob.give(room, dave, "owner")
            await alice.give(room, carol, "moderator")
        await agree(room, (alice, bob), {bob: 100, carol: 50, dave: 100})
        await settled(room, alice, bob)
        await agree(room, (alice, bob), {bob: 100, carol: 50, dave: 100})
        assert [event["sender"] for event in await changes(alice, room)].count(alice.user_id) == 2

    tell(servers, story)


def test_the_same_change_is_made_once(servers: Servers) -> None:
    async def story(world: World) -> None:
        alice, bob, carol, _, room = await two_owners(world)
        with unaware(world):
            await alice.give(room, carol, "moderator")
            await bob.give(room, carol, "moderator")
        await settled(room, alice, bob)
        await agree(room, (alice, bob), {bob: 100, carol: 50})
        assert len(await changes(alice, room)) == len(await changes(bob, room)) == 2

    tell(servers, story)


def test_several_changes_of_several_owners_come_back_in_their_order(servers: Servers) -> None:
    """Carol became an owner by a change that is lost, and acts as one in another."""

    async def story(world: World) -> None:
        alice, bob, carol, dave, room = await two_owners(world)
        with unaware(world):
            await alice.give(room, carol, "owner")
            await carol.give(room, dave, "moderator")
            await alice.give(room, alice, "member", confirm=True)
            await bob.give(room, bob, "moderator", confirm=True)
        expected = {alice: 0, bob: 50, carol: 100, dave: 50}
        await agree(room, (alice, bob), expected)
        await settled(room, alice, bob)
        await agree(room, (alice, bob), expected)

    tell(servers, story)


@ALICE_FIRST
def test_the_last_two_owners_cannot_both_give_it_up(servers: Servers, alice_first: bool) -> None:
    """Made again, the change that was lost would leave the room without an owner: it stays lost."""

    async def story(world: World) -> None:
        alice, bob, _, _, room = await two_owners(world)
        with unaware(world):
            await in_order(
                alice_first,
                alice.give(room, alice, "member", confirm=True),
                bob.give(room, bob, "member", confirm=True),
            )
        await settled(room, alice, bob)
        for person in (alice, bob):
            owners = (await person.roles(room))["owners"]
            assert len(owners) == 1
            assert "ownerless" not in await person.roles(room)
        assert len(await changes(alice, room)) == 2

    tell(servers, story)


def test_who_is_no_owner_any_more_loses(servers: Servers) -> None:
    """As another server's creator of a room of version 12 may do, Alice lowers Bob, who acts at the same moment."""

    async def story(world: World) -> None:
        alice, bob, _, dave, room = await two_owners(world, "12")
        levels = await alice.levels(room)
        lowered = {**levels, "users": {**levels["users"], bob.user_id: 0}}
        with capture_logs() as logs:
            with unaware(world):
                await bob.give(room, dave, "moderator")
                draft = EventDraft("m.room.power_levels", alice.user_id, lowered, "")
                await alice.server.get(Sender).send(room, draft, is_governed=False)
            await agree(room, (alice, bob), {bob: 0})
            await settled(room, alice, bob)
        await agree(room, (alice, bob), {bob: 0})
        assert (await bob.levels(room)) == lowered
        assert [log["sender"] for log in logs if log["event"] == "lost role change stays lost"] == [bob.user_id]
        assert [log for log in logs if log["log_level"] in ("warning", "error")] == []
        assert [event["sender"] for event in await changes(bob, room)].count(bob.user_id) == 1

    tell(servers, story)


def test_what_is_lost_again_is_made_again_a_few_times(servers: Servers) -> None:
    """Bob hears nothing of Alice's change while he goes on; she hears of each of his."""

    async def story(world: World) -> None:
        alice, bob, carol, dave, room = await two_owners(world)
        to_bob = world.servers.network.hold(ONE, TWO)
        try:
            await alice.give(room, carol, "moderator")
            for number in range(ROUNDS_MAX + 2):
                made = await bob.give(room, dave, ("moderator", "member")[number % 2])
                assert made is not None
                await alice.server.wait_for(made)
                await alice.server.get(LostRoleChanges).idle()
        finally:
            to_bob.set()
        await settled(room, alice, bob)
        made_by = [event["sender"] for event in await changes(bob, room)]
        assert made_by.count(bob.user_id) == ROUNDS_MAX + 2
        assert made_by.count(alice.user_id) == 1 + ROUNDS_MAX
        await agree(room, (alice, bob), {bob: 100, dave: 50})
        assert carol.user_id not in (await bob.levels(room))["users"]

    tell(servers, story)
