"""Caches which rooms users are in and whom they ignore."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from homeserver.caches import WeightedCache
from homeserver.storage.sync_streams import Standing

VIEWS_BYTES_MAX = 24 * 2**20
"""How much memory the views may use, of all users together."""
STANDING_BYTES = 450
"""The approximate memory of a membership: the room's ID and the sender's, and a dictionary entry."""
IGNORED_BYTES = 250
IGNORED_USERS_TYPE = "m.ignored_user_list"


@dataclass(frozen=True, slots=True)
class View:
    """Which rooms a user is in and whom the user ignores; right from ``position`` on until one of them changes."""

    position: int
    joined: dict[str, Standing]
    ignored: frozenset[str]


class Views:
    """The views of users who synced recently."""

    def __init__(self) -> None:
        self._views: WeightedCache[str, View] = WeightedCache("views of users", VIEWS_BYTES_MAX, _weigh)

    def get(self, user_id: str) -> View | None:
        """The last view of a user, or None. The caller checks whether it is still right."""
        return self._views.get(user_id)

    def advance(self, user_id: str, view: View, position: int, ignored: frozenset[str]) -> View:
        """The view at a later position, if the user has not joined or left a room since, with these ignored users.

        It is kept unless another request has stored a newer one meanwhile.
        """
        advanced = View(position, view.joined, ignored)
        if self._views.peek(user_id) is view:
            self._views.put(user_id, advanced)
        return advanced

    def put(self, user_id: str, position: int, standings: Iterable[Standing], ignored: frozenset[str]) -> View:
        """Store and return the view that was read at a position, or return the stored one if it is newer."""
        joined = {standing.room_id: standing for standing in standings if standing.membership == "join"}
        old = self._views.get(user_id)
        if old is not None and old.position > position:
            return old
        view = View(position, joined, ignored)
        self._views.put(user_id, view)
        return view


def _weigh(view: View) -> int:
    return STANDING_BYTES * len(view.joined) + IGNORED_BYTES * len(view.ignored)


def ignored_users(content: bytes | None) -> frozenset[str]:
    """The users whom an m.ignored_user_list names.

    https://spec.matrix.org/v1.19/client-server-api/#mignored_user_list
    """
    if content is None:
        return frozenset()
    parsed = orjson.loads(content)
    users = parsed.get("ignored_users") if isinstance(parsed, dict) else None
    return frozenset(users) if isinstance(users, dict) else frozenset()
