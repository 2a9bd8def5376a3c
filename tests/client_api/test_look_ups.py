"""Look-ups at other servers: in turn by user, so that servers that hang make only the one wait who asks them."""

from __future__ import annotations

import asyncio

import pytest

from homeserver.client_api.limiting import LOOK_UPS_PER_USER_MAX, LookUps
from homeserver.errors import LimitExceeded

pytestmark = pytest.mark.anyio


async def test_one_user_keeps_no_other_waiting() -> None:
    look_ups = LookUps()
    for _ in range(LOOK_UPS_PER_USER_MAX):
        await look_ups.take("@mallory:x")
    with pytest.raises(LimitExceeded):
        await look_ups.take("@mallory:x", seconds=0)
    await look_ups.take("@alice:x", seconds=0)


async def test_few_requests_of_a_user_wait() -> None:
    look_ups = LookUps()
    waiting = [asyncio.ensure_future(look_ups.take("@mallory:x")) for _ in range(200)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    refused = [task for task in waiting if task.done() and isinstance(task.exception(), LimitExceeded)]
    assert len(refused) > 100
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
