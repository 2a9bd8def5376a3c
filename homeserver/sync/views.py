"""Caches which rooms users are in and whom they ignore."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from homeserver.storage.sync_streams import Standing

STANDINGS_MAX = 200_000
"""How many memberships are kept, of all users together."""
IGNORED_USERS_TYPE = "m.ignored_user_list"


@dataclass(frozen=True, slots=True)
class View:
    """Which rooms a user is in and whom the user ignores; right from ``position`` on until one of them changes."""

    position: int
    joined: dict[str, Standing]
    ignored: frozenset[str]
    weight: int


class Views:
    """The views of users who synced recently."""

    def __init__(self) -> None:
        self._views: OrderedDict[str, View] = OrderedDict()
        self._weight = 0

    def get(self, user_id: str) -> View | None:
        """The last view of a user, or None. The caller checks whether it is still right."""
        view = self._views.get(user_id)
        if view is not None:
            self._views.move_to_end(user_id)
        return view

    def advance(self, user_id: str, view: View, position: int, ignored: frozenset[str]) -> View:
        """The view at a later position, if the user has not joined or left a room since, with these ignored users.

        It is kept unless another request has stored a newer one meanwhile.
        """
        advanced = View(position, view.joined, ignored, view.weight + len(ignored) - len(view.ignored))
        if self._views.get(user_id) is view:
            self._views[user_id] = advanced
            self._weight += advanced.weight - view.weight
        return advanced

    def put(self, user_id: str, position: int, standings: Iterable[Standing], ignored: frozenset[str]) -> View:
        """Store and return the view that was read at a position, or return the stored one if it is newer."""
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
