"""``homeserver rooms``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from homeserver.cli.common import (
    ConfigOption,
    JsonOption,
    command_group,
    load_config,
    open_database,
    print_json,
    print_table,
    time_text,
)
from homeserver.errors import HomeserverError

commands = command_group("Rooms on this server.")


@commands.command("list")
def list_rooms(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the rooms that this server takes part in or took part in."""
    from homeserver.storage import room_listing

    with open_database(load_config(config)) as database:
        rooms = database.read_now(room_listing.list_rooms)
    if as_json:
        print_json([asdict(room) for room in rooms])
    else:
        headings = ("ROOM ID", "NAME", "ALIAS", "JOINED", "VERSION", "KNOWN SINCE")
        rows = [
            (r.room_id, r.name, r.canonical_alias, r.joined_members, r.version, time_text(r.created_ts)) for r in rooms
        ]
        print_table(headings, rows)


@commands.command()
def show(
    room: Annotated[str, typer.Argument(metavar="ROOM", help="A room ID or a canonical alias.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one room: its settings, members and size."""
    from homeserver.storage import room_listing

    with open_database(load_config(config)) as database:
        details = database.read_now(room_listing.show_room, room)
    if details is None:
        raise HomeserverError(f"this server does not know a room {room}")
    facts = asdict(details)
    facts = {**facts.pop("summary"), **facts}
    if as_json:
        print_json(facts)
        return
    members: dict[str, list[str]] = facts.pop("members")
    facts["created_ts"] = time_text(facts["created_ts"])
    rows = [(name.replace("_", " ").removesuffix(" ts"), value) for name, value in facts.items()]
    print_table(("FACT", "VALUE"), rows)
    typer.echo()
    rows = [(user_id, membership) for membership, user_ids in members.items() for user_id in user_ids]
    print_table(("MEMBER", "MEMBERSHIP"), rows)
