"""homeserver/reading/state_chains.py: what is found from the state before is what is found from nothing."""

from __future__ import annotations

import asyncio
import random

from homeserver.protocol.events import EventDraft
from homeserver.reading.state_chains import StateChains
from homeserver.storage import federation_queries
from homeserver.storage.database import Database
from homeserver.storage.federation_queries import event_ids_in_order
from tests.fakes.homeserver import ALICE, BOB, CAROL, DAVE, CoreServer, add_users


def test_chains_of_states_in_any_order(shared_database: Database) -> None:
    add_users(shared_database, ALICE, BOB, CAROL, DAVE)
    chosen = random.Random(5)

    async def story() -> None:
        server = CoreServer(shared_database)
        room_id = await server.create_room(preset="public_chat")
        snapshots = []
        for number in range(40):
            user = chosen.choice([BOB, CAROL, DAVE])
            head = await server.heads.get(room_id)
            match chosen.randrange(5):
                case 0:
                    await server.set_state(room_id, "m.room.topic", {"topic": str(number)})
                case 1 if user in head.joined:
                    await server.memberships.leave(user, room_id)
                case 2:
                    levels = {"users": {ALICE: 100, user: number}}
                    await server.set_state(room_id, "m.room.power_levels", levels)
                case _:
                    name = {"membership": "join", "displayname": str(number)}
                    await server.sender.send(room_id, EventDraft("m.room.member", user, name, user))
            snapshots.append((await server.heads.get(room_id)).snapshot)
        room_nid = (await server.heads.get(room_id)).room_nid
        chosen.shuffle(snapshots)
        chains = StateChains(shared_database)
        for snapshot in (*snapshots, *snapshots[:3]):
            found = await chains.of_state(room_nid, snapshot, "$event")
            nids = await shared_database.read(federation_queries.auth_chain_of, room_nid, list(snapshot.state.values()))
            assert list(found) == await shared_database.read(event_ids_in_order, nids)

    asyncio.run(story())


def test_equal_questions_at_the_same_time_are_asked_once(shared_database: Database) -> None:
    add_users(shared_database, ALICE)

    async def story() -> None:
        server = CoreServer(shared_database)
        room_id = await server.create_room()
        head = await server.heads.get(room_id)
        chains = StateChains(shared_database)
        reads = 0
        read = shared_database.read

        async def counted(*args: object) -> object:
            nonlocal reads
            reads += 1
            return await read(*args)  # type: ignore[arg-type]

        shared_database.read = counted  # type: ignore[method-assign, assignment]
        try:
            questions = [chains.of_state(head.room_nid, head.snapshot, "$event") for _ in range(20)]
            first, *others = await asyncio.gather(*questions)
        finally:
            del shared_database.read
        assert reads == 1
        assert all(other is first for other in others)

    asyncio.run(story())


def test_the_state_before_a_state_event_is_remembered(shared_database: Database) -> None:
    """It has no state group of its own; servers that have missed joins ask for just these states."""
    add_users(shared_database, ALICE, BOB)

    async def story() -> None:
        server = CoreServer(shared_database)
        room_id = await server.create_room(preset="public_chat")
        await server.memberships.join(BOB, room_id)
        topic = await server.set_state(room_id, "m.room.topic", {"topic": "new"})
        join = (await server.heads.get(room_id)).state["m.room.member", BOB]
        joined = await server.events.get(room_id, join)
        assert joined is not None
        chains = StateChains(shared_database)
        first = {}
        for _ in range(2):
            for stored in (topic, joined):
                before = await server.states.before(stored)
                assert before.group is None
                found = await chains.of_state(stored.room_nid, before, stored.event_id)
                assert first.setdefault(stored.event_id, found) is found

    asyncio.run(story())
