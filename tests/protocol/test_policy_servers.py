"""Which policy server a room uses, and whether it has signed."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from homeserver.errors import InvalidSignature
from homeserver.protocol.compose import add_signature
from homeserver.protocol.events import Event
from homeserver.protocol.hashes import unpadded_base64
from homeserver.protocol.policy_servers import (
    PolicyServer,
    is_for_policy_server,
    is_recommended,
    policy_server_of,
    with_recommendation,
)
from homeserver.protocol.redaction import redact_event
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.signatures import event_signatures, verify_event_signature
from tests.factories.rooms import RoomFactory, ServerKey

POLICY = "policy.example"
ALICE, PATROL = "@alice:example.org", f"@patrol:{POLICY}"
KEY = ServerKey(POLICY, "policy_server")
PUBLIC_KEY = unpadded_base64(bytes(KEY.verify_key))
SERVER = PolicyServer(POLICY, PUBLIC_KEY)
VALID: dict[str, Any] = {"via": POLICY, "public_keys": {"ed25519": PUBLIC_KEY}}


def story(version: str = "11") -> RoomFactory:
    room = RoomFactory(version)
    room.create("alice")
    room.join(PATROL)
    return room


def answer_to(event: Event, key: ServerKey = KEY) -> dict[str, Any]:
    """What the policy server answers: its signature alone."""
    return {POLICY: {key.key_id: add_signature(event, key).pdu["signatures"][POLICY][key.key_id]}}


# -- which server ------------------------------------------------------------------------------------------------------


def test_a_server_with_a_joined_user_is_the_policy_server() -> None:
    assert policy_server_of(VALID, {POLICY: 1, "example.org": 2}) == SERVER
    assert policy_server_of({**VALID, "else": 1}, {POLICY: 1}) == SERVER


def test_a_server_without_a_joined_user_is_not() -> None:
    assert policy_server_of(VALID, {"example.org": 2}) is None
    assert policy_server_of(VALID, {}) is None


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"via": POLICY},
        {"public_keys": {"ed25519": PUBLIC_KEY}},
        {"via": None, "public_keys": {"ed25519": PUBLIC_KEY}},
        {"via": [POLICY], "public_keys": {"ed25519": PUBLIC_KEY}},
        {"via": {POLICY: 1}, "public_keys": {"ed25519": PUBLIC_KEY}},
        {"via": POLICY, "public_keys": PUBLIC_KEY},
        {"via": POLICY, "public_keys": [PUBLIC_KEY]},
        {"via": POLICY, "public_keys": {}},
        {"via": POLICY, "public_keys": {"ed25519": None}},
        {"via": POLICY, "public_keys": {"ed25519": {"key": PUBLIC_KEY}}},
        {"via": POLICY, "public_keys": {"rsa": PUBLIC_KEY}},
        {"via": POLICY, "public_key": PUBLIC_KEY},
    ],
)
def test_what_is_not_valid_means_none(content: dict[str, Any]) -> None:
    assert policy_server_of(content, {POLICY: 1}) is None


@pytest.mark.parametrize("key", ["", "x", "!" * 43, PUBLIC_KEY[:-2], PUBLIC_KEY * 2, "A" * 65_000, "ü" * 43])
def test_a_key_that_is_none_lets_nothing_pass(key: str) -> None:
    """The room says that it uses a policy server: that its key is broken does not turn it off."""
    server = policy_server_of({"via": POLICY, "public_keys": {"ed25519": key}}, {POLICY: 1})
    assert server is not None
    event = story().send(ALICE)
    assert not is_recommended(add_signature(event, KEY), server)
    with pytest.raises(InvalidSignature):
        with_recommendation(event, server, answer_to(event))


# -- which events ------------------------------------------------------------------------------------------------------


def test_only_the_choice_of_the_policy_server_itself_is_not_for_it() -> None:
    room = story()
    assert not is_for_policy_server(room.state_event(ALICE, "m.room.policy", VALID))
    assert not is_for_policy_server(room.state_event(ALICE, "m.room.policy", {}))
    assert is_for_policy_server(room.state_event(ALICE, "m.room.policy", VALID, "other"))
    assert is_for_policy_server(room.send(ALICE, type="m.room.policy", content=VALID))
    assert is_for_policy_server(room.state_event(ALICE, "m.room.topic", {"topic": "t"}))
    assert is_for_policy_server(room.send(ALICE))
    assert is_for_policy_server(room.set_power_levels(ALICE))
    assert is_for_policy_server(room.leave(PATROL))


# -- signatures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_the_signature_is_added_and_counts(version: str) -> None:
    room = story(version)
    event = room.send(ALICE)
    before = copy.deepcopy(event.pdu)
    assert not is_recommended(event, SERVER)
    signed = with_recommendation(event, SERVER, answer_to(event))
    assert is_recommended(signed, SERVER)
    assert event.pdu == before
    assert signed.event_id == event.event_id
    assert signed.pdu["signatures"] == {**event.pdu["signatures"], **answer_to(event)}
    verify_event_signature(signed, "example.org", room.keys("example.org"))
    # It covers what is left of a redacted event.
    assert is_recommended(redact_event(signed), SERVER)


def test_the_server_s_other_signatures_stay() -> None:
    room = story()
    event = room.send(PATROL)
    assert POLICY in event.pdu["signatures"]
    signed = with_recommendation(event, SERVER, answer_to(event))
    assert set(signed.pdu["signatures"][POLICY]) == {"ed25519:1", "ed25519:policy_server"}
    # The policy server's key is none of the keys that the server publishes, and nothing is fetched for it.
    assert set(event_signatures(signed, POLICY)) == {"ed25519:1"}
    verify_event_signature(signed, POLICY, room.keys(POLICY))
    wrong = {**room.keys(POLICY), KEY.key_id: room.keys(POLICY)["ed25519:1"]}
    verify_event_signature(signed, POLICY, wrong)
    only = Event({**signed.pdu, "signatures": answer_to(event)}, room.version, event.event_id, room.room_id)
    with pytest.raises(InvalidSignature):
        verify_event_signature(only, POLICY, {KEY.key_id: room.keys(POLICY)["ed25519:1"]})


def test_only_what_the_answer_is_about_is_taken_from_it() -> None:
    event = story().send(ALICE)
    answer = answer_to(event)
    more = {POLICY: {**answer[POLICY], "ed25519:x": "y"}, "other.org": {"ed25519:1": "z"}, "garbage": 1}
    assert with_recommendation(event, SERVER, more).pdu == with_recommendation(event, SERVER, answer).pdu


def test_a_signature_by_a_key_that_was_replaced_is_replaced() -> None:
    event = story().send(ALICE)
    old = ServerKey(POLICY + " before", "policy_server")
    old.server_name = POLICY
    signed = add_signature(event, old)
    assert not is_recommended(signed, SERVER)
    again = with_recommendation(signed, SERVER, answer_to(event))
    assert is_recommended(again, SERVER)
    assert again.pdu["signatures"][POLICY] == answer_to(event)[POLICY]


def test_the_right_key_under_another_name_does_not_count() -> None:
    event = story().send(ALICE)
    signature = answer_to(event)[POLICY][KEY.key_id]
    for signatures in (
        {POLICY: {"ed25519:1": signature}},
        {POLICY: {"policy_server": signature}},
        {"other.org": {KEY.key_id: signature}},
    ):
        pdu = {**event.pdu, "signatures": {**event.pdu["signatures"], **signatures}}
        assert not is_recommended(Event(pdu, event.version, event.event_id, event.room_id), SERVER)
        with pytest.raises(InvalidSignature):
            with_recommendation(event, SERVER, signatures)


def test_the_signature_of_another_event_does_not_count() -> None:
    room = story()
    first, second = room.send(ALICE, "one"), room.send(ALICE, "two")
    with pytest.raises(InvalidSignature):
        with_recommendation(second, SERVER, answer_to(first))


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {POLICY: None},
        {POLICY: []},
        {POLICY: "x"},
        {POLICY: {KEY.key_id: None}},
        {POLICY: {KEY.key_id: {"a": 1}}},
        {POLICY: {KEY.key_id: ""}},
        {POLICY: {KEY.key_id: "A" * 86}},
        {POLICY: {KEY.key_id: "A" * 60_000}},
        {POLICY: {KEY.key_id: "ü" * 86}},
    ],
)
def test_answers_without_a_signature(answer: Any) -> None:
    event = story().send(ALICE)
    with pytest.raises(InvalidSignature):
        with_recommendation(event, SERVER, answer)
