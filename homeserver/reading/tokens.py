"""Tokens for points in what clients read.

``s<position>`` is a point in the stream of everything that this server learns: ``next_batch`` and ``prev_batch`` of
/sync. ``t<depth>_<position>`` is a point in the history of one room, right after the event with that place: what
/messages gives out.
"""

from __future__ import annotations

import re

from homeserver.errors import InvalidParam
from homeserver.storage.history import Place

_STREAM = re.compile(r"s([0-9]{1,18})\Z", re.ASCII)
_HISTORY = re.compile(r"t(-?[0-9]{1,18})_(-?[0-9]{1,18})\Z", re.ASCII)


def stream_token(position: int) -> str:
    """The token of a position in the stream."""
    return f"s{position}"


def parse_stream_token(text: str) -> int:
    """The position in the stream that a token of /sync stands for. Raises ``InvalidParam``."""
    match = _STREAM.match(text)
    if match is None:
        raise InvalidParam("The token is not one that /sync has given out")
    return int(match[1])


def history_token(place: Place) -> str:
    """The token of a place in a room's history."""
    return f"t{place.depth}_{place.position}"


def parse_token(text: str) -> int | Place:
    """A position in the stream, or a place in a room's history. Raises ``InvalidParam``."""
    match = _HISTORY.match(text)
    if match is not None:
        return Place(int(match[1]), int(match[2]))
    match = _STREAM.match(text)
    if match is None:
        raise InvalidParam("The token is not one that this server has given out")
    return int(match[1])
