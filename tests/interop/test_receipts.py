"""Receipts and typing, with users on two servers. What our governance API says is asked of ours."""

from __future__ import annotations

import pytest

from tests.interop.client import UNTIL_SECONDS_MAX, MatrixClient, MatrixError
from tests.interop.conftest import Connect, Fleet, Pair
from tests.interop.governance import governed, ours, readers, soon
from tests.interop.rooms import room_of

pytestmark = pytest.mark.anyio

SILENCE_MS = 10_000
"""How long users of other servers go on typing unheard, in the test about that; else it is a minute."""


async def test_receipts_and_typing(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await room_of(alice, bob, room_version="11")
    first = await alice.send(room_id, "first")
    second = await alice.send(room_id, "second")
    await bob.until(lambda: "second" in bob.bodies(room_id))
    await bob.read(room_id, second)
    for client in ours(pair, alice, bob):

        async def who(client: MatrixClient = client) -> list[str]:
            return list(await readers(client, room_id, first))

        await soon(who, [bob.user_id])
    times = [(await readers(client, room_id, second))[bob.user_id] for client in ours(pair, alice, bob)]
    assert len(set(times)) == 1
    await bob.typing(room_id)
    await alice.until(lambda: alice.room(room_id).typing == {bob.user_id})
    await bob.typing(room_id, typing=False)
    await alice.until(lambda: alice.room(room_id).typing == set())


async def test_threads_private_receipts_and_late_joins(
    pair: Pair, alice: MatrixClient, bob: MatrixClient, connect: Connect
) -> None:
    late = await connect(pair.away, "late")
    room_id = await room_of(alice, bob, room_version="11", preset="public_chat")
    root = await alice.send(room_id, "root")
    private = await alice.send(room_id, "read in private")
    reply = await alice.send(room_id, "in the thread", thread_id=root)
    await bob.until(lambda: "in the thread" in bob.bodies(room_id))
    await bob.read(room_id, private, kind="m.read.private")
    await bob.read(room_id, root, thread_id="main")
    await bob.read(room_id, reply, thread_id=root)
    seen = alice.room(room_id).receipts_seen
    expected = {(root, "m.read", bob.user_id, "main"), (reply, "m.read", bob.user_id, root)}
    await alice.until(lambda: expected <= seen)
    await late.join(room_id, via=pair.home.server_name)
    await late.send(room_id, "I have come late")
    await alice.until(lambda: "I have come late" in alice.bodies(room_id))
    for client in ours(pair, alice, bob):

        async def who(event_id: str, client: MatrixClient = client) -> set[tuple[str, str | None]]:
            found = (await governed(client, "GET", room_id, f"events/{event_id}/receipts"))["receipts"]
            return {(receipt["user_id"], receipt["thread_id"]) for receipt in found}

        assert await who(reply) == {(bob.user_id, root)}
        assert await who(root) == {(bob.user_id, "main")}
        assert await who(private) == set()
    assert {receipt for receipt in seen if receipt[2] in (bob.user_id, late.user_id)} == expected


async def test_receipts_that_are_switched_off(fleet: Fleet, connect: Connect) -> None:
    """Our server neither sends them nor takes them in; the other, a real Synapse, and the clients go on as always."""
    with fleet.visiting("without-receipts", settings="[read_receipts]\nenabled = false") as ours_without:
        alice, bob = await connect(ours_without, "alice"), await connect(fleet.running("synapse"), "bob")
        room_id = await room_of(alice, bob, room_version="11")
        for writer, reader in ((alice, bob), (bob, alice)):
            event_id = await writer.send(room_id, f"of {writer.user_id}")
            await reader.until(lambda reader=reader, writer=writer: f"of {writer.user_id}" in reader.bodies(room_id))
            await reader.read(room_id, event_id)
            await reader.typing(room_id)  # goes the way of a receipt, and no faster
            await writer.until(lambda reader=reader, writer=writer: reader.user_id in writer.room(room_id).typing)
            assert [r for r in writer.room(room_id).receipts_seen if r[2] == reader.user_id] == []
        with pytest.raises(MatrixError) as caught:
            await readers(alice, room_id, event_id)
        assert (caught.value.status, caught.value.errcode) == (403, "M_FORBIDDEN")


async def test_typing_ends_when_the_other_server_dies(fleet: Fleet, connect: Connect) -> None:
    """One user on another server of ours and one on a real Synapse type when their servers are killed."""
    others = [fleet.running(name) for name in ("ours2", "synapse")]
    constants = {"homeserver.ephemeral.typing.REMOTE_TIMEOUT_MS": SILENCE_MS}
    with fleet.visiting("hears-no-typing", constants=constants) as home:
        alice, bob, carol = [await connect(server, "typist") for server in (home, *others)]
        room_id = await room_of(alice, bob, carol)
        for typist in (bob, carol):
            await typist.typing(room_id)
            await alice.until(lambda typist=typist: typist.user_id in alice.room(room_id).typing)
        for server in others:
            server.kill()
        try:
            await alice.until(lambda: alice.room(room_id).typing == set(), SILENCE_MS / 1000 + UNTIL_SECONDS_MAX)
        finally:
            for server in others:
                server.start()
