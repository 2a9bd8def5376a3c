"""What the commands share: options, reading the configuration, printing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from homeserver.config import Config
    from homeserver.storage.database import Database

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration file; else HOMESERVER_CONFIG, ./homeserver.toml, ./data/homeserver.toml.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def command_group(help_text: str) -> typer.Typer:
    """A group of commands, such as ``homeserver keys``."""
    return typer.Typer(help=help_text, rich_markup_mode=None)


def load_config(path: Path | None) -> Config:
    """Read the configuration, and set up logging as it says. Raises ConfigurationError."""
    from homeserver.config import Config
    from homeserver.logging import configure_logging

    config = Config.load(path)
    configure_logging(config.logging)
    return config


@contextmanager
def open_database(config: Config, *, create: bool = False, any_server: bool = False) -> Iterator[Database]:
    """Open the database, which must be migrated already, or with ``create`` may be missing.

    Unless ``any_server`` is given, it must not belong to a server of another name. Raises HomeserverError.
    """
    from homeserver.storage import migrate, server_identity
    from homeserver.storage.database import Database

    if create and migrate.current(config.database.url) is None:
        migrate.upgrade(config.database.url)
    migrate.require_current(config.database.url)
    database = Database(config.database.url, readers=1)
    try:
        if create:
            claim_database(database, config)
        elif not any_server:
            database.read_now(server_identity.check_name, config.server_name)
        yield database
    finally:
        database.close()


def check_server_name(config: Config) -> None:
    """Raise ConfigurationError if there is a database, and it belongs to a server of another name.

    For commands that change something without opening the database, or before it is migrated. A database that cannot
    be reached is passed over: a key, for instance, may have to be replaced just then.
    """
    from sqlalchemy.exc import OperationalError

    from homeserver.storage import migrate

    try:
        recorded = migrate.recorded_server_name(config.database.url)
    except OperationalError:
        typer.echo("homeserver: the database cannot be reached; it was not checked whose it is", err=True)
        return
    if recorded is not None and recorded != config.server_name:
        from homeserver.errors import ConfigurationError
        from homeserver.storage.server_identity import mismatch

        raise ConfigurationError(mismatch(recorded, config.server_name))


def claim_database(database: Database, config: Config) -> None:
    """Record that the database belongs to the configured server. Raises ConfigurationError if it belongs to another
    one.
    """
    from homeserver.storage import server_identity

    if database.read_now(server_identity.recorded_name) == config.server_name:
        return  # no write needed, as at every start but the first
    with database.begin() as connection:
        server_identity.claim(connection, config.server_name)


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def print_json(value: Any) -> None:
    """Print JSON, for other programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print columns as wide as their widest cell, for people; an empty cell is a dash."""
    cells = [list(headings), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    for row in cells:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    # Names come from other people: do not let them send control characters to the terminal.
    text = "" if value is None else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return text or "-"


def time_text(milliseconds: int | None) -> str | None:
    """A time in milliseconds since the epoch, as text."""
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
