"""The schema, for both SQLite and PostgreSQL; ``alembic/`` creates and migrates it.

Events and state keys have small integers as internal IDs (``*_nid``, numeric ID). An event is stored once, as the bytes
that were signed. The state after an event is a *state group*: groups share what they have in common, see
``room_state``. Positions in streams come from the one row of ``counters``, which a writer locks until it commits, so
that positions become visible in order, whichever process writes (docs/decisions/0003-one-stream-counter.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    TypeDecorator,
    text,
)

metadata = MetaData()

Nid = BigInteger().with_variant(Integer, "sqlite")
"""An internal numeric ID, a position or a time: 64 bits. (SQLite accepts only ``INTEGER`` for a row ID.)"""

_ESCAPE = "\ufdd0"  # a Unicode noncharacter, free for internal use


class FreeText(TypeDecorator[str]):
    """Text that clients and servers choose freely. JSON can hold U+0000 but PostgreSQL cannot store it: it is escaped
    here.
    """

    impl = Text
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], str | None]:
        """Escape U+0000. (SQLAlchemy's usual way, ``process_bind_param``, takes three calls for each value.)"""
        return _escaped

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], str | None]:
        """Restore U+0000."""
        return _unescaped


def _escaped(value: str | None) -> str | None:
    if value is None or ("\0" not in value and _ESCAPE not in value):
        return value
    return value.replace(_ESCAPE, _ESCAPE + "1").replace("\0", _ESCAPE + "0")


def _unescaped(value: str | None) -> str | None:
    if value is None or _ESCAPE not in value:
        return value
    return value.replace(_ESCAPE + "0", "\0").replace(_ESCAPE + "1", _ESCAPE)


class Name(TypeDecorator[str]):
    """Text of a checked grammar: identifiers, and our own constants.

    Stored text never contains U+0000, but a query may look for any text that another server or a client has sent. It is
    escaped too: then the query finds nothing, while PostgreSQL would refuse it with an error.
    """

    impl = Text
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], str | None]:
        """Escape U+0000."""
        return _name


def _name(value: str | None) -> str | None:
    return value if value is None or "\0" not in value else value.replace("\0", _ESCAPE + "0")


def _partial_index(name: str, *columns: str, where: str) -> Index:
    """An index of some rows only. A statement uses it by repeating the same condition literally."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


# -- the event graph ---------------------------------------------------------------------------------------------------

counters = Table(
    "counters",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("stream", Nid, nullable=False),
    Column("backfill", Nid, nullable=False),
    Column("event", Nid, nullable=False),
    Column("state_group", Nid, nullable=False),
    Column("auth_chain", Nid, nullable=False),
    comment="One row: the last number given out of each kind. Backfill counts downwards.",
)

server_identity = Table(
    "server_identity",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("server_name", Text, nullable=False),
    comment="One row, written at the first start: the server that the users and rooms of this database belong to.",
)

rooms = Table(
    "rooms",
    metadata,
    Column("room_nid", Nid, primary_key=True),
    Column("room_id", Name, nullable=False, unique=True),
    Column("version", Name, nullable=False),
    Column("generation", Nid, nullable=False, server_default=text("0")),
    Column("state_group", Nid),
    Column("published", Boolean, nullable=False, server_default=text("false")),
    Column("created_ts", Nid, nullable=False),
    comment="generation counts the appends: who composed against an older one must look again. "
    "state_group is the current state; NULL while we know the room only from outside (an invitation).",
)

events = Table(
    "events",
    metadata,
    Column("event_nid", Nid, primary_key=True, autoincrement=False),
    Column("event_id", Name, nullable=False),
    Column("room_nid", Nid, nullable=False),
    Column("type", FreeText, nullable=False),
    Column("state_key_nid", Nid),
    Column("depth", Nid, nullable=False),
    Column("origin_server_ts", Nid, nullable=False),
    Column("stream_position", Nid),
    Column("place", Nid),
    Column("state_group", Nid),
    Column("replaces_nid", Nid),
    Column("verdict", SmallInteger, nullable=False, server_default=text("0")),
    Column("json", LargeBinary, nullable=False),
    Column("claimed_version", Name, nullable=False, server_default=text("('')")),
    # An event is known by its room and its ID. In room versions 1 and 2 servers choose event IDs, and two rooms may
    # have the same one. Out of band it may come under several room versions (see ``out_of_band_events``).
    Index("events_by_id", "event_id", "room_nid", "claimed_version", unique=True),
    Index("events_by_stream", "stream_position"),
    Index("events_by_room_stream", "room_nid", "stream_position"),
    Index("events_by_room_place", "room_nid", "place", unique=True),
    comment="state_group is the state after the event, replaces_nid the state event that it took the place of. "
    "verdict is a sum of event_graph.Verdict flags. Outliers have no stream_position, place or state_group; "
    "backfilled events have negative positions. place orders the history of a room, see storage/places.py.",
)

silent_servers = Table(
    "silent_servers",
    metadata,
    Column("server_name", Name, primary_key=True),
    Column("since_ts", Nid, nullable=False),
    Column("last_ts", Nid, nullable=False),
    Column("times", Nid, nullable=False),
    comment="Servers that do not answer when they are asked for history: so often, first and last at these times.",
    sqlite_with_rowid=False,
)
history_lanes = Table(
    "history_lanes",
    metadata,
    Column("room_nid", Nid, primary_key=True),
    Column("position", Nid, primary_key=True),
    Column("lowest", Nid, nullable=False),
    comment="The live events (by stream position) that arrived without all of their prev_events: history is missing "
    "before them, or was backfilled. lowest is the lowest place that was given out below such an event.",
    sqlite_with_rowid=False,
)

event_edges = Table(
    "event_edges",
    metadata,
    Column("event_nid", Nid, primary_key=True),
    Column("prev_nid", Nid, primary_key=True),
    Index("event_edges_by_prev", "prev_nid"),
    comment="prev_events that are in the graph themselves.",
    sqlite_with_rowid=False,
)

backward_extremities = Table(
    "backward_extremities",
    metadata,
    Column("missing_event_id", FreeText, primary_key=True),
    Column("event_nid", Nid, primary_key=True),
    Column("room_nid", Nid, nullable=False),
    Column("place", Nid),
    Column("fruitless", Nid, nullable=False, server_default=text("0")),
    Column("retry_ts", Nid, nullable=False, server_default=text("0")),
    Index("backward_extremities_by_place", "room_nid", "place"),
    comment="prev_events that are not in the graph: where backfill goes on. place is that of the event; NULL where "
    "nobody can see the event, so that its gap hides nothing. fruitless counts the servers that were asked for the "
    "missing event in vain; until retry_ts (milliseconds) nobody is asked again.",
    sqlite_with_rowid=False,
)

forward_extremities = Table(
    "forward_extremities",
    metadata,
    Column("room_nid", Nid, primary_key=True),
    Column("event_nid", Nid, primary_key=True),
    sqlite_with_rowid=False,
)

rejections = Table(
    "rejections",
    metadata,
    Column("event_nid", Nid, primary_key=True, autoincrement=False),
    Column("reason", FreeText, nullable=False),
    comment="Why an event was rejected or soft-failed.",
)

redactions = Table(
    "redactions",
    metadata,
    Column("redacted_event_id", FreeText, primary_key=True),
    Column("room_nid", Nid, primary_key=True),
    Column("redaction_nid", Nid, primary_key=True),
    Column("applied", Boolean, nullable=False),
    comment="A redaction may come before its target; applied says that it was found allowed.",
    sqlite_with_rowid=False,
)

auth_chain_positions = Table(
    "auth_chain_positions",
    metadata,
    Column("event_nid", Nid, primary_key=True, autoincrement=False),
    Column("chain", Nid, nullable=False),
    Column("sequence", Nid, nullable=False),
    Index("auth_chain_positions_by_chain", "chain", "sequence", unique=True),
    comment="The chain cover of the auth graph: an event reaches all earlier ones of its own chain.",
)

auth_chain_links = Table(
    "auth_chain_links",
    metadata,
    Column("origin_chain", Nid, primary_key=True),
    Column("origin_sequence", Nid, primary_key=True),
    Column("target_chain", Nid, primary_key=True),
    Column("target_sequence", Nid, nullable=False),
    comment="The auth events of origin that are in another chain; origin and all after it reach the target.",
    sqlite_with_rowid=False,
)

# -- room state --------------------------------------------------------------------------------------------------------

state_keys = Table(
    "state_keys",
    metadata,
    Column("state_key_nid", Nid, primary_key=True),
    Column("type", FreeText, nullable=False),
    Column("state_key", FreeText, nullable=False),
    Index("state_keys_by_name", "type", "state_key", unique=True),
)

state_groups = Table(
    "state_groups",
    metadata,
    Column("state_group", Nid, primary_key=True, autoincrement=False),
    Column("room_nid", Nid, nullable=False),
    Column("parent", Nid),
    Column("ordinal", Nid, nullable=False),
    Index("state_groups_by_room", "room_nid"),
    comment="ordinal counts the groups from the root of the lineage; it decides what the delta is against.",
)

state_group_entries = Table(
    "state_group_entries",
    metadata,
    Column("state_group", Nid, primary_key=True),
    Column("state_key_nid", Nid, primary_key=True),
    Column("event_nid", Nid),
    comment="What a group changes against its parent; NULL removes the key.",
    sqlite_with_rowid=False,
)

current_state = Table(
    "current_state",
    metadata,
    Column("room_nid", Nid, primary_key=True),
    Column("state_key_nid", Nid, primary_key=True),
    Column("event_nid", Nid, nullable=False),
    sqlite_with_rowid=False,
)

current_state_changes = Table(
    "current_state_changes",
    metadata,
    Column("room_nid", Nid, primary_key=True),
    Column("position", Nid, primary_key=True),
    Column("state_key_nid", Nid, primary_key=True),
    Column("event_nid", Nid),
    Index("current_state_changes_by_key", "room_nid", "state_key_nid", "position", "event_nid"),
    comment="The history of current_state as a stream; NULL removes the key.",
    sqlite_with_rowid=False,
)

room_members = Table(
    "room_members",
    metadata,
    Column("room_nid", Nid, primary_key=True),
    Column("user_id", Name, primary_key=True),
    Column("membership", Name, nullable=False),
    Column("event_nid", Nid, nullable=False),
    Column("display_name", FreeText),
    Column("avatar_url", FreeText),
    Column("event_ts", Nid, nullable=False),
    Column("sort_name", FreeText, nullable=False),
    Index("room_members_by_membership", "room_nid", "membership", "event_nid"),
    Index("room_members_by_user", "user_id", "membership"),
    _partial_index("room_members_joined", "room_nid", "sort_name", "user_id", where="membership = 'join'"),
    _partial_index("room_members_banned", "room_nid", "event_ts", "event_nid", where="membership = 'ban'"),
    comment="The m.room.member events of current_state, to be asked by user and by membership. event_ts is the time of "
    "the event; sort_name the beginning of the display name, '' without one, as long as an index can hold.",
    sqlite_with_rowid=False,
)

invitations = Table(
    "invitations",
    metadata,
    Column("room_nid", Nid, primary_key=True),
    Column("user_id", Name, primary_key=True),
    Column("status", Name, nullable=False),
    Column("invited_by", Name, nullable=False),
    Column("invited_ts", Nid, nullable=False),
    Column("updated_ts", Nid, nullable=False),
    Column("reason", FreeText),
    Column("event_nid", Nid, nullable=False),
    Index("invitations_by_room", "room_nid", "invited_ts", "event_nid"),
    comment="The latest invitation of each user: pending, accepted, rejected or revoked. "
    "event_nid is the invitation's event.",
    sqlite_with_rowid=False,
)

user_rooms = Table(
    "user_rooms",
    metadata,
    Column("user_id", Name, primary_key=True),
    Column("room_nid", Nid, primary_key=True),
    Column("membership", Name, nullable=False),
    Column("event_nid", Nid, nullable=False),
    Column("sender", Name, nullable=False),
    Column("position", Nid, nullable=False),
    Column("forgotten", Boolean, nullable=False, server_default=text("false")),
    Column("stripped_state", LargeBinary),
    Column("received_ts", Nid),
    Index("user_rooms_by_position", "user_id", "position"),
    Index("user_rooms_by_room", "room_nid"),
    Index("user_rooms_in_stream", "position"),
    comment="How each of our own users stands to each room, also to rooms that this server is not in. "
    "stripped_state is the JSON list that came with an invitation or a knock.",
    sqlite_with_rowid=False,
)

room_aliases = Table(
    "room_aliases",
    metadata,
    Column("alias", Name, primary_key=True),
    Column("room_id", Name, nullable=False),
    Column("creator", Name, nullable=False),
    Index("room_aliases_by_room", "room_id"),
)

# -- what belongs to rooms without being events ------------------------------------------------------------------------

receipts = Table(
    "receipts",
    metadata,
    Column("room_nid", Nid, primary_key=True),
    Column("receipt_type", Name, primary_key=True),
    Column("user_id", Name, primary_key=True),
    Column("thread_id", FreeText, primary_key=True),
    Column("event_id", FreeText, nullable=False),
    Column("event_nid", Nid),
    Column("ts", Nid, nullable=False),
    Column("position", Nid, nullable=False),
    Index("receipts_by_position", "position"),
    Index("receipts_by_room_position", "room_nid", "position"),
    comment="thread_id is '' for an unthreaded receipt. event_nid is NULL where the event was not here yet.",
    sqlite_with_rowid=False,
)

client_transactions = Table(
    "client_transactions",
    metadata,
    Column("user_id", Name, primary_key=True),
    Column("device_id", Name, primary_key=True),
    Column("scope", FreeText, primary_key=True),
    Column("txn_id", FreeText, primary_key=True),
    Column("event_nid", Nid, nullable=False),
    Column("ts", Nid, nullable=False),
    Index("client_transactions_by_event", "event_nid"),
    Index("client_transactions_by_ts", "ts"),
    comment="scope is the path of the request without its transaction ID.",
    sqlite_with_rowid=False,
)

# -- accounts ----------------------------------------------------------------------------------------------------------

users = Table(
    "users",
    metadata,
    Column("user_id", Name, primary_key=True),
    Column("password_hash", Name),
    Column("is_admin", Boolean, nullable=False, server_default=text("false")),
    Column("is_guest", Boolean, nullable=False, server_default=text("false")),
    Column("deactivated_ts", Nid),
    Column("created_ts", Nid, nullable=False),
    Column("display_name", FreeText),
    Column("avatar_url", FreeText),
    Column("profile", LargeBinary),
    comment="profile is a JSON object of the further profile fields.",
)

devices = Table(
    "devices",
    metadata,
    Column("user_id", Name, primary_key=True),
    Column("device_id", Name, primary_key=True),
    Column("display_name", FreeText),
    Column("created_ts", Nid, nullable=False),
    Column("last_seen_ts", Nid),
    Column("last_seen_ip", Name),
    Column("last_seen_user_agent", FreeText),
    sqlite_with_rowid=False,
)

access_tokens = Table(
    "access_tokens",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),
    Column("user_id", Name, nullable=False),
    Column("device_id", Name, nullable=False),
    Column("created_ts", Nid, nullable=False),
    Column("expires_ts", Nid),
    Index("access_tokens_by_device", "user_id", "device_id"),
    comment="Only the SHA-256 of a token is kept.",
    sqlite_with_rowid=False,
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),
    Column("user_id", Name, nullable=False),
    Column("device_id", Name, nullable=False),
    Column("access_token_hash", LargeBinary, nullable=False),
    Column("created_ts", Nid, nullable=False),
    Index("refresh_tokens_by_device", "user_id", "device_id"),
    sqlite_with_rowid=False,
)

uia_sessions = Table(
    "uia_sessions",
    metadata,
    Column("session_id", Name, primary_key=True),
    Column("operation", Name, nullable=False),
    Column("request", LargeBinary, nullable=False),
    Column("completed", Name, nullable=False),
    Column("created_ts", Nid, nullable=False),
    Column("parameters", LargeBinary),
    Column("answer", LargeBinary),
    comment="User-interactive authentication under way; completed is a space-separated list of stages. parameters are "
    "those of its first request, answer is what the finished operation was answered with; both are encrypted, with a "
    "key that follows from the session ID, of which only a hash is stored.",
)

account_data = Table(
    "account_data",
    metadata,
    Column("user_id", Name, primary_key=True),
    Column("room_id", Name, primary_key=True),
    Column("type", FreeText, primary_key=True),
    Column("content", LargeBinary, nullable=False),
    Column("position", Nid, nullable=False),
    Index("account_data_by_position", "user_id", "position"),
    Index("account_data_in_stream", "position"),
    comment="room_id is '' for what belongs to the whole account.",
    sqlite_with_rowid=False,
)

filters = Table(
    "filters",
    metadata,
    Column("user_id", Name, primary_key=True),
    Column("filter_id", Name, primary_key=True),
    Column("json", LargeBinary, nullable=False),
    comment="filter_id follows from the content, so that the same filter is stored once.",
    sqlite_with_rowid=False,
)

# -- federation --------------------------------------------------------------------------------------------------------

server_keys = Table(
    "server_keys",
    metadata,
    Column("server_name", Name, primary_key=True),
    Column("key_id", Name, primary_key=True),
    Column("verify_key", Name, nullable=False),
    Column("valid_until_ts", Nid, nullable=False),
    Column("expired_ts", Nid),
    Column("fetched_ts", Nid, nullable=False),
    sqlite_with_rowid=False,
)

server_key_responses = Table(
    "server_key_responses",
    metadata,
    Column("server_name", Name, primary_key=True),
    Column("fetched_ts", Nid, primary_key=True, autoincrement=False),
    Column("response", LargeBinary, nullable=False),
    Column("valid_until_ts", Nid, nullable=False),
    comment="For our answers as a notary: the latest signed JSON, and earlier ones with keys that no later one has.",
)

destinations = Table(
    "destinations",
    metadata,
    Column("server_name", Name, primary_key=True),
    Column("failing_since_ts", Nid),
    Column("retry_at_ts", Nid),
    Column("retry_interval_ms", Nid, nullable=False, server_default=text("0")),
    Column("last_success_ts", Nid),
    comment="How well another server can be reached.",
)

outbound_pdus = Table(
    "outbound_pdus",
    metadata,
    Column("server_name", Name, primary_key=True),
    Column("stream_position", Nid, primary_key=True),
    Column("room_nid", Nid, nullable=False),
    Column("event_nid", Nid, nullable=False),
    comment="PDUs that a server has still to get.",
    sqlite_with_rowid=False,
)

outbound_edus = Table(
    "outbound_edus",
    metadata,
    Column("edu_nid", Nid, primary_key=True),
    Column("server_name", Name, nullable=False),
    Column("edu", LargeBinary, nullable=False),
    Index("outbound_edus_by_server", "server_name", "edu_nid"),
    comment="EDUs that must not be lost.",
)

outbound_requests = Table(
    "outbound_requests",
    metadata,
    Column("request_nid", Nid, primary_key=True),
    Column("kind", Name, nullable=False),
    Column("room_id", Name, nullable=False),
    Column("user_id", Name, nullable=False),
    Column("candidates", LargeBinary, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("retry_at_ts", Nid, nullable=False),
    Column("created_ts", Nid, nullable=False),
    Index("outbound_requests_by_retry", "retry_at_ts"),
    Index("outbound_requests_by_subject", "room_id", "user_id"),
    comment="Handshakes with other servers that are still owed, such as the rejection of an invitation.",
)

under_way = Table(
    "under_way",
    metadata,
    Column("kind", Name, primary_key=True),
    Column("room_id", Name, primary_key=True),
    Column("user_id", Name, primary_key=True),
    Column("owner", Name, nullable=False),
    Column("expires_ts", Nid, nullable=False),
    Column("version", Name),  # of a room that is being joined
    comment="What a process is doing with another server right now, for those who have to wait for its end: an "
    "invitation that is being sent, a join, the import of a room. A row that has expired is from a process that died.",
    sqlite_with_rowid=False,
)

received_transactions = Table(
    "received_transactions",
    metadata,
    Column("origin", Name, primary_key=True),
    Column("txn_id", Name, primary_key=True),
    Column("response", LargeBinary, nullable=False),
    Column("ts", Nid, nullable=False),
    Index("received_transactions_by_ts", "ts"),
    sqlite_with_rowid=False,
)

waiting_events = Table(
    "waiting_events",
    metadata,
    Column("room_id", Name, primary_key=True),
    Column("event_id", Name, primary_key=True),
    Column("origin", Name, nullable=False),
    Column("json", LargeBinary, nullable=False),
    Column("lacks", LargeBinary, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("retry_at_ts", Nid, nullable=False),
    Column("received_ts", Nid, nullable=False),
    Index("waiting_events_by_retry", "retry_at_ts"),
    comment="Events of other servers that cannot be judged before others come.",
)

reader_positions = Table(
    "reader_positions",
    metadata,
    Column("reader", Name, primary_key=True),
    Column("position", Nid, nullable=False),
    comment="How far each reader of the event stream (federation, push, application services) has come.",
)
