"""``homeserver rooms``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

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
    from homeserver.storage import ownership, room_listing

    loaded = load_config(config)
    with open_database(loaded) as database:
        details = database.read_now(room_listing.show_room, room)
        if details is None:
            raise HomeserverError(f"this server does not know a room {room}")
        charge = database.read_now(ownership.ownership_of, details.summary.room_id, loaded.server_name)
    facts = asdict(details)
    facts = {**facts.pop("summary"), **facts, **(asdict(charge) if charge is not None else {})}
    if as_json:
        print_json(facts)
        return
    members: dict[str, list[str]] = facts.pop("members")
    former: list[dict[str, Any]] = facts.pop("could_have_prevented", [])
    facts["created_ts"] = time_text(facts["created_ts"])
    rows = [(name.replace("_", " ").removesuffix(" ts"), _fact(value)) for name, value in facts.items()]
    print_table(("FACT", "VALUE"), rows)
    if former:
        typer.echo()
        print_table(
            ("WAS OWNER, OF THIS SERVER", "MEMBERSHIP", "OWNER AGAIN ON RETURN", "ACCOUNT CLOSED"),
            [(f["user_id"], f["membership"], f["is_owner_on_return"], f["is_closed"]) for f in former],
        )
    typer.echo()
    rows = [(user_id, membership) for membership, user_ids in members.items() for user_id in user_ids]
    print_table(("MEMBER", "MEMBERSHIP"), rows)


def _fact(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else value


@commands.command()
def ownerless(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the rooms that have joined users but no Owner. ``rooms show`` tells who could change that."""
    from homeserver.storage import ownership, room_listing

    loaded = load_config(config)
    with open_database(loaded) as database:
        found = database.read_now(ownership.ownerless_rooms, loaded.server_name)
        names = {room.room_id: room for room in database.read_now(room_listing.list_rooms)} if found else {}
    if as_json:
        print_json(
            [
                {
                    **asdict(room),
                    "name": names[room.room_id].name,
                    "canonical_alias": names[room.room_id].canonical_alias,
                }
                for room in found
            ]
        )
        return
    rows = [(r.room_id, names[r.room_id].name, r.joined_members, r.local_members) for r in found]
    print_table(("ROOM ID", "NAME", "JOINED", "OF THIS SERVER"), rows)
