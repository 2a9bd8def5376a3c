"""Databases for tests: each test that asks for one gets its own, migrated, once on SQLite and once on PostgreSQL."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from homeserver.storage import migrate
from homeserver.storage.database import Database
from tests.fakes.servers import Servers
from tests.postgresql import PostgresqlServer

RUN_DIRECTORY = "HOMESERVER_TEST_RUN_DIRECTORY"
"""An environment variable by which the processes of one test run find what they share."""


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # not in the workers of pytest-xdist: they share what this process makes
        # Right under /tmp: the path of a Unix socket may have about 100 characters.
        os.environ[RUN_DIRECTORY] = tempfile.mkdtemp(prefix="homeserver-tests-", dir="/tmp")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        directory = Path(os.environ.pop(RUN_DIRECTORY))
        PostgresqlServer(directory).stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgresql_server() -> PostgresqlServer:
    """The PostgreSQL server of this test run, or the one that ``HOMESERVER_TEST_POSTGRES`` names."""
    server = PostgresqlServer(Path(os.environ[RUN_DIRECTORY]), os.environ.get("HOMESERVER_TEST_POSTGRES"))
    server.start()
    return server


@pytest.fixture
def empty_postgresql_url(postgresql_server: PostgresqlServer) -> Iterator[str]:
    """A PostgreSQL database with nothing in it."""
    with postgresql_server.database(template=None) as url:
        yield url


@pytest.fixture
def postgresql_url(postgresql_server: PostgresqlServer) -> Iterator[str]:
    """A migrated PostgreSQL database."""
    with postgresql_server.database(template=postgresql_server.migrated_template()) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate.upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture
def sqlite_url(migrated_sqlite_file: Path, tmp_path: Path) -> str:
    """A migrated SQLite database."""
    file = tmp_path / "homeserver.db"
    shutil.copyfile(migrated_sqlite_file, file)
    return f"sqlite:///{file}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database of each kind in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The same, opened."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_database_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, migrated_sqlite_file: Path
) -> Iterator[str]:
    """A migrated database of each kind, for all tests of a module: each test uses rooms of its own."""
    if request.param == "sqlite":
        file = tmp_path_factory.mktemp("shared") / "homeserver.db"
        shutil.copyfile(migrated_sqlite_file, file)
        yield f"sqlite:///{file}"
        return
    server: PostgresqlServer = request.getfixturevalue("postgresql_server")
    with server.database(template=server.migrated_template()) as url:
        yield url


@pytest.fixture(scope="module")
def shared_database(shared_database_url: str) -> Iterator[Database]:
    """The same, opened."""
    database = Database(shared_database_url)
    yield database
    database.close()


@pytest.fixture
def servers(tmp_path: Path, migrated_sqlite_file: Path) -> Servers:
    """Servers that share a network. Use it as a context manager: its servers stop at the end."""
    return Servers(tmp_path, migrated_sqlite_file)
