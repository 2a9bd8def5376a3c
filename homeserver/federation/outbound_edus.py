"""EDUs on their way to one server: the newest receipt and typing state of each user, and nothing twice.

They are kept in memory only: a receipt or a typing notification that gets lost is made good by the next one.

https://spec.matrix.org/v1.19/server-server-api/#edus
"""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.protocol.json_types import JsonObject

ENTRIES_MAX = 1000
"""Receipts, and typing states, that wait for one server; the oldest go first."""
RECEIPTS_PER_EDU_MAX = 200


@dataclass(frozen=True, slots=True)
class Receipt:
    """A read receipt of one of our users."""

    room_id: str
    user_id: str
    event_id: str
    ts: int
    thread_id: str | None = None
    """None for an unthreaded receipt."""


class EduBuffer:
    """What waits for one server."""

    def __init__(self) -> None:
        self._receipts: dict[tuple[str, str, str | None], Receipt] = {}
        self._typing: dict[tuple[str, str], bool] = {}

    def __bool__(self) -> bool:
        return bool(self._receipts or self._typing)

    def add_receipt(self, receipt: Receipt) -> None:
        """Send this receipt; it replaces what the user had read before."""
        key = (receipt.room_id, receipt.user_id, receipt.thread_id)
        self._receipts.pop(key, None)
        self._receipts[key] = receipt
        if len(self._receipts) > ENTRIES_MAX:
            del self._receipts[next(iter(self._receipts))]

    def add_typing(self, room_id: str, user_id: str, typing: bool) -> None:
        """Send that the user types, or has stopped."""
        self._typing.pop((room_id, user_id), None)
        self._typing[room_id, user_id] = typing
        if len(self._typing) > ENTRIES_MAX:
            del self._typing[next(iter(self._typing))]

    def take(self, limit: int) -> list[JsonObject]:
        """At most ``limit`` EDUs, which are then no longer here."""
        edus = self._take_receipts(limit)
        while self._typing and len(edus) < limit:
            (room_id, user_id), typing = next(iter(self._typing.items()))
            del self._typing[room_id, user_id]
            content = {"room_id": room_id, "user_id": user_id, "typing": typing}
            edus.append({"edu_type": "m.typing", "content": content})
        return edus

    def clear(self) -> None:
        """Forget everything."""
        self._receipts.clear()
        self._typing.clear()

    def _take_receipts(self, limit: int) -> list[JsonObject]:
        """One EDU has room for one receipt of each user in each room: threads need further ones."""
        contents: list[JsonObject] = []
        sizes: list[int] = []
        for key, receipt in list(self._receipts.items()):
            place = next(
                (
                    index
                    for index, content in enumerate(contents)
                    if sizes[index] < RECEIPTS_PER_EDU_MAX
                    and receipt.user_id not in content.get(receipt.room_id, {"m.read": {}})["m.read"]
                ),
                None,
            )
            if place is None:
                if len(contents) == limit:
                    continue
                contents.append({})
                sizes.append(0)
                place = len(contents) - 1
            of_room = contents[place].setdefault(receipt.room_id, {"m.read": {}})["m.read"]
            of_room[receipt.user_id] = {"event_ids": [receipt.event_id], "data": _data(receipt)}
            sizes[place] += 1
            del self._receipts[key]
        return [{"edu_type": "m.receipt", "content": content} for content in contents]


def _data(receipt: Receipt) -> JsonObject:
    data: JsonObject = {"ts": receipt.ts}
    if receipt.thread_id is not None:
        data["thread_id"] = receipt.thread_id
    return data
