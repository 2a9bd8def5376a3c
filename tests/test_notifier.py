"""homeserver/notifier.py: nobody sees a later position without the earlier ones, and nobody sleeps through a change."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from homeserver import notifier as notifier_module
from homeserver.notifier import Change, Notifier, Stream
from tests.waiting import WAIT_S

ALICE, BOB = "@alice:example.org", "@bob:example.org"
ROOM = "!room:example.org"


def change(position: int, *audience: str, room_id: str | None = ROOM) -> Change:
    return Change(position, Stream.EVENTS, room_id, None, frozenset(audience))


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
        assert (notifier.last_change_in(ROOM), notifier.last_change_in("!other:example.org")) == (12, 10)
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
    monkeypatch.setattr(notifier_module, "RECENT_CHANGES_MAX", 5)

    async def story() -> None:
        notifier = Notifier(0, OtherProcess().load)
        notifier.publish([change(number) for number in range(1, 13)])
        assert notifier.floor == 7
        assert positions(notifier, 7) == [8, 9, 10, 11, 12]
        assert positions(notifier, 6) is None

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
        notifier.publish([Change(3, Stream.RECEIPTS, ROOM, ALICE, (ALICE, BOB))])
        assert await again
        assert await waiting[2]

    asyncio.run(story())


def test_a_large_audience_and_many_who_wait() -> None:
    async def story() -> None:
        notifier = Notifier(0, OtherProcess().load)
        users = [f"@u{number}:example.org" for number in range(100)]
        waiting = {user: asyncio.create_task(notifier.wait_for_user(user, WAIT_S)) for user in users}
        await asyncio.sleep(0)
        notifier.publish([change(1, *users[:10])])
        assert all([await waiting[user] for user in users[:10]])
        assert not any(waiting[user].done() for user in users[10:])
        notifier.publish([change(2, *users, *(f"@v{number}:example.org" for number in range(500)))])
        assert all([await waiting[user] for user in users[10:]])

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
        assert notifier._waiters == {}
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
        assert notifier._waiters == {}

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
