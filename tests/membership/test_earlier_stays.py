"""homeserver/membership/earlier_stays.py: who leaves a room and comes back is known to have left, everywhere."""

from __future__ import annotations

import asyncio

import httpx

from homeserver.federation.delivery import Delivery
from homeserver.membership.membership import Memberships
from tests.fakes.network import Sent
from tests.fakes.servers import Servers, eventually

ONE, TWO, THREE = "one.test:8448", "two.test:8448", "three.test:8448"


def test_a_join_follows_the_departure_that_its_server_had_not_got(servers: Servers) -> None:
    """The departure waits in the queue of a server that was out of reach, and the user comes back through it."""

    async def story() -> None:
        async with servers:
            one, two = await servers.ours(ONE), await servers.ours(TWO)
            ann, ben = await one.user("ann"), await two.user("ben")
            room_id = await two.room(ben)
            await one.join(ann, room_id, TWO)
            servers.network.split(ONE, TWO)
            await one.get(Memberships).leave(ann, room_id)
            departure = (await one.head(room_id)).state["m.room.member", ann]

            async def tried() -> bool:
                return bool(servers.network.requests(TWO, "/send/"))

            await eventually(tried)
            servers.network.heal(ONE, TWO)
            await one.join(ann, room_id, TWO)
            join = (await one.head(room_id)).state["m.room.member", ann]
            assert join != departure
            there = [await two.event(departure), await two.event(join)]
            assert None not in there
            assert there[0].stream_position < there[1].stream_position
            assert {e.event_id for e in (await two.head(room_id)).extremities} == {join}
            assert await two.membership(room_id, ann) == "join"

    asyncio.run(story())


def test_what_was_never_sent_of_an_earlier_stay_is_not_lost(servers: Servers) -> None:
    """What happened last in the earlier stay is known here alone when the room is imported, and no event leads to it.

    It is not among the forward extremities then. It still waits to be sent, and comes back with what follows it there.
    """

    async def story() -> None:
        async with servers:
            one, two = await servers.ours(ONE), await servers.ours(TWO)
            ann, ben = await one.user("ann"), await two.user("ben")
            room_id = await two.room(ben, power_levels={"users": {ben: 100, ann: 50}})
            await one.join(ann, room_id, TWO)
            network = servers.network

            def lose_transactions(sent: Sent) -> Sent:
                if sent.source == ONE and "/send/" in sent.path:
                    raise httpx.ConnectError("lost")
                return sent

            network.tamper = lose_transactions
            topic = await one.send_state(ann, room_id, "m.room.topic", {"topic": "said on my way out"})
            message = await one.send(ann, room_id, "goodbye")
            await one.get(Memberships).leave(ann, room_id)
            departure = (await one.head(room_id)).state["m.room.member", ann]
            await one.join(ann, room_id, TWO)
            head = await one.head(room_id)
            join = head.state["m.room.member", ann]
            assert {extremity.event_id for extremity in head.extremities} == {join}
            assert ("m.room.topic", "") not in head.state, "the state is what the other server has"
            network.tamper = lambda sent: sent
            await one.send(ann, room_id, "and back again")
            one.get(Delivery).sign_of_life(TWO)
            for event_id in (topic, message, departure):
                assert (await two.wait_for(event_id)).visible
            assert await two.membership(room_id, ann) == "join"
            assert (await two.head(room_id)).state["m.room.topic", ""] == topic
            merging = await two.send(ben, room_id, "what was that?")
            await one.wait_for(merging)
            states = [dict((await server.head(room_id)).state) for server in (one, two)]
            assert states[0] == states[1]
            assert states[0]["m.room.topic", ""] == topic
            assert states[0]["m.room.member", ann] == join

    asyncio.run(story())


def test_a_server_that_has_left_still_shows_what_its_departure_follows(servers: Servers) -> None:
    """A message reached only the server whose last user then left: nobody else can show it to the others."""

    async def story() -> None:
        async with servers:
            one, two, three = [await servers.ours(name) for name in (ONE, TWO, THREE)]
            ann, ben, cleo = await one.user("ann"), await two.user("ben"), await three.user("cleo")
            room_id = await two.room(ben)
            await one.join(ann, room_id, TWO)
            await three.join(cleo, room_id, TWO)
            await one.wait_for((await three.head(room_id)).state["m.room.member", cleo])
            servers.network.split(TWO, THREE)
            message = await three.send(cleo, room_id)
            await one.wait_for(message)
            await one.get(Memberships).leave(ann, room_id)
            departure = (await one.head(room_id)).state["m.room.member", ann]
            await two.wait_for(departure)
            assert await two.event(message) is not None
            assert await two.membership(room_id, ann) == "leave"

    asyncio.run(story())


def test_a_server_that_was_not_in_the_room_is_told_nothing(servers: Servers) -> None:
    """Anybody can invite a user to a room that he knows by name only: that he says so makes nobody a member."""

    async def story() -> None:
        async with servers:
            one, two, stranger = await servers.ours(ONE), await servers.ours(TWO), await servers.ours(THREE)
            ann, ben = await one.user("ann"), await two.user("ben")
            room_id = await two.room(ben)
            await one.join(ann, room_id, TWO)
            await one.get(Memberships).leave(ann, room_id)
            servers.network.sent.clear()
            await one.join(ann, room_id, THREE, TWO)
            assert servers.network.requests(THREE, "make_join")
            assert not servers.network.requests(THREE, "/send/")
            assert await stranger.event((await one.head(room_id)).state["m.room.member", ann]) is None

    asyncio.run(story())


def test_a_server_that_came_back_meanwhile_is_told(servers: Servers) -> None:
    """Nobody has told us that it is in the room again, but it still has our user in it."""

    async def story() -> None:
        async with servers:
            one, two, three = [await servers.ours(name) for name in (ONE, TWO, THREE)]
            ann, ben, cleo = await one.user("ann"), await two.user("ben"), await three.user("cleo")
            room_id = await two.room(ben)
            await one.join(ann, room_id, TWO)
            await three.join(cleo, room_id, TWO)
            join = (await three.head(room_id)).state["m.room.member", cleo]
            await one.wait_for(join)
            await three.get(Memberships).leave(cleo, room_id)
            await one.wait_for((await three.head(room_id)).state["m.room.member", cleo])
            servers.network.split(ONE, TWO)
            servers.network.split(ONE, THREE)
            await three.join(cleo, room_id, TWO)
            await one.get(Memberships).leave(ann, room_id)
            departure = (await one.head(room_id)).state["m.room.member", ann]
            servers.network.heal(ONE, THREE)
            await one.join(ann, room_id, THREE)
            assert await three.event(departure) is not None
            join = (await one.head(room_id)).state["m.room.member", ann]
            assert {e.event_id for e in (await three.head(room_id)).extremities} == {join}
            assert await three.membership(room_id, ann) == "join"

    asyncio.run(story())
