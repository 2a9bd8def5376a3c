"""All commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from homeserver import __version__
from homeserver.cli import config, database, keys, rooms, serving, users

application = typer.Typer(
    name="homeserver",
    help="A Matrix homeserver.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"homeserver {__version__}")
        raise typer.Exit


@application.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A Matrix homeserver."""


application.command("init")(serving.init)
application.command("serve")(serving.serve)
application.add_typer(config.commands, name="config")
application.add_typer(keys.commands, name="keys")
application.add_typer(users.commands, name="users")
application.add_typer(rooms.commands, name="rooms")
application.add_typer(database.commands, name="db")
