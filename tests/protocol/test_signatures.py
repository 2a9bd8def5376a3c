from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from homeserver.errors import InvalidSignature
from homeserver.protocol.compose import add_signature
from homeserver.protocol.events import Event
from homeserver.protocol.hashes import content_hash, decode_unpadded_base64, reference_bytes, unpadded_base64
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.signatures import (
    VerifyKeyData,
    event_signatures,
    is_signature_of,
    parse_verify_key,
    required_signers,
    sign_json,
    verify_event_signature,
    verify_json,
)
from tests.factories.rooms import RoomFactory, ServerKey, server_key

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "appendices" / "signing.json").read_text())
ALL = list(ROOM_VERSIONS)
ALICE = "@alice:example.org"
BOB = "@bob:other.org"


class VectorSigner:
    """Signs as the specification's test vectors do."""

    server_name: str = VECTORS["server_name"]
    key_id: str = VECTORS["key_id"]
    key = SigningKey(decode_unpadded_base64(VECTORS["seed"]))

    def sign(self, message: bytes) -> str:
        return unpadded_base64(self.key.sign(message).signature)


@pytest.mark.parametrize("vector", VECTORS["json"])
def test_signed_json_of_the_specification(vector: dict[str, Any]) -> None:
    before = copy.deepcopy(vector["input"])
    assert sign_json(vector["input"], VectorSigner()) == vector["signed"]
    assert vector["input"] == before
    verify_json(vector["signed"], "domain", "ed25519:1", VectorSigner.key.verify_key)


@pytest.mark.parametrize("vector", VECTORS["events"])
def test_signed_events_of_the_specification(vector: dict[str, Any]) -> None:
    version = ROOM_VERSIONS["1"]
    hashed = {**vector["input"], "hashes": {"sha256": content_hash(vector["input"], version)}}
    signature = VectorSigner().sign(reference_bytes(hashed, version))
    assert {**hashed, "signatures": {"domain": {"ed25519:1": signature}}} == vector["signed"]


def test_signing_keeps_unsigned_and_other_signatures() -> None:
    obj = {"a": 1, "unsigned": {"age": 1}, "signatures": {"x.org": {"ed25519:1": "s"}}}
    once = sign_json(obj, ServerKey("a.org", "1"))
    twice = sign_json(once, ServerKey("a.org", "2"))
    assert twice["unsigned"] == {"age": 1}
    assert twice["signatures"]["x.org"] == {"ed25519:1": "s"}
    assert sorted(twice["signatures"]["a.org"]) == ["ed25519:1", "ed25519:2"]
    assert obj["signatures"] == {"x.org": {"ed25519:1": "s"}}
    for key in (ServerKey("a.org", "1"), ServerKey("a.org", "2")):
        verify_json({**twice, "unsigned": {}}, "a.org", key.key_id, key.verify_key)


GOOD = sign_json({"a": 1}, VectorSigner())
SIGNATURE = GOOD["signatures"]["domain"]["ed25519:1"]


@pytest.mark.parametrize(
    "obj",
    [
        {"a": 1},
        {"a": 2, "signatures": GOOD["signatures"]},
        {"a": 1, "signatures": None},
        {"a": 1, "signatures": []},
        {"a": 1, "signatures": {"domain": "x"}},
        {"a": 1, "signatures": {"domain": {"ed25519:1": 5}}},
        {"a": 1, "signatures": {"domain": {"ed25519:1": "not base64!"}}},
        {"a": 1, "signatures": {"domain": {"ed25519:1": ""}}},
        {"a": 1, "signatures": {"domain": {"ed25519:1": SIGNATURE[:-4]}}},
        {"a": 1, "signatures": {"domain": {"ed25519:2": SIGNATURE}}},
        {"a": 1, "signatures": {"other": {"ed25519:1": SIGNATURE}}},
    ],
)
def test_wrong_signatures_of_json(obj: dict[str, Any]) -> None:
    verify_json(GOOD, "domain", "ed25519:1", VectorSigner.key.verify_key)
    with pytest.raises(InvalidSignature):
        verify_json(obj, "domain", "ed25519:1", VectorSigner.key.verify_key)


def test_verify_keys_are_parsed_once() -> None:
    encoded = unpadded_base64(bytes(VectorSigner.key.verify_key))
    assert parse_verify_key(encoded) == VectorSigner.key.verify_key
    assert parse_verify_key(encoded) is parse_verify_key(encoded)


@pytest.mark.parametrize("encoded", ["", "AAAA", "!", "A" * 44, "A" * 86])
def test_what_is_no_verify_key(encoded: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_verify_key(encoded)


def test_signatures_have_one_length() -> None:
    message = b"m"
    signature = VectorSigner().sign(message)
    assert is_signature_of(message, signature, VectorSigner.key.verify_key)
    longer = unpadded_base64(decode_unpadded_base64(signature) + b"x")
    assert not is_signature_of(message, longer, VectorSigner.key.verify_key)


def story(version: str) -> RoomFactory:
    room = RoomFactory(version)
    room.create()
    return room


@pytest.mark.parametrize("version", ALL)
def test_the_senders_server_must_sign(version: str) -> None:
    room = story(version)
    for event in (room.join(BOB), room.send(BOB), room.invite(BOB, "@carol:third.org")):
        assert required_signers(event) == {"other.org"}
        verify_event_signature(event, "other.org", room.keys("other.org"))


@pytest.mark.parametrize("version", ["1", "2"])
def test_in_old_rooms_the_domain_of_the_event_id_must_sign_too(version: str) -> None:
    room = story(version)
    message = room.send(BOB)
    elsewhere = Event({**message.pdu, "event_id": "$x:third.org"}, room.version, "$x:third.org", room.room_id)
    assert required_signers(elsewhere) == {"other.org", "third.org"}


@pytest.mark.parametrize("version", ALL)
def test_third_party_invites_need_no_signature_of_the_sender(version: str) -> None:
    room = story(version)
    invite = room.invite("alice", BOB, content={"third_party_invite": {"signed": {}}})
    assert required_signers(invite) == frozenset()
    not_an_invite = room.member("alice", BOB, "ban", content={"third_party_invite": {"signed": {}}})
    assert required_signers(not_an_invite) == {"example.org"}


@pytest.mark.parametrize("version", ["1", "2"])
def test_third_party_invites_of_old_rooms_by_another_server(version: str) -> None:
    room = story(version)
    invite = room.invite("alice", BOB, content={"third_party_invite": {"signed": {}}})
    elsewhere = Event({**invite.pdu, "event_id": "$x:third.org"}, room.version, "$x:third.org", room.room_id)
    assert required_signers(elsewhere) == {"third.org"}


@pytest.mark.parametrize("version", ALL)
def test_whoever_vouches_for_a_restricted_join_must_sign(version: str) -> None:
    room = story(version)
    join = room.join(BOB, content={"join_authorised_via_users_server": ALICE})
    expected = {"other.org", "example.org"} if int(version) >= 8 else {"other.org"}
    assert required_signers(join) == expected
    for server in expected:
        verify_event_signature(join, server, room.keys(server))


@pytest.mark.parametrize("authoriser", [None, "", "alice", 5, ["@a:b"], "@a:b c"])
def test_nobody_can_vouch_who_has_no_server(authoriser: Any) -> None:
    room = story("11")
    event = room.event(
        BOB, "m.room.member", {"membership": "join", "join_authorised_via_users_server": authoriser}, BOB
    )
    with pytest.raises(InvalidSignature):
        required_signers(event)


@pytest.mark.parametrize("version", ALL)
def test_a_redacted_event_is_still_signed(version: str) -> None:
    room = story(version)
    message = room.send(BOB, "secret")
    redacted = Event({**message.pdu, "content": {}}, room.version, message.event_id, room.room_id)
    verify_event_signature(redacted, "other.org", room.keys("other.org"))


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("field", ["depth", "origin_server_ts", "sender", "prev_events", "hashes", "room_id", "type"])
def test_what_is_protected_cannot_be_changed(version: str, field: str) -> None:
    room = story(version)
    message = room.send(BOB)
    changed_to: dict[str, Any] = {
        "depth": 99, "origin_server_ts": 1, "sender": "@mallory:other.org", "prev_events": [], "hashes": {"sha256": ""},
        "room_id": "!another:example.org", "type": "m.room.other",
    }  # fmt: skip
    changed = Event({**message.pdu, field: changed_to[field]}, room.version, message.event_id, room.room_id)
    with pytest.raises(InvalidSignature, match="wrong signature"):
        verify_event_signature(changed, "other.org", room.keys("other.org"))


def test_keys_that_do_not_help() -> None:
    room = story("11")
    message = room.send(BOB)
    right = server_key("other.org").verify_key
    with pytest.raises(InvalidSignature, match="not signed with a known"):
        verify_event_signature(message, "other.org", {})
    with pytest.raises(InvalidSignature, match="not signed with a known"):
        verify_event_signature(message, "other.org", {"ed25519:2": VerifyKeyData(right)})
    with pytest.raises(InvalidSignature, match="wrong signature"):
        verify_event_signature(message, "other.org", {"ed25519:1": VerifyKeyData(server_key("third.org").verify_key)})
    with pytest.raises(InvalidSignature, match=r"not signed by third\.org"):
        verify_event_signature(message, "third.org", room.keys("third.org"))


@pytest.mark.parametrize("version", ALL)
def test_key_validity(version: str) -> None:
    room = story(version)
    message = room.send(BOB)
    key = server_key("other.org")
    verify_event_signature(message, "other.org", key.keys(valid_until_ts=message.origin_server_ts))
    too_early = key.keys(valid_until_ts=message.origin_server_ts - 1)
    if int(version) < 5:
        verify_event_signature(message, "other.org", too_early)
    else:
        with pytest.raises(InvalidSignature):
            verify_event_signature(message, "other.org", too_early)


def test_signatures_by_unknown_keys_and_algorithms_are_skipped() -> None:
    room = story("11")
    message = room.send(BOB)
    signatures = {"other.org": {**message.pdu["signatures"]["other.org"], "ed25519:lost": "x", "rsa:1": "y"}}
    event = Event({**message.pdu, "signatures": signatures}, room.version, message.event_id, room.room_id)
    assert sorted(event_signatures(event, "other.org")) == ["ed25519:1", "ed25519:lost"]
    verify_event_signature(event, "other.org", room.keys("other.org"))


def test_no_signature_by_a_known_key_may_be_wrong() -> None:
    room = story("11")
    old, new = server_key("other.org"), ServerKey("other.org", "2")
    message = add_signature(room.send(BOB), new)
    verify_event_signature(message, "other.org", {**old.keys(), **new.keys()})
    verify_event_signature(message, "other.org", new.keys())
    broken = copy.deepcopy(message.pdu)
    broken["signatures"]["other.org"]["ed25519:2"] = old.sign(b"something else")
    event = Event(broken, room.version, message.event_id, room.room_id)
    verify_event_signature(event, "other.org", old.keys())
    with pytest.raises(InvalidSignature, match="ed25519:2"):
        verify_event_signature(event, "other.org", {**old.keys(), **new.keys()})
