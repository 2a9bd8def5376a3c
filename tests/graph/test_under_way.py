"""homeserver/graph/under_way.py: leases of a process that was killed."""

from __future__ import annotations

import pytest

from homeserver.graph.under_way import INVITATION, UnderWay
from homeserver.storage import under_way as store
from homeserver.storage.database import Database
from tests.fakes.clock import FakeClock

ROOM, USER = "!r:example.org", "@bob:other.org"


@pytest.mark.anyio
async def test_a_start_ends_what_a_killed_process_left_behind_where_no_other_can_be_at_work(database: Database) -> None:
    clock = FakeClock()
    await database.write(store.begin, INVITATION, ROOM, USER, "killed", clock.now_ms() + 30_000)
    under_way = UnderWay(database, clock)
    assert await under_way.is_under_way(INVITATION, ROOM, USER)
    await under_way.start()
    assert await under_way.is_under_way(INVITATION, ROOM, USER) is not database.is_sqlite
