from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Connection

from homeserver.storage.batched_reads import KEYS_MAX, BatchedReads
from homeserver.storage.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/empty.db")
    yield database
    database.close()


class Squares:
    """Finds the squares of all positive numbers, and remembers which it was asked for together."""

    def __init__(self) -> None:
        self.reads: list[list[int]] = []
        self.has_begun = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()

    def find(self, _: Connection, numbers: Sequence[int]) -> dict[int, int]:
        self.reads.append(list(numbers))
        self.has_begun.set()
        assert self.may_end.wait(10)
        if 0 in numbers:
            raise ZeroDivisionError
        return {number: number * number for number in numbers if number > 0}


def test_what_is_asked_at_the_same_time_is_read_together(database: Database) -> None:
    async def story() -> None:
        squares = Squares()
        reads = BatchedReads(database, squares.find)
        assert await asyncio.gather(*map(reads.get, [1, 2, -3, 2])) == [1, 4, None, 4]
        assert squares.reads == [[1, 2, -3]]
        assert await reads.get(1) == 1  # nothing is remembered
        many = range(1, 2 * KEYS_MAX)
        assert await asyncio.gather(*map(reads.get, many)) == [number * number for number in many]
        assert [len(read) for read in squares.reads] == [3, 1, KEYS_MAX, KEYS_MAX - 1]

    asyncio.run(story())


def test_an_error_reaches_all_who_asked_and_nobody_later(database: Database) -> None:
    async def story() -> None:
        reads = BatchedReads(database, Squares().find)
        answers = await asyncio.gather(*map(reads.get, [1, 0]), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ZeroDivisionError, ZeroDivisionError]
        assert await reads.get(2) == 4

    asyncio.run(story())


def test_who_gives_up_takes_nobody_along(database: Database) -> None:
    async def story() -> None:
        squares = Squares()
        reads = BatchedReads(database, squares.find)
        first, second = asyncio.create_task(reads.get(1)), asyncio.create_task(reads.get(2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == 4
        assert first.cancelled()
        assert squares.reads == [[1, 2]]

    asyncio.run(story())


def test_a_question_that_comes_during_a_read_is_answered_by_a_later_one(database: Database) -> None:
    """So that a token that was stored before the question is always found."""

    async def story() -> None:
        squares = Squares()
        reads = BatchedReads(database, squares.find)
        squares.may_end.clear()
        first = asyncio.create_task(reads.get(1))
        assert await asyncio.to_thread(squares.has_begun.wait, 10)
        second = asyncio.create_task(reads.get(1))
        await asyncio.sleep(0)
        squares.may_end.set()
        assert await asyncio.gather(first, second) == [1, 1]
        assert squares.reads == [[1], [1]]

    asyncio.run(story())
