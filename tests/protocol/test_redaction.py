from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.protocol.redaction import redact, redact_event
from homeserver.protocol.room_versions import ROOM_VERSIONS
from tests.factories.rooms import RoomFactory
from tests.protocol.strategies import contents, event_types, strict_json, strings

ALL = [str(number) for number in range(1, 13)]
UP_TO_10 = ALL[:10]
FROM_11 = ALL[10:]

ALWAYS_KEPT = {
    "event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures", "depth", "prev_events",
    "auth_events", "origin_server_ts",
}  # fmt: skip
KEPT_UP_TO_10 = {"prev_state", "origin", "membership"}
NEVER_KEPT = {"unsigned", "redacts", "age", "anything"}

EVERYTHING = {
    key: key
    for key in (
        "membership", "join_authorised_via_users_server", "creator", "room_version", "join_rule", "allow", "ban",
        "events", "events_default", "invite", "kick", "redact", "state_default", "users", "users_default",
        "notifications", "aliases", "history_visibility", "redacts", "body",
    )
}  # fmt: skip
POWER_LEVELS = {
    "ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default",
}  # fmt: skip


def pdu(event_type: str, content: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {key: key for key in ALWAYS_KEPT | KEPT_UP_TO_10 | NEVER_KEPT}
    return {**fields, "type": event_type, "content": content}


def kept_content(version: str, event_type: str) -> set[str]:
    redacted = redact(pdu(event_type, dict(EVERYTHING)), ROOM_VERSIONS[version])["content"]
    assert all(redacted[key] == EVERYTHING[key] for key in redacted)
    return set(redacted)


@pytest.mark.parametrize("version", ALL)
def test_top_level(version: str) -> None:
    kept = set(redact(pdu("m.room.message", {}), ROOM_VERSIONS[version]))
    assert kept == (ALWAYS_KEPT | KEPT_UP_TO_10 if version in UP_TO_10 else ALWAYS_KEPT)


@pytest.mark.parametrize("version", ALL)
def test_members(version: str) -> None:
    vouched = {"join_authorised_via_users_server"} if int(version) >= 9 else set()
    assert kept_content(version, "m.room.member") == {"membership"} | vouched


@pytest.mark.parametrize("version", ALL)
def test_create(version: str) -> None:
    assert kept_content(version, "m.room.create") == ({"creator"} if version in UP_TO_10 else set(EVERYTHING))


@pytest.mark.parametrize("version", ALL)
def test_join_rules(version: str) -> None:
    assert kept_content(version, "m.room.join_rules") == {"join_rule"} | ({"allow"} if int(version) >= 8 else set())


@pytest.mark.parametrize("version", ALL)
def test_power_levels(version: str) -> None:
    assert kept_content(version, "m.room.power_levels") == POWER_LEVELS | ({"invite"} if version in FROM_11 else set())


@pytest.mark.parametrize("version", ALL)
def test_aliases(version: str) -> None:
    assert kept_content(version, "m.room.aliases") == ({"aliases"} if int(version) <= 5 else set())


@pytest.mark.parametrize("version", ALL)
def test_history_visibility(version: str) -> None:
    assert kept_content(version, "m.room.history_visibility") == {"history_visibility"}


@pytest.mark.parametrize("version", ALL)
def test_redactions_themselves(version: str) -> None:
    assert kept_content(version, "m.room.redaction") == ({"redacts"} if version in FROM_11 else set())


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("event_type", ["m.room.message", "m.room.name", "m.room.encrypted", "x"])
def test_other_types_lose_everything(version: str, event_type: str) -> None:
    assert kept_content(version, event_type) == set()


SIGNED = {"mxid": "@a:b", "token": "t", "signatures": {}}


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize(
    ("invite", "since_11"),
    [({"signed": SIGNED, "display_name": "x"}, {"signed": SIGNED}), ({"display_name": "x"}, {}), ("text", None)],
)
def test_third_party_invites_keep_what_was_signed(version: str, invite: Any, since_11: Any) -> None:
    content = redact(
        pdu("m.room.member", {"membership": "invite", "third_party_invite": invite}), ROOM_VERSIONS[version]
    )["content"]
    kept = since_11 if version in FROM_11 else None
    assert content == {"membership": "invite"} | ({} if kept is None else {"third_party_invite": kept})


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize(
    "hostile",
    [{}, {"content": []}, {"type": ["m.room.member"], "content": {"membership": "join"}}, {"type": {}, "content": 1}],
)
def test_what_is_no_event_does_not_raise(version: str, hostile: dict[str, Any]) -> None:
    assert redact(hostile, ROOM_VERSIONS[version]).get("content", {}) == {}


pdus = st.builds(
    lambda fields, event_type, content: {**fields, "type": event_type, "content": content},
    st.dictionaries(st.sampled_from(sorted(ALWAYS_KEPT | KEPT_UP_TO_10 | NEVER_KEPT)) | strings, strict_json),
    event_types,
    contents,
)


@given(pdus, st.sampled_from(ALL))
def test_redacting_twice_is_redacting_once_and_changes_no_argument(event: dict[str, Any], version: str) -> None:
    before = copy.deepcopy(event)
    once = redact(event, ROOM_VERSIONS[version])
    assert event == before
    assert redact(once, ROOM_VERSIONS[version]) == once


@pytest.mark.parametrize("version", ALL)
def test_a_redacted_event_keeps_its_identity(version: str) -> None:
    room = RoomFactory(version)
    room.create()
    message = room.send("alice", "secret")
    redacted = redact_event(message)
    assert (redacted.event_id, redacted.room_id, redacted.type) == (message.event_id, room.room_id, "m.room.message")
    assert redacted.content == {}
    assert b"secret" in message.json
    assert b"secret" not in redacted.json
