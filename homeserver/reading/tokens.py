"""Tokens for points in what clients read. Nobody else makes them or takes them apart.

``s1_<events>_<ephemeral>_<user>`` is what a client knows after a /sync: how far it has come in the stream of events, of
what rooms hold besides (typing, receipts), and of what is the user's own. Today one counter numbers all three.
``h1_<place>`` is a point in the history of a room, right after what has that place, see ``storage/places.py``. A token
of /sync is a point in every room's history too. The number after the letter is the version of the form.

Clients may hold tokens of older forms: ``s<position>``, and ``t<depth>_<position>`` of a room's history.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from homeserver.errors import InvalidParam
from homeserver.storage.places import HIGHEST, LOWEST, place_of

_SYNC = re.compile(r"s1_([0-9]{1,12})_([0-9]{1,18})_([0-9]{1,18})\Z", re.ASCII)
_SYNC_OLD = re.compile(r"s([0-9]{1,12})\Z", re.ASCII)
_HISTORY = re.compile(r"h1_(-?[0-9]{1,19})\Z", re.ASCII)
_HISTORY_OLD = re.compile(r"t-?[0-9]{1,18}_([0-9]{1,12})\Z", re.ASCII)
POSITION_MAX = 2**38
"""More positions than one counter gives out. The place of this one is ``places.HIGHEST``."""


@dataclass(frozen=True, slots=True)
class SyncToken:
    """How far a client has come: a position in each kind of stream."""

    events: int
    ephemeral: int
    user: int

    @classmethod
    def at(cls, position: int) -> SyncToken:
        """Everything up to a position, as long as one counter numbers all streams."""
        return cls(position, position, position)

    @property
    def position(self) -> int:
        """The position up to which the client knows everything."""
        return min(self.events, self.ephemeral, self.user)

    def __str__(self) -> str:
        return f"s1_{self.events}_{self.ephemeral}_{self.user}"


def parse_sync_token(text: str) -> SyncToken:
    """The token of a /sync. Raises ``InvalidParam``."""
    if match := _SYNC.match(text):
        token = SyncToken(int(match[1]), int(match[2]), int(match[3]))
    elif match := _SYNC_OLD.match(text):
        token = SyncToken.at(int(match[1]))
    else:
        raise InvalidParam("The token is not one that /sync has given out")
    if token.events > POSITION_MAX:
        raise InvalidParam("The token is not one that /sync has given out")
    return token


def history_token(place: int) -> str:
    """The token of the point right after a place in a room's history."""
    return f"h1_{place}"


def parse_token(text: str) -> int:
    """The place that a token of a room's history or of /sync stands for. Raises ``InvalidParam``."""
    if match := _HISTORY.match(text):
        return max(LOWEST, min(int(match[1]), HIGHEST))
    if match := _HISTORY_OLD.match(text):
        # Of the old order only live events can be found again. What was backfilled had negative positions.
        return place_of(min(int(match[1]), POSITION_MAX))
    if text.startswith("s"):
        return place_of(parse_sync_token(text).events)
    raise InvalidParam("The token is not one that this server has given out")
