"""What clients call that were written for other servers, or for older versions of the specification."""

from __future__ import annotations

import pytest

from tests.conformance.catalogue import Scene
from tests.conformance.world import ALICE, BOB, World, fine, path_of


@pytest.fixture(scope="module")
def scene(world: World) -> Scene:
    return Scene(world)


def test_sending_without_a_transaction_id(world: World, scene: Scene) -> None:
    path = f"/rooms/{scene.room}/send/m.room.message"
    first, second = (fine(world.ask("POST", path, {"msgtype": "m.text", "body": "x"}))["event_id"] for _ in range(2))
    assert first != second
    redaction = fine(world.ask("POST", f"/rooms/{scene.room}{path_of('redact', first)}", {"reason": "twice"}))
    again = fine(world.ask("POST", f"/rooms/{scene.room}{path_of('redact', second)}", None))
    assert redaction != again
    event = fine(world.ask("GET", f"/rooms/{scene.room}{path_of('event', first)}"))
    assert event["unsigned"]["redacted_because"]["content"]["reason"] == "twice"
    fine(world.ask("POST", f"/rooms/{scene.room}/send/m.room.redaction", {"redacts": first}))


def test_both_keys_of_a_joined_member_are_always_there(world: World, scene: Scene) -> None:
    joined = fine(world.ask("GET", f"/rooms/{scene.room}/joined_members"))["joined"]
    assert set(joined) >= {ALICE, BOB}
    assert all(set(member) == {"display_name", "avatar_url"} for member in joined.values())
