"""homeserver/outbound/spools.py: what is written is read again, and nothing stays on the disk."""

from __future__ import annotations

import asyncio
import gc

import pytest

from homeserver.outbound.spools import MEMORY_BYTES_MAX, Spool, SpoolFull, Spools


def written(spools: Spools, *chunks: bytes, bytes_max: int = 10 * MEMORY_BYTES_MAX) -> Spool:
    spool = spools.new(bytes_max)

    async def write() -> None:
        for chunk in chunks:
            await spool.write(chunk)

    asyncio.run(write())
    return spool


def test_small_bodies_stay_in_memory() -> None:
    spools = Spools()
    spool = written(spools, b"abc", b"def")
    assert (spool.is_in_memory, spool.size, spools.spooled_bytes) == (True, 6, 0)
    assert (spool.read(2, 2), spool.read(4, 100), spool.read(6, 1)) == (b"cd", b"ef", b"")


def test_large_bodies_are_read_across_file_and_memory() -> None:
    spools = Spools()
    whole = bytes(range(256)) * 2_000
    pieces = [whole[start : start + 70_000] for start in range(0, len(whole), 70_000)]
    spool = written(spools, *pieces)
    assert not spool.is_in_memory
    assert spool.size == len(whole) > spools.spooled_bytes > 0
    assert spool.read(0, len(whole)) == whole
    assert spool.read(spools.spooled_bytes - 3, 6) == whole[spools.spooled_bytes - 3 :][:6]
    assert spool.read(len(whole), 1) == b""


def test_they_free_their_share_when_closed_or_forgotten() -> None:
    spools = Spools()
    closed, forgotten = (written(spools, b"a" * (2 * MEMORY_BYTES_MAX)) for _ in range(2))
    closed.close()
    assert spools.spooled_bytes == 2 * MEMORY_BYTES_MAX
    with pytest.raises(SpoolFull):
        closed.read(0, 1)
    del forgotten
    gc.collect()
    assert spools.spooled_bytes == 0


def test_bounds_of_one_and_of_all_together() -> None:
    spools = Spools(spooled_bytes_max=3 * MEMORY_BYTES_MAX)
    with pytest.raises(SpoolFull):
        written(spools, b"abc", b"d", bytes_max=3)
    held = written(spools, b"a" * (2 * MEMORY_BYTES_MAX))
    with pytest.raises(SpoolFull):
        written(spools, b"a" * (2 * MEMORY_BYTES_MAX))
    held.close()
    assert written(spools, b"a" * (2 * MEMORY_BYTES_MAX)).size == 2 * MEMORY_BYTES_MAX
