"""How users stand to their rooms, and whom they ignore: kept, and brought up to date when something happens to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from homeserver.storage.sync_streams import Standing

STANDINGS_MAX = 200_000
"""Standings of all users together that are kept."""
IGNORED_USERS_TYPE = "m.ignored_user_list"


@dataclass(frozen=True, slots=True)
class View:
    """Which rooms a user is in and whom it ignores, at a position and until something changes it."""

    position: int
    joined: dict[str, Standing]
    ignored: frozenset[str]
    weight: int


class Views:
    """The views of those who synced lately."""

    def __init__(self) -> None:
        self._views: OrderedDict[str, View] = OrderedDict()
        self._weight = 0

    def get(self, user_id: str) -> View | None:
        """The last view of a user. Whether it still holds is for the caller to see."""
        view = self._views.get(user_id)
        if view is not None:
            self._views.move_to_end(user_id)
        return view

    def advance(self, user_id: str, view: View, position: int, ignored: frozenset[str]) -> View:
        """A view, as it is at a later position: with these ignored users, and without the user having joined or left a
        room. It is kept, unless another request has read a newer one meanwhile."""
        advanced = View(position, view.joined, ignored, view.weight + len(ignored) - len(view.ignored))
        if self._views.get(user_id) is view:
            self._views[user_id] = advanced
            self._weight += advanced.weight - view.weight
        return advanced

    def put(self, user_id: str, position: int, standings: Iterable[Standing], ignored: frozenset[str]) -> View:
        """Keep what was read at a position."""
        joined = {standing.room_id: standing for standing in standings if standing.membership == "join"}
        view = View(position, joined, ignored, 1 + len(joined) + len(ignored))
        old = self._views.pop(user_id, None)
        if old is not None:
            if old.position > position:
                view = old
            self._weight -= old.weight
        self._views[user_id] = view
        self._weight += view.weight
        while self._weight > STANDINGS_MAX and len(self._views) > 1:
            self._weight -= self._views.popitem(last=False)[1].weight
        return view


def ignored_users(content: bytes | None) -> frozenset[str]:
    """The users whom an m.ignored_user_list names.

    https://spec.matrix.org/v1.19/client-server-api/#mignored_user_list
    """
    if content is None:
        return frozenset()
    parsed = orjson.loads(content)
    users = parsed.get("ignored_users") if isinstance(parsed, dict) else None
    return frozenset(users) if isinstance(users, dict) else frozenset()
