"""A server to attack, and what an attack needs to do so."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

from tests.abuse.http import User
from tests.abuse.remote import RemoteServer
from tests.interop.servers import ROOT, Authority, OurServer
from tests.postgresql import PostgresqlServer

T = TypeVar("T")
MIB = 1024 * 1024
THREADS_MAX = 500


class Stage:
    """One server with its database. An attack makes its users and its remote servers here."""

    def __init__(self, server: OurServer, authority: Authority) -> None:
        self.server = server
        self._authority = authority
        self._numbers = itertools.count(1)
        self._closing = ExitStack()

    @property
    def base_url(self) -> str:
        """Where clients reach the server."""
        return self.server.base_url

    def user(self, localpart: str = "user") -> User:
        """A new user of the server; a number makes the name new."""
        user = User.register(self.base_url, f"{localpart}{next(self._numbers)}")
        self._closing.callback(user.close)
        return user

    def remote(self) -> RemoteServer:
        """A new remote server, which is stopped when the attack is over."""
        remote = RemoteServer(self._authority)
        self._closing.callback(remote.stop)
        return remote

    def closing(self, callback: Callable[[], object]) -> None:
        """Do this when the attack is over, whatever came of it."""
        self._closing.callback(callback)

    def at_once(self, count: int, act: Callable[[int], T]) -> list[T | Exception]:
        """Call ``act`` with 0 to ``count - 1``, each in a thread; the results, or what was raised in their place."""

        def guarded(number: int) -> T | Exception:
            try:
                return act(number)
            except Exception as error:
                return error

        with ThreadPoolExecutor(min(count, THREADS_MAX)) as threads:
            return list(threads.map(guarded, range(count)))

    def in_background(self, act: Callable[[], Any]) -> threading.Thread:
        """Begin this in a thread, and go on; what it raises is dropped."""

        def guarded() -> None:
            with contextlib.suppress(Exception):
                act()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def end(self) -> None:
        """After an attack."""
        self._closing.close()

    # -- what is measured ----------------------------------------------------------------------------------------------

    def rows(self) -> dict[str, int]:
        """How many rows each table of the server's database has."""
        url = make_url(self.server.database_url)
        if url.get_backend_name() == "sqlite":
            file = self.server.config_file.parent / (url.database or "")
            with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=60)) as connection:
                names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
                return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names}
        with psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)) as database:
            found = database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            counts = {}
            for (name,) in found:
                row = database.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name))).fetchone()
                counts[name] = row[0] if row else 0
            return counts

    def forget_peak(self) -> None:
        """Let the peak of the server's memory begin at what it has now (on Linux)."""
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.server.pid}/clear_refs").write_text("5")

    def memory_mib(self) -> tuple[float, float] | None:
        """The server's resident memory, now and at its peak; nothing where there is no /proc."""
        try:
            lines = Path(f"/proc/{self.server.pid}/status").read_text().splitlines()
        except OSError:
            return None
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest}
        return kib["VmRSS"] / 1024, kib["VmHWM"] / 1024


class Stages:
    """Makes stages: new servers on new databases in one folder."""

    def __init__(self, directory: Path, checkout: Path = ROOT, postgresql: PostgresqlServer | None = None) -> None:
        self._directory = directory
        self._checkout = checkout
        self._postgresql = postgresql
        self._authority = Authority(directory / "authority")
        self._numbers = itertools.count(1)

    @contextmanager
    def new(self, database: str, settings: str = "") -> Iterator[Stage]:
        """A running server with the limits that the configuration sets without being asked."""
        with ExitStack() as stack:
            options = {}
            if database == "postgresql":
                assert self._postgresql is not None
                options["database_url"] = stack.enter_context(self._postgresql.database(template=None))
            server = OurServer(
                f"victim{next(self._numbers)}",
                self._directory,
                self._authority,
                settings=settings,
                checkout=self._checkout,
                has_rate_limits=True,
                **options,
            )
            stack.callback(server.kill)
            server.start()
            yield Stage(server, self._authority)
