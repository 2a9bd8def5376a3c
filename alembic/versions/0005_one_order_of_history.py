"""One order of a room's history"""

from __future__ import annotations

from collections import defaultdict

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

LANE_SIZE = 1 << 24
ROWS_AT_ONCE = 500


def upgrade() -> None:
    """Give every event of the graph its place, see homeserver/storage/places.py."""
    op.create_table(
        "history_lanes",
        sa.Column("room_nid", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("lowest", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("room_nid", "position"),
        comment="The live events (by stream position) that arrived without all of their prev_events: history is missing before them, or was backfilled. lowest is the lowest place that was given out below such an event.",
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("backward_extremities", schema=None) as batch_op:
        batch_op.add_column(sa.Column("place", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True))
        batch_op.add_column(
            sa.Column(
                "fruitless",
                sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
                server_default=sa.text("0"),
                nullable=False,
            )
        )
        batch_op.add_column(
            sa.Column(
                "retry_ts",
                sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
                server_default=sa.text("0"),
                nullable=False,
            )
        )
        batch_op.drop_index("backward_extremities_by_room")
        batch_op.create_index("backward_extremities_by_place", ["room_nid", "place"], unique=False)
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.add_column(sa.Column("place", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True))
    _give_places(op.get_bind())
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index("events_by_room_depth")
        batch_op.create_index("events_by_room_place", ["room_nid", "place"], unique=True)
    if op.get_bind().dialect.name != "sqlite":  # which has no comments
        op.create_table_comment(
            "backward_extremities",
            "prev_events that are not in the graph: where backfill goes on. place is that of the event; NULL where nobody can see the event, so that its gap hides nothing. fruitless counts the servers that were asked for the missing event in vain; until retry_ts (milliseconds) nobody is asked again.",
        )
        op.create_table_comment(
            "events",
            "state_group is the state after the event, replaces_nid the state event that it took the place of. verdict is a sum of event_graph.Verdict flags. Outliers have no stream_position, place or state_group; backfilled events have negative positions. place orders the history of a room, see storage/places.py.",
        )


def _give_places(connection: sa.Connection) -> None:
    connection.execute(
        sa.text("UPDATE events SET place = stream_position * :size WHERE stream_position > 0"), {"size": LANE_SIZE}
    )
    rooms = connection.execute(sa.text("SELECT DISTINCT room_nid FROM events WHERE stream_position < 0")).scalars()
    for room_nid in list(rooms):
        _place_backfilled(connection, room_nid)
    # A lane for each live event whose prev_events are missing; those whose history was backfilled have theirs by now.
    connection.execute(
        sa.text(
            "INSERT INTO history_lanes (room_nid, position, lowest) "
            "SELECT DISTINCT e.room_nid, e.stream_position, e.place FROM backward_extremities AS b "
            "JOIN events AS e ON e.event_nid = b.event_nid WHERE e.verdict = 0 AND e.stream_position > 0 "
            "AND NOT EXISTS (SELECT 1 FROM history_lanes AS l "
            "WHERE l.room_nid = e.room_nid AND l.position = e.stream_position)"
        )
    )
    connection.execute(
        sa.text(
            "UPDATE backward_extremities SET place = (SELECT e.place FROM events AS e "
            "WHERE e.event_nid = backward_extremities.event_nid AND (e.verdict = 0 OR e.stream_position < 0))"
        )
    )


def _place_backfilled(connection: sa.Connection, room_nid: int) -> None:
    """What was backfilled comes below the earliest live event that it leads to, in the order that it had until now."""
    room = {"room_nid": room_nid}
    first = connection.execute(
        sa.text("SELECT min(stream_position) FROM events WHERE room_nid = :room_nid AND stream_position > 0"), room
    ).scalar()
    rows = connection.execute(
        sa.text(
            "SELECT event_nid FROM events WHERE room_nid = :room_nid AND stream_position < 0 "
            "ORDER BY depth DESC, stream_position DESC"
        ),
        room,
    )
    backfilled = [row[0] for row in rows]
    edges = connection.execute(
        sa.text(
            "SELECT edge.prev_nid, child.event_nid, child.stream_position FROM event_edges AS edge "
            "JOIN events AS prev ON prev.event_nid = edge.prev_nid "
            "JOIN events AS child ON child.event_nid = edge.event_nid "
            "WHERE prev.room_nid = :room_nid AND prev.stream_position < 0"
        ),
        room,
    )
    followers: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for prev_nid, event_nid, position in edges:
        followers[prev_nid].append((event_nid, position))
    lanes: dict[int, int] = {}
    counts: dict[int, int] = defaultdict(int)
    places: list[dict[str, int]] = []
    for nid in backfilled:
        known = [
            position if position > 0 else lanes[event_nid]
            for event_nid, position in followers[nid]
            if position is not None and (position > 0 or event_nid in lanes)
        ]
        lane = lanes[nid] = min(known, default=first or 0)
        counts[lane] += 1
        places.append({"nid": nid, "place": lane * LANE_SIZE - counts[lane]})
    for start in range(0, len(places), ROWS_AT_ONCE):
        connection.execute(
            sa.text("UPDATE events SET place = :place WHERE event_nid = :nid"), places[start : start + ROWS_AT_ONCE]
        )
    for lane, count in counts.items():
        connection.execute(
            sa.text("INSERT INTO history_lanes (room_nid, position, lowest) VALUES (:room_nid, :position, :lowest)"),
            {"room_nid": room_nid, "position": lane, "lowest": lane * LANE_SIZE - count},
        )
