"""EDUs waiting for one server: only the newest receipt and typing state of each user.

They are kept in memory only: the next receipt or typing notification makes up for a lost one.

https://spec.matrix.org/v1.19/server-server-api/#edus
"""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.protocol.json_types import JsonObject

ENTRIES_MAX = 1000
"""How many receipts, and typing states, wait for one server; the oldest are dropped first."""
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
    """The EDUs waiting for one server."""

    def __init__(self) -> None:
        self._receipts: dict[tuple[str, str, str | None], Receipt] = {}
        self._typing: dict[tuple[str, str], bool] = {}

    def __bool__(self) -> bool:
        return bool(self._receipts or self._typing)

    def add_receipt(self, receipt: Receipt) -> None:
        """Add a receipt; it replaces an earlier one of the same user and thread."""
        key = (receipt.room_id, receipt.user_id, receipt.thread_id)
        self._receipts.pop(key, None)
        self._receipts[key] = receipt
        if len(self._receipts) > ENTRIES_MAX:
            del self._receipts[next(iter(self._receipts))]

    def add_typing(self, room_id: str, user_id: str, typing: bool) -> None:
        """Add that the user types, or has stopped."""
        self._typing.pop((room_id, user_id), None)
        self._typing[room_id, user_id] = typing
        if len(self._typing) > ENTRIES_MAX:
            del self._typing[next(iter(self._typing))]

    def take(self, limit: int) -> list[JsonObject]:
        """Remove and return at most ``limit`` EDUs."""
        edus = self._take_receipts(limit)
        while self._typing and len(edus) < limit:
            (room_id, user_id), typing = next(iter(self._typing.items()))
            del self._typing[room_id, user_id]
            content = {"room_id": room_id, "user_id": user_id, "typing": typing}
            edus.append({"edu_type": "m.typing", "content": content})
        return edus

    def clear(self) -> None:
        """Drop everything."""
        self._receipts.clear()
        self._typing.clear()

    def _take_receipts(self, limit: int) -> list[JsonObject]:
        """Build the receipt EDUs. One EDU holds one receipt of each user in each room: other threads need further
        EDUs.
        """
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
