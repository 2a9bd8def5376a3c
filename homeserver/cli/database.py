"""``homeserver db``."""

from __future__ import annotations

from dataclasses import asdict

import typer

from homeserver.cli.common import (
    ConfigOption,
    JsonOption,
    check_server_name,
    command_group,
    load_config,
    open_database,
    print_json,
)
from homeserver.errors import HomeserverError

commands = command_group("The database: migrations and an integrity check.")


@commands.command()
def upgrade(config: ConfigOption = None) -> None:
    """Run all migrations that are missing."""
    from homeserver.storage import migrate

    loaded = load_config(config)
    check_server_name(loaded)
    changed = migrate.upgrade(loaded.database.url)
    typer.echo(f"upgraded to {migrate.head()}" if changed else f"at {migrate.head()} already")


@commands.command()
def current(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the revision of the database and the one that this version needs."""
    from homeserver.storage import migrate

    revision, needed = migrate.current(load_config(config).database.url), migrate.head()
    if as_json:
        print_json({"current": revision, "head": needed, "up_to_date": revision == needed})
    else:
        standing = "up to date" if revision == needed else f"this version needs {needed}"
        typer.echo(f"{revision or 'none'} ({standing})")


@commands.command()
def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check that the event graph and the state are consistent; exit status 1 if they are not."""
    from homeserver.storage import integrity

    loaded = load_config(config)
    with open_database(loaded, any_server=True) as database:
        counts = database.read_now(integrity.counts)
        problems = database.read_now(integrity.wrong_server_name, loaded.server_name)
        problems += database.read_now(integrity.find_problems)
    if as_json:
        print_json({"ok": not problems, "checked": counts, "problems": [asdict(problem) for problem in problems]})
    else:
        for problem in problems:
            typer.echo(str(problem))
        typer.echo(f"checked {counts['events']} events in {counts['rooms']} rooms")
    if problems:
        raise HomeserverError(f"the database has {len(problems)} kinds of problems")
