"""Servers that cannot reach each other for a while, and what they agree on afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.interop.cable import Cable
from tests.interop.client import MatrixClient
from tests.interop.conftest import Connect, Fleet, Pair
from tests.interop.rooms import ARRIVE_SECONDS_MAX, everything_arrives, room_of, talk_both_ways
from tests.interop.servers import OurServer, Server, SynapseServer, free_port

pytestmark = pytest.mark.anyio


async def test_messages_wait_for_a_server_that_is_down(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await room_of(alice, bob)
    pair.away.kill()
    sent = [f"while you were away {number}" for number in range(70)]  # more than fit into one transaction
    for text in sent:
        await alice.send(room_id, text)
    pair.away.start()
    await bob.until(lambda: sent[-1] in bob.bodies(room_id), ARRIVE_SECONDS_MAX)
    assert [text for text in await bob.message_bodies(room_id) if text in sent] == sent


async def test_messages_are_owed_across_a_restart(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    """The sender is killed as well before the other is back."""
    room_id = await room_of(alice, bob)
    pair.away.kill()
    sent = [f"owed {number}" for number in range(5)]
    for text in sent:
        await alice.send(room_id, text)
    pair.home.kill()
    pair.home.start()
    pair.away.start()
    if pair.home.kind != "ours":  # Synapse waits for the next event
        await alice.send(room_id, "and now?")
    await bob.until(lambda: sent[-1] in bob.bodies(room_id), ARRIVE_SECONDS_MAX)
    assert [text for text in await bob.message_bodies(room_id) if text in sent] == sent


@pytest.mark.parametrize("kinds", ["ours ours ours", "ours synapse ours", "ours ours synapse", "synapse ours ours"])
async def test_split_and_healed(kinds: str, fleet: Fleet, connect: Connect) -> None:
    """The third server is cut off; both sides talk and change the same state; they end with the same room."""
    async with island(fleet, kinds) as (servers, cables):
        alice, bob, carol = [
            await connect(server, name) for server, name in zip(servers, ("alice", "bob", "carol"), strict=True)
        ]
        everybody = (alice, bob, carol)
        room_id = await room_of(alice, bob, carol, name="Before", preset="trusted_private_chat", room_version="11")
        for client in everybody:
            await client.until(lambda client=client: client.room(room_id).content("m.room.name") == {"name": "Before"})
        levels = alice.room(room_id).content("m.room.power_levels")
        levels = {**levels, "users": {client.user_id: 100 for client in everybody}}
        await alice.set_state(room_id, "m.room.power_levels", levels)
        for client in everybody:
            await client.until(
                lambda client=client: client.room(room_id).content("m.room.power_levels")["users"] == levels["users"]
            )

        cables[2].pull()
        cables[0].pull(servers[2].pid)
        cables[1].pull(servers[2].pid)
        await talk_both_ways(alice, bob, room_id)
        sent = {f"{client.user_id} in the split {number}" for client in everybody for number in range(15)}
        for number in range(15):
            for client in everybody:
                await client.send(room_id, f"{client.user_id} in the split {number}")
        await alice.set_state(room_id, "m.room.topic", {"topic": "of alice"})
        await carol.set_state(room_id, "m.room.topic", {"topic": "of carol"})
        await carol.set_state(room_id, "m.room.name", {"name": "Of carol"})
        await bob.set_state(room_id, "org.example.note", {"note": "of bob"})
        await carol.set_state(room_id, "m.room.power_levels", {**levels, "kick": 60})
        assert not any(carol.user_id in text for text in alice.bodies(room_id))

        for cable in cables:
            cable.plug_in()
        for client in everybody:  # whose server waits before it tries again hears that the other is there
            text = f"{client.user_id} after the split"
            await client.send(room_id, text)
            sent.add(text)
        for client in everybody:
            await everything_arrives(client, room_id, sent)
        await converge(everybody, room_id)
        assert (await bob.state(room_id))["m.room.name", ""]["content"] == {"name": "Of carol"}
        await alice.send(room_id, "we are one")
        for client in everybody:
            await client.until(lambda client=client: "we are one" in client.bodies(room_id))
        for server in servers:
            if isinstance(server, OurServer):
                facts = json.loads(server.command_line("rooms", "show", room_id, "--json"))
                assert facts["forward_extremities"] == 1
                server.command_line("db", "check")


@asynccontextmanager
async def island(fleet: Fleet, kinds: str) -> AsyncIterator[tuple[list[Server], list[Cable]]]:
    """Servers of these kinds that reach each other through cables."""
    async with AsyncExitStack() as stack:
        servers: list[Server] = []
        cables: list[Cable] = []
        for number, kind in enumerate(kinds.split()):
            cable = Cable(free_port())
            name = f"{kinds.replace(' ', '-')}-{number}"
            make = SynapseServer if kind == "synapse" else OurServer
            server = make(name, fleet.directory, fleet.authority, federation_port=cable.port)
            fleet.servers[name] = server
            stack.callback(server.kill)
            cables.append(await stack.enter_async_context(cable.to(server)))
            await asyncio.to_thread(server.start)
            servers.append(server)
        yield servers, cables


async def converge(clients: tuple[MatrixClient, ...], room_id: str) -> None:
    """All servers come to the same state."""
    try:
        async with asyncio.timeout(ARRIVE_SECONDS_MAX):
            while True:
                states = [await state_ids(client, room_id) for client in clients]
                if all(state == states[0] for state in states):
                    return
                await asyncio.gather(*(client.sync(timeout_ms=1_000) for client in clients))
    except TimeoutError:
        states = [await state_ids(client, room_id) for client in clients]
        keys = {key for state in states for key in state}
        different = {key: [state.get(key) for state in states] for key in keys}
        different = {key: ids for key, ids in different.items() if len(set(ids)) > 1}
        raise AssertionError(f"the servers do not agree on {different}") from None


async def state_ids(client: MatrixClient, room_id: str) -> dict[tuple[str, str], str]:
    """The current state as event IDs."""
    return {key: event["event_id"] for key, event in (await client.state(room_id)).items()}
