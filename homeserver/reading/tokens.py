"""Tokens for positions in what clients read. No other module builds or parses them.

``s1_<events>_<ephemeral>_<user>`` is how much a client knows after a /sync: the positions that it has reached in the
streams of events, of who is typing (``ephemeral/typing_tokens.py`` says what that number means), and of the user's own
data. Today one counter numbers events, receipts and the user's own data. ``h1_<place>`` is the point in a room's
history right after the event with that place, see ``storage/places.py``. A token of /sync is a point in every room's
history too. The number after the letter is the version of the format.

Clients may hold tokens of older formats: ``s<position>``, and ``t<depth>_<position>`` for a room's history.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from homeserver.errors import InvalidParam
from homeserver.storage.places import HIGHEST, LOWEST, place_of

_SYNC = re.compile(r"s1_([0-9]{1,12})_([0-9]{1,24})_([0-9]{1,18})\Z", re.ASCII)
_SYNC_OLD = re.compile(r"s([0-9]{1,12})\Z", re.ASCII)
_HISTORY = re.compile(r"h1_(-?[0-9]{1,19})\Z", re.ASCII)
_HISTORY_OLD = re.compile(r"t-?[0-9]{1,18}_([0-9]{1,12})\Z", re.ASCII)
POSITION_MAX = 2**38
"""No counter gets this far. The place of this position is ``places.HIGHEST``."""


class SyncToken(NamedTuple):
    """How much a client knows: a position in each kind of stream."""

    events: int
    ephemeral: int
    user: int

    @property
    def position(self) -> int:
        """The position up to which the client knows everything that is stored."""
        return min(self.events, self.user)


def sync_token(position: int, ephemeral: int) -> str:
    """The token for everything up to a position, while one counter numbers everything that is stored."""
    return f"s1_{position}_{ephemeral}_{position}"


def parse_sync_token(text: str) -> SyncToken:
    """Parse a token of /sync. Raises ``InvalidParam``."""
    if match := _SYNC.match(text):
        token = SyncToken(int(match[1]), int(match[2]), int(match[3]))
    elif match := _SYNC_OLD.match(text):
        token = SyncToken(int(match[1]), 0, int(match[1]))
    else:
        raise InvalidParam("The token is not one that /sync has given out")
    if token.events > POSITION_MAX:
        raise InvalidParam("The token is not one that /sync has given out")
    return token


def history_token(place: int) -> str:
    """The token for the point right after a place in a room's history."""
    return f"h1_{place}"


def parse_token(text: str) -> int:
    """The place that a token of a room's history or of /sync refers to. Raises ``InvalidParam``."""
    if match := _HISTORY.match(text):
        return max(LOWEST, min(int(match[1]), HIGHEST))
    if match := _HISTORY_OLD.match(text):
        # In the old format only live events can be found again: backfilled ones had negative positions.
        return place_of(min(int(match[1]), POSITION_MAX))
    if text.startswith("s"):
        return place_of(parse_sync_token(text).events)
    raise InvalidParam("The token is not one that this server has given out")
