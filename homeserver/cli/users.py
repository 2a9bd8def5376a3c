"""``homeserver users``: accounts, also while the server runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from homeserver.cli.common import (
    ConfigOption,
    JsonOption,
    command_group,
    load_config,
    now_ms,
    open_database,
    print_json,
    print_table,
    time_text,
)
from homeserver.errors import HomeserverError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from homeserver.storage.accounts import User

USERS_PER_READ = 1000

commands = command_group("Accounts on this server.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A user name, such as alice, or a whole user ID.")]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(
        "--password-file", metavar="FILE", help="Take the first line of this file as the password instead of asking."
    ),
]


@commands.command()
def create(
    name: NameArgument,
    password_file: PasswordFileOption = None,
    admin: Annotated[bool, typer.Option("--admin", help="An administrator of the server.")] = False,
    config: ConfigOption = None,
) -> None:
    """Create an account."""
    from homeserver.accounts import administration
    from homeserver.accounts.registration import user_id_for

    loaded = load_config(config)
    user_id = user_id_for(_localpart(name, loaded.server_name), loaded.server_name)
    password_hash = _hash(_read_password(password_file))
    with open_database(loaded, create=True) as database, database.begin() as connection:
        administration.create_user(connection, user_id, password_hash, is_admin=admin, now_ms=now_ms())
    typer.echo(user_id)


@commands.command("list")
def list_users(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List all accounts, deactivated ones included."""
    with open_database(load_config(config)) as database:
        users = database.read_now(_all_users)
    if as_json:
        print_json(
            [
                {
                    "user_id": user.user_id,
                    "admin": user.is_admin,
                    "created_ts": user.created_ts,
                    "deactivated_ts": user.deactivated_ts,
                }
                for user in users
            ]
        )
    else:
        rows = [(u.user_id, u.is_admin, time_text(u.created_ts), time_text(u.deactivated_ts)) for u in users]
        print_table(("USER ID", "ADMIN", "CREATED", "DEACTIVATED"), rows)


@commands.command("set-password")
def set_password(name: NameArgument, password_file: PasswordFileOption = None, config: ConfigOption = None) -> None:
    """Set a user's password and log the user out everywhere."""
    from homeserver.accounts import administration

    loaded = load_config(config)
    user_id = _user_id(name, loaded.server_name)
    password_hash = _hash(_read_password(password_file))
    with open_database(loaded) as database, database.begin() as connection:
        administration.set_password(connection, user_id, password_hash)
    typer.echo(f"set the password of {user_id}")


@commands.command()
def deactivate(name: NameArgument, config: ConfigOption = None) -> None:
    """Close an account for good: it is logged out everywhere, and nobody can log in or take the name again."""
    from homeserver.accounts import administration

    loaded = load_config(config)
    user_id = _user_id(name, loaded.server_name)
    with open_database(loaded) as database, database.begin() as connection:
        administration.deactivate_user(connection, user_id, now_ms())
    typer.echo(f"deactivated {user_id}")


def _all_users(connection: Connection) -> list[User]:
    from homeserver.accounts import administration

    users: list[User] = []
    while page := administration.list_users(connection, after=users[-1].user_id if users else "", limit=USERS_PER_READ):
        users += page
    return users


def _localpart(name: str, server_name: str) -> str:
    if not name.startswith("@"):
        return name
    localpart, _, domain = name[1:].partition(":")
    if domain != server_name:
        raise HomeserverError(f"{name} is not a user of this server, {server_name}")
    return localpart


def _user_id(name: str, server_name: str) -> str:
    return f"@{_localpart(name, server_name)}:{server_name}"


def _hash(password: str) -> str:
    from homeserver.accounts.passwords import Passwords

    passwords = Passwords()
    try:
        return passwords.hash_now(password)
    finally:
        passwords.close()


def _read_password(file: Path | None) -> str:
    if file is not None:
        with file.open(encoding="utf-8") as lines:
            return lines.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    return password
