from __future__ import annotations

from homeserver.storage.sync_streams import StateChange
from homeserver.sync.room_states import changes_after, changes_before, whole_before

TOPIC, NAME = ("m.room.topic", ""), ("m.room.name", "")


def changes(*entries: tuple[int, tuple[str, str], int | None]) -> list[StateChange]:
    return [StateChange(1, position, key, event_nid) for position, key, event_nid in entries]


def test_whole_state_is_taken_back_to_the_start() -> None:
    predecessors = {5: 4, 4: 2, 7: None}
    assert whole_before([1, 5, 7], {4, 5, 7}, predecessors.get) == [1, 2]
    assert whole_before([1, 5], set(), predecessors.get) == [1, 5]


def test_changes_in_the_gap_and_in_the_timeline() -> None:
    happened = changes((10, TOPIC, 1), (11, NAME, 2), (20, TOPIC, 3))
    assert changes_before(happened, {3}, 15) == [1, 2]
    assert sorted(changes_after(happened)) == [2, 3]
    # Nothing was limited: all of it is in the timeline.
    assert changes_before(happened, {1, 2, 3}, 9) == []


def test_change_without_an_event_in_the_timeline_comes_first() -> None:
    # Branches met at 20, and an older event won.
    happened = changes((20, TOPIC, 7))
    assert changes_before(happened, {12}, 19) == [7]


def test_what_was_removed_cannot_be_told() -> None:
    happened = changes((10, TOPIC, 1), (20, TOPIC, None))
    assert changes_before(happened, set(), 30) == changes_after(happened) == []
