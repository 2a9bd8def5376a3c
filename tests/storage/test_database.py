"""homeserver/storage/database.py: commits are shared, durable before the answer, and everybody's own affair."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import IntegrityError

from homeserver.storage import streams
from homeserver.storage.database import (
    GROUP_MAX,
    Database,
    among,
    context_for_everybody,
    in_slices,
    insert,
    reads_for_large_answers,
    reads_for_other_servers,
    upsert,
)
from homeserver.storage.tables import account_data, counters, filters, room_members
from tests.waiting import WAIT_S

Row = dict[str, object]
OPENED_AT_ONCE = 4
NEW_FILES = 40
"""Of so many, one or more mostly failed."""


def filter_row(number: int) -> Row:
    return {"user_id": "@alice:example.org", "filter_id": str(number), "json": b"{}"}


def put_filter(connection: Connection, number: int) -> int:
    connection.execute(insert(connection, filters).values(filter_row(number)))
    return number


def stored_filters(connection: Connection) -> set[int]:
    return {int(filter_id) for filter_id in connection.scalars(select(filters.c.filter_id))}


def put_with_position(connection: Connection, writer: str) -> int:
    """A write that takes a position and is found under it: one row for each write."""
    position = streams.next_position(connection)
    row = {"user_id": writer, "room_id": "", "type": f"n{position}", "content": b"{}", "position": position}
    connection.execute(insert(connection, account_data).values(row))
    return position


def stored_positions(connection: Connection) -> list[int]:
    return list(connection.scalars(select(account_data.c.position).order_by(account_data.c.position)))


@pytest.fixture
def second(database_url: str, database: Database) -> Iterator[Database]:
    """Another process's view of the same database."""
    other = Database(database_url)
    yield other
    other.close()


class Blockade:
    """Keeps the writer thread busy, so that what is submitted meanwhile waits together."""

    def __init__(self) -> None:
        self._begun = threading.Event()
        self._open = threading.Event()

    def __call__(self, _: Connection) -> None:
        self._begun.set()
        assert self._open.wait(10)

    async def submit(self, database: Database) -> asyncio.Task[None]:
        task = asyncio.create_task(database.write(self))
        await asyncio.to_thread(self._begun.wait, 10)
        return task

    def lift(self) -> None:
        self._open.set()


def test_what_is_written_is_read(database: Database) -> None:
    async def story() -> None:
        assert await database.write(put_filter, 7) == 7
        assert await database.read(stored_filters) == {7}

    asyncio.run(story())


def test_jobs_that_wait_share_one_commit(database: Database) -> None:
    transactions: list[object] = []

    def note(connection: Connection, number: int) -> int:
        transactions.append(connection.get_transaction())
        return number

    async def story() -> list[int]:
        blockade = Blockade()
        blocked = await blockade.submit(database)
        waiting = [asyncio.create_task(database.write(note, number)) for number in range(GROUP_MAX + 5)]
        await asyncio.sleep(0)
        blockade.lift()
        await blocked
        return list(await asyncio.gather(*waiting))

    assert asyncio.run(story()) == list(range(GROUP_MAX + 5))
    assert len({id(transaction) for transaction in transactions[:GROUP_MAX]}) == 1
    assert transactions[0] is not transactions[-1]


def test_a_job_that_fails_takes_nobody_with_it(database: Database) -> None:
    def fail(connection: Connection) -> None:
        put_filter(connection, 99)
        raise ValueError("no")

    def break_a_rule(connection: Connection) -> None:
        put_filter(connection, 1)
        put_filter(connection, 1)

    async def story() -> list[object]:
        blockade = Blockade()
        blocked = await blockade.submit(database)
        jobs = [
            database.write(put_filter, 10),
            database.write(fail),
            database.write(put_filter, 11),
            database.write(break_a_rule),
            database.write(put_filter, 12),
        ]
        tasks = [asyncio.create_task(job) for job in jobs]
        await asyncio.sleep(0)
        blockade.lift()
        await blocked
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    first, failed, second, broken, third = asyncio.run(story())
    assert (first, second, third) == (10, 11, 12)
    assert isinstance(failed, ValueError)
    assert isinstance(broken, IntegrityError)
    assert database.read_now(stored_filters) == {10, 11, 12}


def test_items_of_one_handler_are_handled_at_once_and_answered_one_by_one(database: Database) -> None:
    calls: list[list[int]] = []

    def handle(connection: Connection, items: Sequence[int]) -> list[int | BaseException]:
        calls.append(list(items))
        odd = [item for item in items if item % 2]
        connection.execute(insert(connection, filters), [filter_row(item) for item in odd])
        return [item * 10 if item % 2 else KeyError(item) for item in items]

    async def story() -> list[object]:
        blockade = Blockade()
        blocked = await blockade.submit(database)
        tasks = [asyncio.create_task(database.write_batched(handle, item)) for item in range(1, 5)]
        await asyncio.sleep(0)
        blockade.lift()
        await blocked
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    answers = asyncio.run(story())
    assert calls == [[1, 2, 3, 4]]
    assert [answers[0], answers[2]] == [10, 30]
    assert isinstance(answers[1], KeyError)
    assert isinstance(answers[3], KeyError)
    assert database.read_now(stored_filters) == {1, 3}


def test_it_is_committed_before_it_is_answered(database: Database, second: Database) -> None:
    async def story() -> None:
        for number in range(20):
            await database.write(put_filter, number)
            assert number in await second.read(stored_filters)

    asyncio.run(story())


def test_who_goes_away_does_not_take_the_write_back(database: Database) -> None:
    async def story() -> None:
        blockade = Blockade()
        blocked = await blockade.submit(database)
        tasks = [
            asyncio.create_task(database.write(put_filter, 1)),
            asyncio.create_task(database.write(put_filter, 1)),  # fails, and nobody is there to hear of it
            asyncio.create_task(database.write(put_filter, 2)),
        ]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        blockade.lift()
        await blocked
        assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*tasks, return_exceptions=True))
        await database.write(put_filter, 3)

    asyncio.run(story())
    assert database.read_now(stored_filters) == {1, 2, 3}


def test_closing_finishes_what_waits(database_url: str) -> None:
    database = Database(database_url)

    async def story() -> list[int]:
        tasks = [asyncio.create_task(database.write(put_filter, number)) for number in range(30)]
        await asyncio.sleep(0)
        await asyncio.to_thread(database.close)
        return list(await asyncio.gather(*tasks))

    assert asyncio.run(story()) == list(range(30))
    database.close()
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(database.write(put_filter, 31))


def test_two_processes_lose_no_update(database: Database, second: Database) -> None:
    each = 60

    def add_one(connection: Connection) -> None:
        # Reads before it writes: of two such writers at once, one would lose.
        value = connection.execute(select(counters.c.event)).scalar_one()
        connection.execute(counters.update().values(event=value + 1))

    async def story() -> None:
        await asyncio.gather(*(process.write(add_one) for _ in range(each) for process in (database, second)))

    asyncio.run(story())
    assert database.read_now(lambda connection: connection.scalar(select(counters.c.event))) == 2 * each


def test_positions_have_no_gaps_and_become_visible_in_their_order(database: Database, second: Database) -> None:
    """Whoever has seen a position never finds a lower one appear later."""
    each = 80

    async def write(process: Database, name: str) -> list[int]:
        tasks = []
        for number in range(each):
            tasks.append(asyncio.create_task(process.write(put_with_position, name)))
            if number % 7 == 0:
                await tasks[-1]
        return list(await asyncio.gather(*tasks))

    async def watch(process: Database, done: asyncio.Event) -> None:
        def look(connection: Connection) -> tuple[int, list[int]]:
            return streams.current_position(connection), stored_positions(connection)

        while not done.is_set():
            current, positions = await process.read(look)
            assert positions == list(range(1, current + 1))

    async def story() -> list[int]:
        done = asyncio.Event()
        watchers = [asyncio.create_task(watch(process, done)) for process in (database, second)]
        taken = await asyncio.gather(write(database, "a"), write(second, "b"))
        done.set()
        await asyncio.gather(*watchers)
        return sorted([*taken[0], *taken[1]])

    assert asyncio.run(story()) == list(range(1, 2 * each + 1))


def test_positions_are_visible_in_order_to_readers_without_a_snapshot(database: Database, second: Database) -> None:
    """Look at the counter first and read afterwards: what was promised by the counter is there."""

    async def story() -> None:
        writing = [asyncio.create_task(p.write(put_with_position, "w")) for _ in range(40) for p in (database, second)]
        while not all(task.done() for task in writing):
            current = await second.read(streams.current_position)
            positions = await second.read(stored_positions)
            assert set(range(1, current + 1)) <= set(positions)
        await asyncio.gather(*writing)

    asyncio.run(story())


def test_writers_that_need_the_same_rows_in_another_order_do_not_deadlock(database: Database, second: Database) -> None:
    async def story() -> None:
        for process in (database, second):
            await process.write(put_filter, 1 if process is database else 2)

        def touch(connection: Connection, order: tuple[int, int]) -> None:
            for number in order:
                connection.execute(filters.update().where(filters.c.filter_id == str(number)).values(json=b"[]"))

        jobs = [p.write(touch, order) for _ in range(30) for p, order in ((database, (1, 2)), (second, (2, 1)))]
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*jobs)

    asyncio.run(story())


def test_a_reader_sees_one_snapshot(database: Database, second: Database) -> None:
    def look_twice(connection: Connection) -> tuple[set[int], set[int]]:
        before = stored_filters(connection)
        with second.begin() as other:
            put_filter(other, 5)
        return before, stored_filters(connection)

    assert database.read_now(look_twice) == (set(), set())
    assert database.read_now(stored_filters) == {5}


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def terminate_connections(url: str) -> None:
    other = Database(url, readers=1)
    with other.engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    other.close()


@pytest.mark.parametrize("for_server", [False, True])
def test_large_answers_keep_nobody_else_waiting(database: Database, for_server: bool) -> None:
    go_on = threading.Event()

    def slow(_: Connection) -> None:
        go_on.wait(WAIT_S)

    async def answer(is_large: bool) -> int | None:
        if for_server:
            reads_for_other_servers()
        if is_large:
            with reads_for_large_answers():
                await database.read(slow)
        return await database.read(streams.current_position)

    async def story() -> None:
        asking = [asyncio.create_task(answer(True)) for _ in range(20)]
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(WAIT_S):
                assert await asyncio.create_task(answer(False)) == 0
            assert not any(task.done() for task in asking)
        finally:
            go_on.set()
        assert await asyncio.gather(*asking) == [0] * 20

    asyncio.run(story())


def test_what_other_servers_ask_does_not_keep_clients_waiting(database: Database) -> None:
    """Reads for other servers that take all their threads, and more that wait, leave those for clients free."""
    go_on = threading.Event()

    def slow(_: Connection) -> None:
        go_on.wait(WAIT_S)

    async def answer_another_server() -> None:
        reads_for_other_servers()
        await database.read(slow)

    async def work_for_everybody() -> int | None:
        return await database.read(streams.current_position)

    async def from_a_request_of_another_server() -> int | None:
        reads_for_other_servers()
        work = asyncio.get_running_loop().create_task(work_for_everybody(), context=context_for_everybody())
        return await work

    async def story() -> None:
        asking = [asyncio.create_task(answer_another_server()) for _ in range(20)]
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(WAIT_S):
                assert await database.read(streams.current_position) == 0
                # Nor do they hold up what other servers' requests set going for everybody.
                assert await asyncio.create_task(from_a_request_of_another_server()) == 0
            assert not any(task.done() for task in asking)
        finally:
            go_on.set()
            await asyncio.gather(*asking)

    asyncio.run(story())


def test_connections_that_postgresql_ended_are_opened_again(postgresql_url: str) -> None:
    database = Database(postgresql_url)

    async def story() -> None:
        await asyncio.gather(*(database.read(stored_filters) for _ in range(8)))
        await database.write(put_filter, 1)
        for number in range(2, 5):
            await asyncio.to_thread(terminate_connections, postgresql_url)
            assert await asyncio.gather(*(database.read(stored_filters) for _ in range(8)))
            await database.write(put_filter, number)

    asyncio.run(story())
    assert database.read_now(stored_filters) == {1, 2, 3, 4}
    database.close()


def test_a_connection_lost_in_the_middle_of_a_write_is_no_harm(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    attempts: list[int] = []

    def write(connection: Connection) -> None:
        attempts.append(1)
        put_filter(connection, 1)
        if len(attempts) == 1:
            terminate_connections(postgresql_url)
        put_filter(connection, 2)

    asyncio.run(database.write(write))
    assert len(attempts) == 2
    assert database.read_now(stored_filters) == {1, 2}
    database.close()


WRITER = Path(__file__).with_name("writing_process.py")


def test_everything_that_was_answered_survives_a_kill(database_url: str, tmp_path: Path) -> None:
    answered = tmp_path / "answered"
    with subprocess.Popen([sys.executable, WRITER, database_url, answered], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        seen = 0
        while seen < 60:
            assert process.stdout.readline()
            seen += 1
        process.send_signal(signal.SIGKILL)
    promised = {int(line) for line in answered.read_text().split("\n")[:-1]}
    database = Database(database_url)
    stored = set(database.read_now(stored_positions))
    assert len(promised) >= 60
    assert promised <= stored
    assert stored == set(range(1, database.read_now(streams.current_position) + 1))
    assert asyncio.run(database.write(put_with_position, "after")) == len(stored) + 1
    database.close()


# -- helpers -----------------------------------------------------------------------------------------------------------


def test_upsert_replaces_what_is_named_and_nothing_else(database: Database) -> None:
    with database.begin() as connection:
        put_filter(connection, 1)
        upsert(connection, filters, [{**filter_row(1), "json": b"[1]"}, filter_row(2)], ["user_id", "filter_id"])
        upsert(connection, filters, [], ["user_id", "filter_id"])
        assert connection.scalar(select(filters.c.json).where(filters.c.filter_id == "1")) == b"[1]"
        assert connection.scalar(select(func.count()).select_from(filters)) == 2


def test_slices() -> None:
    assert [list(part) for part in in_slices([1, 2, 3, 4, 5], 2)] == [[1, 2], [3, 4], [5]]
    assert list(in_slices([])) == []


def test_keys_of_several_columns_are_found_by_their_index(database: Database) -> None:
    columns = (room_members.c.room_nid, room_members.c.user_id)
    statement = select(*columns).where(among(columns, [(1, "@a:x"), (2, "@b:x")]))
    row = {"membership": "join", "event_nid": 1, "event_ts": 1, "sort_name": ""}
    with database.begin() as connection:
        places = [(1, "@a:x"), (1, "@b:x"), (2, "@b:x"), (3, "@a:x")]
        connection.execute(insert(connection, room_members), [{**row, "room_nid": r, "user_id": u} for r, u in places])
        assert {tuple(found) for found in connection.execute(statement)} == {(1, "@a:x"), (2, "@b:x")}
        if database.is_sqlite:
            compiled = statement.compile(connection, compile_kwargs={"literal_binds": True})
            plan = [step[3] for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")]
            assert plan[0].startswith("SEARCH room_members")
            assert "user_id=?" in plan[0]


def test_the_first_connections_to_a_new_file_wait_for_each_other(tmp_path: Path) -> None:
    """Each changes the journal mode, for which SQLite itself does not always wait."""
    barrier = threading.Barrier(OPENED_AT_ONCE)

    def opened(file: Path) -> str:
        database = Database(f"sqlite:///{file}")
        try:
            barrier.wait(WAIT_S)
            return str(database.read_now(lambda connection: connection.execute(text("PRAGMA journal_mode")).scalar()))
        finally:
            database.close()

    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        for number in range(NEW_FILES):
            file = tmp_path / f"{number}.db"
            sqlite3.connect(file).execute("CREATE TABLE held (x)").connection.close()
            assert list(pool.map(opened, [file] * OPENED_AT_ONCE)) == ["wal"] * OPENED_AT_ONCE
