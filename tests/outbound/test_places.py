"""Places for requests to other servers: nobody's requests keep those of another kind, or to another server, waiting."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from homeserver.errors import NoPlace
from homeserver.outbound.connections import CONNECTIONS_IN_USE_MAX, CONNECTIONS_PER_DESTINATION_MAX
from homeserver.outbound.places import SHARES, Places, Purpose, Share
from tests.waiting import WAIT_S

pytestmark = pytest.mark.anyio
SMALL = {
    Purpose.DELIVERY: Share(4, 2, 100, None),
    Purpose.LOOK_UPS: Share(4, 2, 3, None),
    Purpose.NOTARY: Share(4, 2, 3, 0.0),
}


@pytest.fixture
def places() -> Places:
    return Places(SMALL)


async def is_free(places: Places, purpose: Purpose, destination: str) -> bool:
    """Whether a request would get a place at once."""

    async def take() -> None:
        async with places.hold(purpose, destination):
            pass

    task = asyncio.ensure_future(take())
    for _ in range(10):
        await asyncio.sleep(0)
    if task.done():
        task.result()
        return True
    task.cancel()
    await asyncio.wait({task})
    return False


async def fill(stack: AsyncExitStack, places: Places, purpose: Purpose, *destinations: str) -> None:
    for destination in destinations:
        await stack.enter_async_context(places.hold(purpose, destination))


async def test_one_purpose_takes_no_place_of_another(places: Places) -> None:
    async with AsyncExitStack() as stack:
        await fill(stack, places, Purpose.LOOK_UPS, "a.example", "b.example")
        assert not await is_free(places, Purpose.LOOK_UPS, "c.example")
        assert await is_free(places, Purpose.DELIVERY, "a.example")


async def test_servers_that_answer_wait_only_for_those_that_do(places: Places) -> None:
    places.answered("good.example")
    async with AsyncExitStack() as stack:
        await fill(stack, places, Purpose.DELIVERY, "a.example", "b.example")
        assert not await is_free(places, Purpose.DELIVERY, "c.example")
        assert await is_free(places, Purpose.DELIVERY, "good.example")
        places.did_not_answer("good.example")
        assert not await is_free(places, Purpose.DELIVERY, "good.example")


async def test_one_destination_takes_few_places(places: Places) -> None:
    places.answered("slow.example")
    async with AsyncExitStack() as stack:
        await fill(stack, places, Purpose.DELIVERY, "slow.example", "slow.example")
        assert not await is_free(places, Purpose.DELIVERY, "slow.example")
        waiting = [asyncio.ensure_future(_hold(places, "slow.example")) for _ in range(20)]
        await asyncio.sleep(0)
        assert await is_free(places, Purpose.DELIVERY, "other.example")
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*waiting)


async def _hold(places: Places, destination: str) -> None:
    async with places.hold(Purpose.DELIVERY, destination):
        await asyncio.sleep(0)


async def test_few_may_wait(places: Places) -> None:
    async with AsyncExitStack() as stack:
        await fill(stack, places, Purpose.LOOK_UPS, "a.example", "b.example")
        waiting = [asyncio.ensure_future(_look_up(places, f"{number}.example")) for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(NoPlace):
            await _look_up(places, "late.example")
    await asyncio.gather(*waiting)


async def _look_up(places: Places, destination: str) -> None:
    async with places.hold(Purpose.LOOK_UPS, destination):
        pass


async def test_nobody_waits_for_ever(places: Places) -> None:
    async with AsyncExitStack() as stack:
        await fill(stack, places, Purpose.NOTARY, "a.example", "b.example")
        with pytest.raises(NoPlace):
            await stack.enter_async_context(places.hold(Purpose.NOTARY, "c.example"))


async def test_places_come_back_after_failures_and_cancellations(places: Places) -> None:
    for _ in range(10):
        with pytest.raises(RuntimeError):
            async with places.hold(Purpose.LOOK_UPS, "a.example"):
                raise RuntimeError
        task = asyncio.ensure_future(_hang(places))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
    assert await is_free(places, Purpose.LOOK_UPS, "a.example")
    assert not any(room.lanes or room.waiting for room in places._rooms.values())


async def _hang(places: Places) -> None:
    async with places.hold(Purpose.LOOK_UPS, "a.example"):
        await asyncio.Event().wait()


def test_connections_suffice_for_all_places() -> None:
    """Otherwise the bounds by purpose would mean nothing: requests would wait for a connection."""
    assert sum(share.at_once for share in SHARES.values()) <= CONNECTIONS_IN_USE_MAX / 2
    assert sum(share.per_destination for share in SHARES.values()) <= CONNECTIONS_PER_DESTINATION_MAX
