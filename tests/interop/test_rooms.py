"""What happens in a room that two servers share: state, redactions, receipts, typing, profiles, aliases, versions."""

from __future__ import annotations

import pytest

from tests.interop.client import MatrixClient, MatrixError, quoted
from tests.interop.conftest import Pair
from tests.interop.rooms import invited, joined, room_of, talk_both_ways

pytestmark = pytest.mark.anyio

ROOM_VERSIONS = [str(version) for version in range(1, 13)]


@pytest.mark.parametrize("version", ROOM_VERSIONS)
async def test_room_version(version: str, alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await room_of(alice, bob, room_version=version, name=f"Version {version}")
    assert bob.room(room_id).content("m.room.create").get("room_version", "1") == version
    await talk_both_ways(alice, bob, room_id)
    await alice.set_state(room_id, "m.room.topic", {"topic": "versions"})
    await bob.until(lambda: bob.room(room_id).content("m.room.topic") == {"topic": "versions"})
    text = await bob.send(room_id, "to be redacted")
    await alice.until(lambda: "to be redacted" in alice.bodies(room_id))
    await alice.redact(room_id, text)
    await bob.until(lambda: any(event["type"] == "m.room.redaction" for event in bob.room(room_id).timeline))
    assert (await bob.event(room_id, text))["content"] == {}


async def test_state_from_both_sides(alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await room_of(alice, bob, name="Before")
    await bob.until(lambda: bob.room(room_id).content("m.room.name") == {"name": "Before"})
    levels = {**alice.room(room_id).content("m.room.power_levels")}
    levels["users"] = {**levels["users"], bob.user_id: 100}
    await alice.set_state(room_id, "m.room.power_levels", levels)
    await bob.until(lambda: bob.user_id in bob.room(room_id).content("m.room.power_levels")["users"])
    await bob.set_state(room_id, "m.room.name", {"name": "After"})
    await bob.set_state(room_id, "m.room.topic", {"topic": "Of bob"})
    await bob.set_state(room_id, "org.example.thing", {"nested": {"list": [1, "zwei", None, True]}}, "key")
    await alice.until(lambda: alice.room(room_id).content("m.room.topic") == {"topic": "Of bob"})
    await alice.until(lambda: bool(alice.room(room_id).content("org.example.thing", "key")))
    assert alice.room(room_id).content("m.room.name") == {"name": "After"}
    assert state_ids(await alice.state(room_id)) == state_ids(await bob.state(room_id))


async def test_redactions_from_both_sides(alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await room_of(alice, bob)
    mine, yours = await alice.send(room_id, "of alice"), await bob.send(room_id, "of bob")
    await alice.until(lambda: "of bob" in alice.bodies(room_id))
    await bob.until(lambda: "of alice" in bob.bodies(room_id))
    of_alice, of_bob = await alice.redact(room_id, mine), await bob.redact(room_id, yours)
    await bob.until(lambda: of_alice in ids(bob, room_id))
    await alice.until(lambda: of_bob in ids(alice, room_id))
    for client in (alice, bob):
        for redacted, by in ((mine, of_alice), (yours, of_bob)):
            event = await client.event(room_id, redacted)
            assert event["content"] == {}
            assert event["unsigned"]["redacted_because"]["event_id"] == by


async def test_receipts_and_typing(alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await room_of(alice, bob)
    for writer, reader in ((alice, bob), (bob, alice)):
        await writer.typing(room_id)
        await reader.until(lambda reader=reader, writer=writer: writer.user_id in reader.room(room_id).typing)
        event_id = await writer.send(room_id, f"{writer.user_id} has typed")
        await writer.typing(room_id, typing=False)
        await reader.until(lambda reader=reader, writer=writer: writer.user_id not in reader.room(room_id).typing)
        await reader.until(lambda reader=reader, event_id=event_id: event_id in ids(reader, room_id))
        await reader.read(room_id, event_id)
        await writer.until(
            lambda reader=reader, writer=writer, event_id=event_id: (
                writer.room(room_id).receipts.get(reader.user_id) == event_id
            )
        )


async def test_profiles(alice: MatrixClient, bob: MatrixClient) -> None:
    await alice.set_display_name("Alice Doe")
    assert (await bob.profile(alice.user_id))["displayname"] == "Alice Doe"
    room_id = await room_of(alice, bob)
    assert bob.room(room_id).content("m.room.member", alice.user_id)["displayname"] == "Alice Doe"
    await bob.set_display_name("Bob Roe")
    await alice.until(lambda: alice.room(room_id).content("m.room.member", bob.user_id).get("displayname") == "Bob Roe")


async def test_join_by_alias(alice: MatrixClient, bob: MatrixClient) -> None:
    localpart = "lounge-" + alice.user_id.partition(":")[0].removeprefix("@")
    room_id = await alice.create_room(preset="public_chat", room_alias_name=localpart)
    alias = f"#{localpart}:{alice.user_id.partition(':')[2]}"
    found = await bob.call("GET", f"/v3/directory/room/{quoted(alias)}")
    assert found["room_id"] == room_id
    assert await bob.join(alias) == room_id
    await joined(bob, room_id, bob)
    await joined(alice, room_id, bob)
    assert bob.room(room_id).content("m.room.canonical_alias") == {"alias": alias}


async def test_join_public_room_by_id(alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await alice.create_room(preset="public_chat", name="Open to all")
    await alice.send(room_id, "before bob")
    assert await bob.join(room_id, via=alice.user_id.partition(":")[2]) == room_id
    await joined(bob, room_id, bob)
    await joined(alice, room_id, bob)
    assert "before bob" in await bob.message_bodies(room_id)
    await talk_both_ways(alice, bob, room_id)


async def test_restricted_room(alice: MatrixClient, bob: MatrixClient) -> None:
    """Who is in one room may join the other without an invitation."""
    club = await room_of(alice, bob, name="Club")
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": club}]}
    members_only = await alice.create_room(
        preset="private_chat",
        name="Members only",
        initial_state=[{"type": "m.room.join_rules", "state_key": "", "content": rule}],
    )
    await bob.join(members_only, via=alice.user_id.partition(":")[2])
    await joined(bob, members_only, bob)
    await joined(alice, members_only, bob)
    await talk_both_ways(alice, bob, members_only)


async def test_private_room_stays_private(alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await alice.create_room(preset="private_chat")
    with pytest.raises(MatrixError) as refused:
        await bob.join(room_id, via=alice.user_id.partition(":")[2])
    assert refused.value.status in (403, 404)


async def test_messages_arrive_in_order(alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await room_of(alice, bob)
    sent = [f"number {number}" for number in range(120)]
    for text in sent:
        await alice.send(room_id, text)
    await bob.until(lambda: sent[-1] in bob.bodies(room_id))
    assert [text for text in await bob.message_bodies(room_id) if text.startswith("number ")] == sent


async def test_long_history_is_fetched(alice: MatrixClient, bob: MatrixClient) -> None:
    room_id = await alice.create_room(preset="public_chat")
    sent = [f"line {number}" for number in range(150)]
    for text in sent:
        await alice.send(room_id, text)
    await bob.join(room_id, via=alice.user_id.partition(":")[2])
    await joined(bob, room_id, bob)
    assert [text for text in await bob.message_bodies(room_id) if text.startswith("line ")] == sent


async def test_history_that_is_not_for_those_who_join_later(alice: MatrixClient, bob: MatrixClient) -> None:
    hidden = {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "joined"}}
    room_id = await alice.create_room(preset="private_chat", initial_state=[hidden])
    await alice.send(room_id, "a secret")
    await alice.invite(room_id, bob.user_id)
    await invited(bob, room_id)
    await bob.join(room_id)
    await joined(alice, room_id, bob)
    await alice.send(room_id, "for all")
    await bob.until(lambda: "for all" in bob.bodies(room_id))
    seen = await bob.message_bodies(room_id)
    assert "for all" in seen
    assert "a secret" not in seen


async def test_room_with_many_members(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> None:
    members = 200 if pair.home.kind == "ours" else 30  # Synapse takes its time to register somebody
    room_id = await alice.create_room(preset="public_chat", name="Many")
    prefix = alice.user_id.partition(":")[0].removeprefix("@")
    for number in range(members):
        async with MatrixClient(pair.home.base_url) as member:
            await member.register(f"{prefix}-{number}")
            await member.join(room_id)
    await bob.join(room_id, via=alice.user_id.partition(":")[2])
    await joined(alice, room_id, bob)
    await joined(bob, room_id, bob)
    assert len(await bob.joined_members(room_id)) == members + 2
    assert state_ids(await alice.state(room_id)) == state_ids(await bob.state(room_id))
    await talk_both_ways(alice, bob, room_id)


def ids(client: MatrixClient, room_id: str) -> set[str]:
    """The events that ``/sync`` has shown."""
    return {event["event_id"] for event in client.room(room_id).timeline}


def state_ids(state: dict[tuple[str, str], dict[str, object]]) -> dict[tuple[str, str], object]:
    """A state as event IDs, for comparison."""
    return {key: event["event_id"] for key, event in state.items()}
