"""Two processes on one PostgreSQL database count failed logins together."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

from homeserver.limits.rate_limits import Limit, RateLimits
from tests.fakes.servers import Servers, eventually

SERVER = "ours.test"


def test_a_failure_at_one_process_counts_at_the_other(
    tmp_path: Path, migrated_sqlite_file: Path, postgresql_url: str
) -> None:
    async def story() -> None:
        settings = {"database": {"url": postgresql_url}, "rate_limits": {"login_failures": "1/h, burst 1"}}
        async with Servers(tmp_path, migrated_sqlite_file) as servers:
            here = (await servers.ours(SERVER, **settings)).get(RateLimits)
            there = (await servers.ours(SERVER, **settings)).get(RateLimits)
            addresses = (f"192.0.2.{number}" for number in itertools.count(1))
            used = []

            async def is_heard() -> bool:
                # What is said before the other process listens is lost.
                used.append(next(addresses))
                here.require(Limit.LOGIN_FAILURES, used[-1])
                return len(there) > 0

            await eventually(is_heard)
            refused = [address for address in used if not there.allows(Limit.LOGIN_FAILURES, address)]
            assert refused
            assert there.allows(Limit.LOGIN_FAILURES, "198.51.100.1")

    asyncio.run(story())
