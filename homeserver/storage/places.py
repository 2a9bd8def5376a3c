"""The order of a room's history: one number, the *place*, for each event that stands in the graph.

An event that arrives live gets its place from its position in the stream. Between the places of two positions lies a
*lane*: the numbers below a live event and above the position before it. What is backfilled because that event's
prev_events were missing gets places in its lane, from the top downwards, so that history fills up where it was missing.
See docs/tokens-and-orders.md.
"""

from __future__ import annotations

LANE_BITS = 24
LANE_SIZE = 1 << LANE_BITS
"""How many places a lane has, that of the live event at its top included."""
LOWEST = -(2**62)
"""Before all places."""
HIGHEST = 2**62
"""After all places."""


def place_of(position: int) -> int:
    """The place of the live event at a position in the stream; what came before it, by then, has lower places."""
    return position << LANE_BITS


def before_position(position: int) -> int:
    """The place right before the live event at a position: after all that is backfilled below it."""
    return (position << LANE_BITS) - 1


def lane_of(place: int) -> int:
    """The position of the live event in whose lane a place is, or whose place it is."""
    return -(-place >> LANE_BITS)


def position_at(place: int) -> int:
    """The position in the stream up to which everything comes before a place, or has it."""
    return place >> LANE_BITS


def floor_of_lane(position: int) -> int:
    """The place right before the lane of the live event at a position."""
    return (position - 1) << LANE_BITS
