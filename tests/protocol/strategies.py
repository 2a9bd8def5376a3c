"""What hypothesis draws for the tests of the protocol's basics."""

from __future__ import annotations

from hypothesis import strategies as st

from homeserver.protocol.canonical_json import INTEGER_MAX, INTEGER_MIN

strings = st.text(max_size=12)
strict_integers = st.integers(INTEGER_MIN, INTEGER_MAX)
finite_floats = st.floats(allow_nan=False, allow_infinity=False)


def json_values(numbers: st.SearchStrategy[int | float]) -> st.SearchStrategy[object]:
    leaves = st.none() | st.booleans() | strings | numbers
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4),
        max_leaves=12,
    )


strict_json = json_values(strict_integers)
any_json = json_values(st.integers(-(2**80), 2**80) | finite_floats)


def objects(values: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    return st.dictionaries(strings, values, max_size=5)


EVENT_TYPES = (
    "m.room.message", "m.room.create", "m.room.member", "m.room.join_rules", "m.room.power_levels", "m.room.aliases",
    "m.room.history_visibility", "m.room.redaction",
)  # fmt: skip
CONTENT_KEYS = (
    "membership", "creator", "join_rule", "allow", "ban", "invite", "users", "aliases", "history_visibility", "redacts",
    "third_party_invite", "signed", "join_authorised_via_users_server", "body",
)  # fmt: skip

event_types = st.sampled_from(EVENT_TYPES)
contents = st.dictionaries(st.sampled_from(CONTENT_KEYS) | strings, strict_json, max_size=6)
