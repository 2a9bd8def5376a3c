"""Migrations: the revision of the database, and upgrading it to the one that this version needs.

Migrations are files ``NNNN_what.py``, in ``alembic/versions`` of a checkout and in ``homeserver/storage/migrations`` of
an installed wheel; the number is the revision. The newest file name and one SELECT tell whether one is missing, so a
server that is up to date does not even import alembic when it starts.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, NullPool, column, create_engine, event, inspect, select, table, text
from sqlalchemy.engine import make_url

from homeserver.errors import HomeserverError

if TYPE_CHECKING:
    from alembic.config import Config as AlembicConfig

logger = logging.getLogger(__name__)

VERSION_TABLE = "alembic_version"
POSTGRESQL_LOCK = 7_206_851
"""The advisory lock that a migrating process holds; the number must only differ from our other locks."""


def upgrade(database_url: str) -> bool:
    """Run all migrations that are missing, in one transaction; returns whether there were any.

    Processes that start at the same moment wait for each other. Raises HomeserverError when the database was migrated
    by a newer version of the homeserver, or belongs to another program.
    """
    if current(database_url) == head():
        return False
    with _engine(database_url).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": POSTGRESQL_LOCK})
        before = _revision(connection)
        _refuse_unknown(before)
        if before == head():
            return False  # another process has done it
        if before is None:
            _refuse_tables_of_others(connection)
        logger.info("migrating the database from %s to %s", before or "nothing", head())
        _run_migrations(connection)
    return True


def current(database_url: str) -> str | None:
    """The revision of the database; None if it has no tables of ours yet. Creates nothing."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return None
    with _engine(database_url).connect() as connection:
        return _revision(connection)


def recorded_server_name(database_url: str) -> str | None:
    """The name of the server that a database of any revision belongs to; None if it says none. Creates nothing."""
    if current(database_url) is None:
        return None
    with _engine(database_url).connect() as connection:
        if not inspect(connection).has_table("server_identity"):
            return None  # from before the name was recorded
        name: str | None = connection.scalar(select(column("server_name")).select_from(table("server_identity")))
        return name


def head() -> str:
    """The revision that this version of the homeserver needs."""
    return known_revisions()[-1]


def known_revisions() -> list[str]:
    """All revisions, oldest first."""
    files = (migrations_directory() / "versions").glob("[0-9]*_*.py")
    return sorted(file.name.partition("_")[0] for file in files)


def require_current(database_url: str) -> None:
    """For commands that read a database: raise HomeserverError unless it has the revision that this version needs."""
    revision = current(database_url)
    _refuse_unknown(revision)
    if revision != head():
        found = f"at revision {revision}" if revision else "empty"
        raise HomeserverError(f"the database is {found}, this version needs {head()}: run `homeserver db upgrade`")


def migrations_directory() -> Path:
    """Alembic's script directory: inside an installed wheel, or that of the checkout."""
    packaged = Path(__file__).parent / "migrations"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "alembic"


def alembic_config(connection: Connection) -> AlembicConfig:
    """Alembic's own configuration, for running its commands on a connection."""
    from alembic.config import Config as AlembicConfig

    config = AlembicConfig()
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _run_migrations(connection: Connection) -> None:
    from alembic import command

    command.upgrade(alembic_config(connection), "head")


def _refuse_unknown(revision: str | None) -> None:
    if revision is not None and revision not in known_revisions():
        raise HomeserverError(
            f"the database is at revision {revision}, which this version (up to {head()}) does not know: "
            "it was migrated by a newer version"
        )


def _refuse_tables_of_others(connection: Connection) -> None:
    """A database without any migration of ours is a new one only if it has no tables."""
    others = [name for name in inspect(connection).get_table_names() if name != VERSION_TABLE]
    if others:
        raise HomeserverError(
            f"the database has tables, such as {others[0]}, but no migration of the homeserver: it belongs to another "
            "program, or is damaged. Give the homeserver a database of its own (database.url)"
        )


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))
    return revision


def _engine(database_url: str) -> Engine:
    """An engine without a pool; on SQLite each transaction, including DDL, holds the write lock from its beginning."""
    url = make_url(database_url)
    engine = create_engine(url, poolclass=NullPool)
    if url.get_backend_name() == "sqlite":
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
        event.listen(engine, "connect", _leave_transactions_to_us)
        event.listen(engine, "begin", _begin_immediately)
    return engine


def _leave_transactions_to_us(connection: Any, _record: Any) -> None:
    connection.isolation_level = None


def _begin_immediately(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
