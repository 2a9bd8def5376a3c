from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from homeserver.accounts.passwords import (
    AT_ONCE_MAX,
    PASSWORD_BYTES_MAX,
    WAITING_MAX,
    WAITING_PER_ADDRESS_MAX,
    Passwords,
)
from homeserver.errors import BadJson, LimitExceeded, WeakPassword

pytestmark = pytest.mark.anyio


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    passwords = Passwords(memory_kib=8, passes=1)
    yield passwords
    passwords.close()


async def test_a_hash_fits_its_password_only(passwords: Passwords) -> None:
    stored = await passwords.hash("wonderland")
    assert "wonderland" not in stored
    assert stored != await passwords.hash("wonderland")
    assert await passwords.verify(stored, "wonderland")
    assert not await passwords.verify(stored, "Wonderland")
    assert not await passwords.verify(None, "wonderland")
    assert not await passwords.verify("not a hash", "wonderland")
    assert not await passwords.verify(stored, "x" * (PASSWORD_BYTES_MAX + 1))


async def test_limits(passwords: Passwords) -> None:
    with pytest.raises(WeakPassword):
        await passwords.hash("")
    with pytest.raises(BadJson):
        await passwords.hash("x" * (PASSWORD_BYTES_MAX + 1))


async def test_older_parameters_are_noticed(passwords: Passwords) -> None:
    newer = Passwords(memory_kib=16, passes=1)
    stored = await passwords.hash("wonderland")
    assert newer.needs_rehash(stored)
    assert not passwords.needs_rehash(stored)
    assert await newer.verify(stored, "wonderland")
    newer.close()


async def test_a_flood_is_told_to_come_back(passwords: Passwords) -> None:
    stored = await passwords.hash("wonderland")
    addresses = [str(number) for number in range(WAITING_MAX + AT_ONCE_MAX + 5)]
    flood = [passwords.verify(stored, "wonderland", address) for address in addresses]
    outcomes = await asyncio.gather(*flood, return_exceptions=True)
    assert sum(isinstance(outcome, LimitExceeded) for outcome in outcomes) == 5
    assert sum(outcome is True for outcome in outcomes) == WAITING_MAX + AT_ONCE_MAX
    assert await passwords.verify(stored, "wonderland")


async def test_nobody_takes_as_long_as_somebody() -> None:
    passwords = Passwords()
    stored = passwords.hash_now("wonderland")

    def shortest(password_hash: str | None) -> float:
        times = []
        for _ in range(4):
            start = time.thread_time()
            passwords._verify_now(password_hash, "looking glass")
            times.append(time.thread_time() - start)
        return min(times)

    assert 0.5 < shortest(None) / shortest(stored) < 2
    passwords.close()


async def test_a_flood_of_one_address_keeps_nobody_else_waiting(passwords: Passwords) -> None:
    stored = await passwords.hash("wonderland")
    order: list[str] = []

    async def verify(address: str) -> None:
        await passwords.verify(stored, "wonderland", address)
        order.append(address)

    flood = [asyncio.create_task(verify("a")) for _ in range(WAITING_PER_ADDRESS_MAX + AT_ONCE_MAX + 5)]
    await asyncio.sleep(0)
    await verify("b")
    assert order.index("b") <= 2 * AT_ONCE_MAX
    outcomes = await asyncio.gather(*flood, return_exceptions=True)
    assert sum(isinstance(outcome, LimitExceeded) for outcome in outcomes) == 5
