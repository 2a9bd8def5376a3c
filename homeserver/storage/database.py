"""Transactions. Statements run synchronously on database threads: one switch to a thread for each transaction.

Reads run on a few threads, each with a connection that stays open, in a transaction that sees one snapshot. Reads for
other servers have their own threads (``reads_for_other_servers``), and so have the reads for large answers, such as the
whole state of a large room (``reads_for_large_answers``): however many there are, they cannot keep others waiting for a
free thread. All writes of the process run on one thread, which puts all waiting ones into one commit, so
that concurrent requests share its cost; no request succeeds before its commit is durable.

SQLite runs in WAL mode with ``synchronous=FULL``: a commit is on the disk before its request is answered.

Write transactions of several processes on one PostgreSQL database run one after the other, as they do on SQLite: each
holds one advisory lock, so that they cannot deadlock. (They would wait for each other in any case, for the row of
``counters``.) Before they commit they notify the other processes of the new stream position; see ``changes``.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import random
import secrets
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    Table,
    TextClause,
    and_,
    create_engine,
    event,
    text,
    tuple_,
)
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as NoFreeConnection
from sqlalchemy.sql.dml import Insert

from homeserver.storage import streams

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")

READER_THREADS = 4
FEDERATION_READER_THREADS = 2
"""How many further threads there are for reads on behalf of other servers."""
LARGE_READER_THREADS = 2
"""And for large answers, to clients and to other servers each."""
GROUP_MAX = 64
"""How many write jobs share one commit at most."""
WRITE_ATTEMPTS = 5
"""How often a transaction is tried that failed because of another process (deadlock, serialization failure)."""
BUSY_TIMEOUT_MS = 10_000
"""How long SQLite waits while another process holds the write lock."""
LOCKED_WAIT_S = 0.01
"""How long to wait before another attempt where SQLite itself does not wait."""
WRITE_LOCK = 7_206_852
"""The PostgreSQL advisory lock that write transactions hold; the number must only differ from those of other locks."""
READ_SLICE_VARIABLES = 500
"""How many values one ``IN (...)`` gets; ``in_slices`` splits longer lists."""
PAIRS_AT_ONCE_MAX = 50
"""How many keys of two columns one ``among`` gets."""

BatchHandler = Callable[[Connection, Sequence[Item]], "Sequence[T | BaseException]"]
"""Handles several jobs at once; returns for each its result, or the exception for its caller."""


class _Readers(Enum):
    """Threads for reads, by kind of caller."""

    CLIENTS = "db-read"
    SERVERS = "db-read-federation"
    LARGE_FOR_CLIENTS = "db-read-large"
    LARGE_FOR_SERVERS = "db-read-federation-large"


_readers: contextvars.ContextVar[_Readers] = contextvars.ContextVar("readers", default=_Readers.CLIENTS)


def reads_for_other_servers() -> None:
    """Let all later reads of the current task run on the threads for other servers."""
    _readers.set(_Readers.SERVERS)


@contextlib.contextmanager
def reads_for_large_answers() -> Iterator[None]:
    """Let the reads of the current task run on the threads for large answers, to clients or to other servers."""
    is_for_server = _readers.get() in (_Readers.SERVERS, _Readers.LARGE_FOR_SERVERS)
    token = _readers.set(_Readers.LARGE_FOR_SERVERS if is_for_server else _Readers.LARGE_FOR_CLIENTS)
    try:
        yield
    finally:
        _readers.reset(token)


def context_for_everybody() -> contextvars.Context:
    """The current context, for a task that works for all callers: its reads run on the threads for clients."""
    context = contextvars.copy_context()
    context.run(_readers.set, _Readers.CLIENTS)
    return context


class DatabaseClosed(RuntimeError):
    """The server stops: nothing is read or written any more."""


UNAVAILABLE = (OperationalError, NoFreeConnection, DatabaseClosed)
"""The errors that mean that the database is unreachable, full or closed, not that a statement is wrong."""


@dataclass(slots=True)
class _Job(Generic[T]):
    """One write with a waiting caller."""

    run: Callable[[Connection], T] | None
    batch: BatchHandler[Any, T] | None
    item: Any
    future: asyncio.Future[T]
    loop: asyncio.AbstractEventLoop


class Database:
    """One database, SQLite or PostgreSQL, as named by ``database.url``."""

    def __init__(
        self, url: str, *, readers: int = READER_THREADS, federation_readers: int = FEDERATION_READER_THREADS
    ) -> None:
        counts = {
            _Readers.CLIENTS: readers,
            _Readers.SERVERS: federation_readers,
            _Readers.LARGE_FOR_CLIENTS: LARGE_READER_THREADS,
            _Readers.LARGE_FOR_SERVERS: LARGE_READER_THREADS,
        }
        self.engine = _create_engine(url, sum(counts.values()))
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self.name = secrets.token_hex(8)
        """Marks this object's announcements, so that others can be told apart; see ``streams.announce``."""
        self._local = threading.local()
        self._reader_connections: list[Connection] = []
        self._readers = {
            kind: ThreadPoolExecutor(count, thread_name_prefix=kind.value) for kind, count in counts.items()
        }
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._writer_connection: Connection | None = None  # used by the writer thread only
        self._announced = -1
        self._writer: threading.Thread | None = None
        self._closed = False
        self._alone = asyncio.Lock()
        self._start_writer()

    # -- for the event loop --------------------------------------------------------------------------------------------

    async def read(self, function: Callable[..., T], *args: Any) -> T:
        """Run ``function(connection, *args)`` in a read transaction on a database thread."""
        self._check_open()
        threads = self._readers[_readers.get()]
        return await asyncio.get_running_loop().run_in_executor(threads, self.read_now, function, *args)

    async def write(self, function: Callable[..., T], *args: Any) -> T:
        """Run ``function(connection, *args)`` in a write transaction; returns after the commit is durable.

        The function may run more than once (a group is rolled back as a whole when one job in it fails), so it must
        have no effect but on the database.
        """
        return await self._submit(lambda connection: function(connection, *args), None, None)

    async def write_batched(self, handler: BatchHandler[Item, T], item: Item) -> T:
        """Pass ``item`` to ``handler``, together with the items of all other callers that wait with the same
        handler.
        """
        return await self._submit(None, handler, item)

    @contextlib.asynccontextmanager
    async def no_other_writers(self) -> AsyncIterator[None]:
        """Block the writes of other processes meanwhile; those of this process continue.

        For a writer whose data another process changes again and again before it can be written. All other processes
        wait, so keep this as short as that write.
        """
        if self.is_sqlite:
            yield  # no other process uses the database
            return
        async with self._alone:
            try:
                # Take it on the writer's connection: its transactions take the same lock, and PostgreSQL grants it
                # again.
                await self.write(_execute, _KEEP_WRITE_LOCK)
                yield
            finally:
                await asyncio.shield(self.write(_execute, _RELEASE_WRITE_LOCK))

    async def _submit(self, run: Callable[[Connection], T] | None, batch: BatchHandler[Item, T] | None, item: Any) -> T:
        self._check_open()
        loop = asyncio.get_running_loop()
        job = _Job(run, batch, item, loop.create_future(), loop)
        self._hand_over(job)
        # A cancelled request must not cancel a write in progress: the writer finishes it.
        return await asyncio.shield(job.future)

    def _check_open(self) -> None:
        if self._closed:
            raise DatabaseClosed("the database is closed")

    # -- for threads, the command line and tests -----------------------------------------------------------------------

    def read_now(self, function: Callable[..., T], *args: Any) -> T:
        """The same as ``read``, for callers on their own thread."""
        for attempt in (1, 2):
            connection = self._reader_connection()
            try:
                with connection.begin():
                    return function(connection, *args)
            except DBAPIError as error:
                if not error.connection_invalidated or attempt == 2:
                    raise
                self._drop_reader_connection()
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def begin(self) -> Iterator[Connection]:
        """A separate write transaction on the calling thread, for the command line and tests."""
        with self.engine.connect() as connection:
            connection = connection.execution_options(homeserver_write=True)
            with self._writing(connection):
                yield connection

    @contextlib.contextmanager
    def _writing(self, connection: Connection) -> Iterator[None]:
        with connection.begin():
            if self.is_sqlite:
                yield
                return
            connection.execute(_TAKE_WRITE_LOCK)
            yield
            announced = streams.announce(connection, self._announced, self.name)
        self._announced = max(self._announced, announced)

    def close(self) -> None:
        """Finish the waiting writes, then close all connections."""
        if self._closed:
            return
        self._closed = True
        self._stop_writer()
        for threads in self._readers.values():
            threads.shutdown(wait=True)
        for connection in self._reader_connections:
            with contextlib.suppress(Exception):
                connection.close()
        self.engine.dispose()

    # -- threads -------------------------------------------------------------------------------------------------------

    # Only the next three methods make the writer a thread: the simulator replaces them (tests/simulation/machine.py).

    def _start_writer(self) -> None:
        self._writer = threading.Thread(target=self._write_loop, name="db-write", daemon=True)
        self._writer.start()

    def _hand_over(self, job: _Job[Any]) -> None:
        self._jobs.put(job)

    def _stop_writer(self) -> None:
        if self._writer is not None:
            self._jobs.put(None)
            self._writer.join()

    def _reader_connection(self) -> Connection:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self.engine.connect()
            if not self.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            self._local.connection = connection
            self._reader_connections.append(connection)
        return connection

    def _drop_reader_connection(self) -> None:
        connection: Connection = self._local.connection
        self._reader_connections.remove(connection)
        self._local.connection = None
        connection.invalidate()
        connection.close()

    def _write_loop(self) -> None:
        stopping = False
        while not stopping:
            group, stopping = self._next_group()
            if group:
                _answer(group, self._run_group(group))
        if self._writer_connection is not None:
            self._writer_connection.close()

    def _open_writer(self) -> Connection:
        if self._writer_connection is None:
            self._writer_connection = self.engine.connect().execution_options(homeserver_write=True)
        return self._writer_connection

    def _drop_writer_if_lost(self) -> bool:
        connection = self._writer_connection
        if connection is None or not connection.invalidated:
            return connection is None
        connection.close()
        self._writer_connection = None
        return True

    def _next_group(self) -> tuple[list[_Job[Any]], bool]:
        group: list[_Job[Any]] = []
        job = self._jobs.get()
        while True:
            if job is None:
                return group, True
            group.append(job)
            if len(group) >= GROUP_MAX:
                return group, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return group, False

    def _run_group(self, group: list[_Job[Any]]) -> list[Any]:
        """The outcome of each job: its result, or the exception for its caller."""
        for attempt in range(1, WRITE_ATTEMPTS + 1):
            all_done = False
            try:
                connection = self._open_writer()
                with self._writing(connection):
                    outcomes = _run_jobs(connection, group)
                    all_done = True
                return outcomes
            except Exception as error:
                lost = self._drop_writer_if_lost()
                if lost and all_done:
                    return [error] * len(group)  # whether it was committed is unknown
                if (lost or _worth_a_retry(error)) and attempt < WRITE_ATTEMPTS:
                    time.sleep(random.uniform(0.001, 0.02) * attempt)
                    continue
                if lost or len(group) == 1:
                    return [error] * len(group)
                break
        # One of the jobs fails: run each on its own, so that the others succeed.
        return [outcome for job in group for outcome in self._run_group([job])]


_TAKE_WRITE_LOCK = text(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")
_KEEP_WRITE_LOCK = text(f"SELECT pg_advisory_lock({WRITE_LOCK})")
_RELEASE_WRITE_LOCK = text("SELECT pg_advisory_unlock_all()")
"""Release it completely: a transaction that is retried takes it several times."""


def _execute(connection: Connection, statement: TextClause) -> None:
    connection.execute(statement)


def _run_jobs(connection: Connection, group: list[_Job[Any]]) -> list[Any]:
    outcomes: list[Any] = [None] * len(group)
    batches: dict[Any, list[int]] = {}
    for index, job in enumerate(group):
        if job.batch is not None:
            batches.setdefault(job.batch, []).append(index)
        else:
            assert job.run is not None
            outcomes[index] = job.run(connection)
    for handler, indexes in batches.items():
        results = handler(connection, [group[index].item for index in indexes])
        for index, result in zip(indexes, results, strict=True):
            outcomes[index] = result
    return outcomes


def _answer(group: list[_Job[Any]], outcomes: list[Any]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for job, outcome in zip(group, outcomes, strict=True):
        by_loop.setdefault(job.loop, []).append((job.future, outcome))
    for loop, answers in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the event loop was closed: no caller waits any more
            loop.call_soon_threadsafe(_resolve, answers)


def _resolve(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in answers:
        if future.done():
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
            # A cancelled caller does not retrieve the exception, which is no reason for asyncio to log a warning.
            future.exception()
        else:
            future.set_result(outcome)


def _worth_a_retry(error: Exception) -> bool:
    if not isinstance(error, DBAPIError):
        return False
    sqlstate = getattr(error.orig, "sqlstate", None)
    return sqlstate in {"40001", "40P01", "23505"} or "database is locked" in str(error.orig)


def _create_engine(url: str, readers: int) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(
            parsed,
            pool_size=readers + 2,
            max_overflow=4,
            connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1000},
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(parsed, pool_size=readers + 2, max_overflow=4, pool_pre_ping=False)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # _begin_sqlite begins the transactions
    cursor = connection.cursor()
    _use_write_ahead_log(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA temp_store=MEMORY")
    cursor.execute("PRAGMA cache_size=-6000")
    cursor.close()


def _use_write_ahead_log(cursor: Any) -> None:
    # The first change to this mode needs the database for itself, and SQLite does not wait for others that make it too.
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(LOCKED_WAIT_S)


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at the beginning, because a read transaction that turns into a write may fail to get it.
    writes = connection.get_execution_options().get("homeserver_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def insert(connection: Connection, table: Table) -> Any:
    """The dialect's own INSERT, which has ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
    if connection.dialect.name == "sqlite":
        return sqlite_insert(table)
    # Import it here, because a server on SQLite does not need it.
    from sqlalchemy.dialects.postgresql import insert as postgresql_insert

    return postgresql_insert(table)


def upsert(connection: Connection, table: Table, rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
    """Insert rows; where ``keys`` exist, replace all other columns of the rows."""
    if not rows:
        return
    statement: Insert = insert(connection, table)
    changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}  # type: ignore[attr-defined]
    statement = (
        statement.on_conflict_do_update(index_elements=list(keys), set_=changed)  # type: ignore[attr-defined]
        if changed
        else statement.on_conflict_do_nothing(index_elements=list(keys))  # type: ignore[attr-defined]
    )
    connection.execute(statement, list(rows))


def among(columns: Sequence[Column[Any]], keys: Sequence[Sequence[Any]]) -> ColumnElement[bool]:
    """The condition that the columns, which an index begins with, have the values of one of the keys.

    With ``(a, b) IN (...)`` alone, SQLite reads the whole table; the conditions on each column make it use the index.
    Pass few keys at once (``PAIRS_AT_ONCE_MAX``): it tries every value of one column with every value of the others.
    """
    each = [column.in_({key[index] for key in keys}) for index, column in enumerate(columns)]
    return and_(*each, tuple_(*columns).in_(keys))


def in_slices(values: Sequence[T], size: int = READ_SLICE_VARIABLES) -> Iterator[Sequence[T]]:
    """Split ``values`` into pieces for ``IN (...)``."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
