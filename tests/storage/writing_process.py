"""A process that writes until it is killed, and notes each write once it was answered for (see test_database.py)."""

from __future__ import annotations

import asyncio
import os
import sys

from sqlalchemy import Connection

from homeserver.storage import streams
from homeserver.storage.database import Database, insert
from homeserver.storage.tables import account_data


def put(connection: Connection) -> int:
    position = streams.next_position(connection)
    row = {"user_id": "w", "room_id": "", "type": f"n{position}", "content": b"{}", "position": position}
    connection.execute(insert(connection, account_data).values(row))
    return position


async def main(url: str, note: str) -> None:
    database = Database(url)
    file = os.open(note, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    async def write_on() -> None:
        while True:
            position = await database.write(put)
            os.write(file, b"%d\n" % position)
            sys.stdout.write("x\n")
            sys.stdout.flush()

    await asyncio.gather(*(write_on() for _ in range(5)))


asyncio.run(main(sys.argv[1], sys.argv[2]))
