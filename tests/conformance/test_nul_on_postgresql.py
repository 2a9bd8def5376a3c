"""U+0000, which JSON can hold and PostgreSQL cannot: in every text of every request, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.catalogue import Scene
from tests.conformance.conftest import running
from tests.conformance.odd_events import next_pdu, paths_in, resigned, with_value
from tests.conformance.test_client_input import FREE_CONTENT, NAMES_THAT_ARE_TAKEN, examples_with_body
from tests.conformance.test_federation_input import (
    CONTENTS,
    EDUS,
    EDUS_AT_ONCE,
    FORKS_AT_ONCE,
    SharedRoom,
    in_batches,
    transaction,
)
from tests.conformance.world import REMOTE, V1, World, fine, path_of
from tests.postgresql import PostgresqlServer

NULS: tuple[Any, ...] = ("\0", "a\0b", "@a\0:b", "!a\0:b", "$a\0", "#a\0:b", ["\0"], ["$\0"], {"\0": "\0"})


@pytest.fixture(scope="module")
def postgresql_world(
    tmp_path_factory: pytest.TempPathFactory, migrated_sqlite_file: Path, postgresql_server: PostgresqlServer
) -> Iterator[World]:
    with postgresql_server.database(template=postgresql_server.migrated_template()) as url:
        directory = tmp_path_factory.mktemp("postgresql")
        yield from running(directory, migrated_sqlite_file, database={"url": url})


def test_in_what_clients_send(postgresql_world: World) -> None:
    world = postgresql_world
    for example in examples_with_body(Scene(world)):
        is_free = any(part in example.endpoint.path for part in FREE_CONTENT)
        for path in paths_in(example.body):
            usable = example.body
            if path[0] not in NAMES_THAT_ARE_TAKEN:
                usable = {name: value for name, value in usable.items() if name not in NAMES_THAT_ARE_TAKEN}
            for nul in NULS[:2] if is_free else NULS:
                world.ask(example.method, example.path, with_value(usable, path, nul), example.token)


def test_in_what_servers_send(postgresql_world: World) -> None:
    world = postgresql_world
    shared = SharedRoom(world, "11")
    room = shared.room
    pdus: list[Any] = []
    for kind, content, key in CONTENTS[:-2]:
        pdu = next_pdu(room, "zoe", kind, {"membership": "join"} if kind == "m.room.member" else {}, key)
        contents = [with_value(content, path, nul) for path in paths_in(content) for nul in NULS[:3]]
        pdus += [resigned({**pdu, "content": changed}, room.version, REMOTE) for changed in contents]
        fields = ("type", "state_key", "sender", "room_id", "prev_events", "auth_events", "redacts", "origin")
        pdus += [resigned({**pdu, field: nul}, room.version, REMOTE) for field in fields for nul in NULS]
    whole = [
        {"edu_type": kind, "content": {room.room_id if name == "{room}" else name: value}}
        for kind, content in EDUS.items()
        for name, value in content.items()
    ]
    edus = [with_value(edu, path, nul) for edu in whole for path in paths_in(edu) for nul in NULS]
    for batch in in_batches(pdus, FORKS_AT_ONCE):
        transaction(world, batch)
        shared.merge()
    for batch in in_batches(edus, EDUS_AT_ONCE):
        transaction(world, (), batch)
    for path in paths_in({"server_keys": {REMOTE: {"ed25519:1": {"minimum_valid_until_ts": 1}}}}):
        for nul in NULS:
            wanted = with_value({"server_keys": {REMOTE: {"ed25519:1": {"minimum_valid_until_ts": 1}}}}, path, nul)
            world.ask_signed("POST", "/_matrix/key/v2/query", wanted)
    missing = {"earliest_events": ["$\0"], "latest_events": ["$\0"], "limit": 10}
    fine(world.ask_signed("POST", f"{V1}{path_of('get_missing_events', room.room_id)}", missing))
    fine(world.ask("GET", "/sync"))
