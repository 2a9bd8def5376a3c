"""homeserver/notifier.py: nobody sees a later position without the earlier ones, and nobody sleeps through a change."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import pytest

from homeserver import notifier as notifier_module
from homeserver.notifier import Change, Notifier, Stream
from tests.waiting import WAIT_S

ALICE, BOB = "@alice:example.org", "@bob:example.org"
ROOM = "!room:example.org"


def change(position: int, *users: str, room_id: str | None = ROOM) -> Change:
    return Change(position, Stream.EVENTS, room_id, users)


def message(position: int, room_id: str = ROOM) -> Change:
    return Change(position, Stream.EVENTS, room_id, wakes_room=True)


class OtherProcess:
    """What another process has written, read when the notifier asks for it."""

    def __init__(self, *changes: Change) -> None:
        self.changes = list(changes)
        self.asked: list[tuple[int, int]] = []
        self.failure: Exception | None = None
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def load(self, after: int, upto: int) -> Sequence[Change]:
        self.asked.append((after, upto))
        await self.go_on.wait()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return [change for change in self.changes if after < change.position <= upto]


def positions(notifier: Notifier, since: int) -> list[int] | None:
    changes = notifier.changes_since(since)
    return None if changes is None else [change.position for change in changes]


def test_changes_are_kept_in_order() -> None:
    async def story() -> None:
        other = OtherProcess()
        notifier = Notifier(10, other.load)
        notifier.publish([change(11), change(12)])
        notifier.publish([change(13, room_id=None)])
        assert notifier.position == 13
        assert positions(notifier, 10) == [11, 12, 13]
        assert positions(notifier, 12) == [13]
        assert positions(notifier, 13) == []
        assert positions(notifier, 9) is None  # before this process began
        assert other.asked == []

    asyncio.run(story())


def test_what_is_published_out_of_order_is_put_in_order() -> None:
    async def story() -> None:
        other = OtherProcess()
        notifier = Notifier(0, other.load)
        notifier.publish([change(2), change(3)])
        assert notifier.position == 0
        notifier.publish([change(1)])
        assert positions(notifier, 0) == [1, 2, 3]
        await asyncio.sleep(0)
        assert other.asked == []

    asyncio.run(story())


def test_a_gap_is_read_from_the_database() -> None:
    async def story() -> None:
        theirs = [change(1, ALICE), change(3, ALICE)]  # nothing is left of what was at 2
        other = OtherProcess(*theirs)
        notifier = Notifier(0, other.load)
        waiting = asyncio.create_task(notifier.wait_for_user(ALICE, WAIT_S))
        await asyncio.sleep(0)
        notifier.publish([change(4, BOB)])
        assert notifier.position == 0
        assert await waiting
        assert positions(notifier, 0) == [1, 3, 4]
        assert other.asked == [(0, 4)]

    asyncio.run(story())


def test_what_is_published_while_a_gap_is_read() -> None:
    async def story() -> None:
        other = OtherProcess(change(1), change(3))
        other.go_on.clear()
        notifier = Notifier(0, other.load)
        notifier.publish([change(2)])
        await asyncio.sleep(0)
        notifier.publish([change(4), change(5)])
        assert notifier.position == 0
        other.go_on.set()
        await notifier.catch_up(5)
        assert positions(notifier, 0) == [1, 2, 3, 4, 5]
        # One's own changes say more than what is read back.
        own = change(6, ALICE)
        other.changes.append(change(6))
        notifier.publish([own])
        assert notifier.changes_since(5) == [own]

    asyncio.run(story())


def test_others_are_caught_up_with() -> None:
    async def story() -> None:
        other = OtherProcess(*(change(number) for number in range(1, 8)))
        notifier = Notifier(0, other.load)
        await asyncio.gather(notifier.catch_up(3), notifier.catch_up(7), notifier.catch_up(2))
        assert positions(notifier, 0) == [1, 2, 3, 4, 5, 6, 7]
        asked = len(other.asked)
        await notifier.catch_up(5)
        assert len(other.asked) == asked

    asyncio.run(story())


def test_a_long_absence_is_caught_up_with_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier_module, "CATCH_UP_MAX", 3)

    async def story() -> None:
        other = OtherProcess(*(change(number) for number in range(1, 9)))
        notifier = Notifier(0, other.load)
        await notifier.catch_up(8)
        assert other.asked == [(0, 3), (3, 6), (6, 8)]
        assert positions(notifier, 0) == list(range(1, 9))

    asyncio.run(story())


def test_a_read_that_fails_is_made_up_for() -> None:
    async def story() -> None:
        other = OtherProcess(change(1), change(3))
        other.failure = OSError("database gone")
        notifier = Notifier(0, other.load)
        notifier.publish([change(2)])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert notifier.position == 0
        notifier.publish([change(4)])
        await notifier.catch_up(4)
        assert positions(notifier, 0) == [1, 2, 3, 4]
        other.failure = OSError("database gone")
        with pytest.raises(OSError, match="gone"):
            await notifier.catch_up(5)
        await notifier.catch_up(5)
        assert notifier.position == 5

    asyncio.run(story())


def test_only_so_many_changes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier_module, "RECENT_BYTES_MAX", 5 * change(1).weight)

    async def story() -> None:
        notifier = Notifier(0, OtherProcess().load)
        notifier.publish([change(number) for number in range(1, 13)])
        assert notifier.floor == 7
        assert positions(notifier, 7) == [8, 9, 10, 11, 12]
        assert positions(notifier, 6) is None
        # A change that concerns many users counts for more.
        notifier.publish([change(13, *(f"@u{number}:example.org" for number in range(8)))])
        assert notifier.floor == 10
        assert positions(notifier, 10) == [11, 12, 13]

    asyncio.run(story())


# -- who waits ---------------------------------------------------------------------------------------------------------


def test_those_concerned_are_woken_once() -> None:
    async def story() -> None:
        notifier = Notifier(0, OtherProcess().load)
        waiting = [asyncio.create_task(notifier.wait_for_user(user, WAIT_S)) for user in (ALICE, ALICE, BOB)]
        await asyncio.sleep(0)
        notifier.publish([change(1, ALICE), change(2, ALICE)])
        assert await waiting[0]
        assert await waiting[1]
        assert not waiting[2].done()
        # Who waits anew is woken by what comes then, not by what was.
        again = asyncio.create_task(notifier.wait_for_user(ALICE, WAIT_S))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not again.done()
        notifier.publish([Change(3, Stream.RECEIPTS, ROOM, (ALICE, BOB))])
        assert await again
        assert await waiting[2]

    asyncio.run(story())


def test_a_change_in_a_room_wakes_those_who_are_in_it() -> None:
    async def story() -> None:
        notifier = Notifier(0, OtherProcess().load)
        users = [f"@u{number}:example.org" for number in range(100)]
        rooms = {user: {f"!{number % 10}:example.org": True, ROOM: True} for number, user in enumerate(users)}
        waiting = {user: asyncio.create_task(notifier.wait_for_user(user, WAIT_S, rooms[user])) for user in users}
        await asyncio.sleep(0)
        notifier.publish([message(1, "!3:example.org"), change(2), message(3, "!nobody:example.org")])
        assert all([await waiting[user] for user in users[3::10]])
        assert sum(task.done() for task in waiting.values()) == 10
        notifier.publish([message(4)])
        assert all([await task for task in waiting.values()])

    asyncio.run(story())


def test_a_request_waits_for_the_rooms_that_it_names_and_no_earlier_ones() -> None:
    async def story() -> None:
        notifier = Notifier(0, OtherProcess().load)

        async def is_woken_by(rooms: Collection[str], published: Change) -> bool:
            waiting = asyncio.create_task(notifier.wait_for_user(ALICE, WAIT_S, rooms))
            await asyncio.sleep(0)
            notifier.publish([published])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            woken = waiting.done()
            notifier.wake_user(ALICE)
            await waiting
            return woken

        before, after = {"!a": True, "!b": True}, {"!b": True, "!c": True}
        assert await is_woken_by(before, message(1, "!a"))
        assert await is_woken_by(before, message(2, "!b"))
        assert not await is_woken_by(before, message(3, "!c"))
        assert not await is_woken_by(after, message(4, "!a"))
        assert await is_woken_by(after, message(5, "!b"))
        assert await is_woken_by(after, message(6, "!c"))
        assert not await is_woken_by((), message(7, "!c"))

    asyncio.run(story())


def test_rooms_of_users_without_a_request_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier_module, "IDLE_ROOMS_MAX", 20)

    async def story() -> None:
        notifier = Notifier(0, OtherProcess().load)
        first = asyncio.create_task(notifier.wait_for_user(ALICE, WAIT_S, {ROOM: True}))
        await asyncio.sleep(0)
        for number in range(50):
            rooms = {f"!{number}.{each}:example.org": True for each in range(5)}
            await notifier.wait_for_user(f"@u{number}:example.org", 0.0001, rooms)
        notifier.publish([message(1)])
        assert await first  # a request that waits is not forgotten
        await notifier.wait_for_user(BOB, 0.0001)
        waiters = notifier._waiters
        assert sum(len(rooms) for rooms in waiters._rooms.values()) == waiters._rooms_count <= 20
        assert len(waiters._users) <= 20

    asyncio.run(story())


def test_a_change_between_the_look_and_the_wait_is_not_missed() -> None:
    """Readers look, and wait from the position that they saw, however the changes fall in between."""

    async def story() -> None:
        notifier = Notifier(0, OtherProcess().load)
        total, seen = 300, 0

        async def read() -> None:
            nonlocal seen
            while seen < total:
                if notifier.changes_since(seen):
                    seen = notifier.position
                    await asyncio.sleep(0)
                    continue
                assert await notifier.wait_for_user(ALICE, WAIT_S)

        async def write() -> None:
            for number in range(1, total + 1):
                notifier.publish([change(number, ALICE)])
                for _ in range(number % 4):
                    await asyncio.sleep(0)

        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(read(), write())
        assert seen == total

    asyncio.run(story())


def test_time_runs_out() -> None:
    async def story() -> None:
        notifier = Notifier(0, OtherProcess().load)
        assert not await notifier.wait_for_user(ALICE, 0.001)
        assert not await notifier.wait_for_user(ALICE, 0)
        assert not notifier._waiters
        notifier.publish([change(1, ALICE)])

    asyncio.run(story())


def test_who_goes_away_is_forgotten() -> None:
    async def story() -> None:
        notifier = Notifier(0, OtherProcess().load)
        waiting = asyncio.create_task(notifier.wait_for_user(ALICE, WAIT_S))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not notifier._waiters

    asyncio.run(story())


def test_a_user_is_woken_without_a_change() -> None:
    async def story() -> None:
        notifier = Notifier(0, OtherProcess().load)
        waiting = asyncio.create_task(notifier.wait_for_user(ALICE, WAIT_S))
        await asyncio.sleep(0)
        notifier.wake_user(ALICE)
        notifier.wake_user(BOB)
        assert await waiting

    asyncio.run(story())


def test_readers_hear_of_everything() -> None:
    async def story() -> None:
        notifier = Notifier(0, OtherProcess(change(2)).load)
        first, second = notifier.reader(), notifier.reader()
        notifier.publish([change(1)])
        assert first.is_set()
        assert second.is_set()
        first.clear()
        await notifier.catch_up(2)
        assert first.is_set()

    asyncio.run(story())


def test_closing_lets_everybody_go() -> None:
    async def story() -> None:
        notifier = Notifier(0, OtherProcess().load)
        reader = notifier.reader()
        waiting = asyncio.create_task(notifier.wait_for_user(ALICE, WAIT_S))
        await asyncio.sleep(0)
        notifier.close()
        assert not await waiting
        assert reader.is_set()
        assert not await notifier.wait_for_user(ALICE, WAIT_S)

    asyncio.run(story())
