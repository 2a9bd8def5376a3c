"""The order of a room's history: one number, the *place*, for each event in the graph.

An event that arrives live gets its place from its position in the stream. Between the places of two positions is a
*lane*: the numbers below a live event and above the position before it. Events that are backfilled because that event's
prev_events were missing get places in its lane, from the top downwards, so that they fill the gap where it is. See
docs/tokens-and-orders.md.
"""

from __future__ import annotations

LANE_BITS = 24
LANE_SIZE = 1 << LANE_BITS
"""How many places a lane has, including that of the live event at its top."""
LOWEST = -(2**62)
"""Before all places."""
HIGHEST = 2**62
"""After all places."""


def place_of(position: int) -> int:
    """The place of the live event at a position in the stream; all that came before it has lower places."""
    return position << LANE_BITS


def before_position(position: int) -> int:
    """The place right before the live event at a position: after all events that are backfilled below it."""
    return (position << LANE_BITS) - 1


def lane_of(place: int) -> int:
    """The position of the live event that has the place, or whose lane contains it."""
    return -(-place >> LANE_BITS)


def position_at(place: int) -> int:
    """The position in the stream up to which all events are before a place or at it."""
    return place >> LANE_BITS


def floor_of_lane(position: int) -> int:
    """The place right before the lane of the live event at a position."""
    return (position - 1) << LANE_BITS
