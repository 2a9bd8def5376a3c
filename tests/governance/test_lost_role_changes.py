from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.governance.lost_role_changes import LevelChange, fork_of, left_to_apply, users_of, with_entries
from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.power_levels import power_levels_of
from tests.factories.rooms import RoomFactory
from tests.governance.test_roles import ALICE, BOB, CAROL

DAVE = "@dave:example.org"


class Levels:
    """The power levels events of a room, in branches."""

    def __init__(self, version: str = "11") -> None:
        self.room = RoomFactory(version)
        self.create = self.room.event("alice", "m.room.create", {"room_version": version, "creator": ALICE}, "")
        self.join = self.room.member("alice", "alice", "join")

    def event(self, users: Any, before: Event | None = None, **content: Any) -> Event:
        content = {"users": users, **content} if users is not None else content
        after = before or self.join
        return self.room.event("alice", "m.room.power_levels", content, "", prev_events=[after.event_id])

    def applied(self, current: Event, entries: JsonObject) -> JsonObject | None:
        return with_entries(current, power_levels_of(current.version, self.create, current), entries)


def test_what_an_event_changed() -> None:
    levels = Levels()
    old = levels.event({ALICE: 100, BOB: 50, CAROL: 0})
    new = levels.event({ALICE: 100, BOB: 100, DAVE: 50}, old, kick=60)
    assert LevelChange(old, new).entries() == {BOB: 100, CAROL: None, DAVE: 50}
    assert LevelChange(None, old).entries() == {ALICE: 100, BOB: 50, CAROL: 0}
    assert LevelChange(old, levels.event(None, old)).entries() == {ALICE: None, BOB: None, CAROL: None}
    assert users_of(levels.event("nonsense")) == {}


def test_where_lines_go_apart() -> None:
    levels = Levels()
    first = levels.event({ALICE: 100})
    ours = levels.event({ALICE: 100, BOB: 50}, first)
    ours_too = levels.event({ALICE: 100, BOB: 50, CAROL: 50}, ours)
    theirs = levels.event({ALICE: 100, DAVE: 50}, first)
    fork = fork_of([ours_too, ours, first], [theirs, first, None])
    assert fork is not None
    assert fork.lost == [LevelChange(first, ours), LevelChange(ours, ours_too)]
    assert fork.won == [LevelChange(first, theirs)]
    assert fork_of([ours_too, ours], [theirs, first]) is None
    # Nothing is lost of what the other is built on, and all of a line that went apart at the very beginning.
    built_on = fork_of([first, None], [ours, first, None])
    assert built_on is not None
    assert (built_on.lost, built_on.won) == ([], [LevelChange(first, ours)])
    reset = fork_of([ours, first, None], [first, None])
    assert reset is not None
    assert (reset.lost, reset.won) == ([LevelChange(first, ours)], [])
    other = levels.event({ALICE: 100})
    unrelated = fork_of([first, None], [other, None])
    assert unrelated is not None
    assert (unrelated.lost, unrelated.won) == ([LevelChange(None, first)], [LevelChange(None, other)])


def test_the_winner_and_later_changes_decide_about_the_users_whom_they_changed() -> None:
    levels = Levels()
    first = levels.event({ALICE: 100, BOB: 50})
    ours = LevelChange(first, levels.event({ALICE: 100, BOB: 100, CAROL: 50, DAVE: 50}, first))
    later = LevelChange(ours.event, levels.event({ALICE: 100, BOB: 100, DAVE: 50}, ours.event))
    # That the winner gave Dave his role for a while only is a decision as well.
    theirs = LevelChange(first, levels.event({**users_of(first), DAVE: 100}, first))
    theirs_too = LevelChange(theirs.event, levels.event(users_of(first), theirs.event))
    assert left_to_apply(ours, []) == {BOB: 100, CAROL: 50, DAVE: 50}
    assert left_to_apply(ours, [later]) == {BOB: 100, DAVE: 50}
    assert left_to_apply(ours, [theirs, theirs_too]) == {BOB: 100, CAROL: 50}


@pytest.mark.parametrize("version", ["1", "11"])
def test_levels_that_are_as_wanted_stay(version: str) -> None:
    levels = Levels(version)
    current = levels.event({ALICE: 100, BOB: 50}, users_default=10)
    assert levels.applied(current, {}) is None
    assert levels.applied(current, {BOB: 50, CAROL: 10, DAVE: None}) is None
    assert levels.applied(current, {BOB: None}) == {"users": {ALICE: 100}, "users_default": 10}
    assert levels.applied(current, {BOB: 0, CAROL: 10}) == {"users": {ALICE: 100, BOB: 0}, "users_default": 10}
    if version == "1":  # where a string may be a level
        assert levels.applied(current, {BOB: "50"}) is None
        changed = levels.applied(current, {CAROL: "50"})
        assert changed is not None
        assert changed["users"][CAROL] == "50"


USERS = st.dictionaries(st.sampled_from([ALICE, BOB, CAROL, DAVE]), st.sampled_from([0, 50, 75, 100]))
UNKNOWN = st.dictionaries(st.sampled_from(["org.example.a", "org.example.b", "kick"]), st.integers(0, 100))


@given(USERS, st.lists(USERS, min_size=1, max_size=3), st.lists(USERS, min_size=1, max_size=3), UNKNOWN)
def test_what_is_made_again(
    base: JsonObject, ours: list[JsonObject], theirs: list[JsonObject], unknown: JsonObject
) -> None:
    """Ours holds in the end, except where they have spoken; what they changed, and all else, is as they left it."""
    levels = Levels()
    first = levels.event(base)

    def line(users: list[JsonObject]) -> list[Event]:
        events = [first]
        for step in users:
            events.append(levels.event(step, events[-1], **unknown))
        return events[::-1]

    lost, won = line(ours), line(theirs)
    fork = fork_of(lost, won)
    assert fork is not None
    current = won[0]
    for place, change in enumerate(fork.lost):
        content = levels.applied(current, left_to_apply(change, [*fork.won, *fork.lost[place + 1 :]]))
        if content is not None:
            assert content["users"] != users_of(current)
            assert {**content, "users": None} == {**current.content, "users": None}
            current = levels.event(content["users"], current, **unknown)
    wanted = power_levels_of(first.version, levels.create, lost[0])
    theirs_say = power_levels_of(first.version, levels.create, won[0])
    result = power_levels_of(first.version, levels.create, current)
    we_changed = {user for change in fork.lost for user in change.entries()}
    they_changed = {user for change in fork.won for user in change.entries()}
    for user in (ALICE, BOB, CAROL, DAVE):
        ours_holds = user in we_changed and user not in they_changed
        assert result.of_user(user) == (wanted if ours_holds else theirs_say).of_user(user)
        assert ours_holds or users_of(current).get(user) == users_of(won[0]).get(user)
    assert all(current.content[key] == value for key, value in unknown.items())
