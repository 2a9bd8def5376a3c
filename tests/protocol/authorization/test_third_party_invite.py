"""Third-party invitations: the promise, and the invitation that redeems it."""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

import pytest
from nacl.signing import SigningKey

from homeserver.protocol.authorization import third_party_invite
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.room_versions import RoomVersion
from tests.protocol.symbolic import ALICE, BOB, CAROL, VERSIONS, event, member, refusal, room

IDENTITY_SERVER = SigningKey(b"\x01" * 32)
EPHEMERAL = SigningKey(b"\x02" * 32)
STRANGER = SigningKey(b"\x03" * 32)

NOT_SIGNED = "the third-party invitation is not signed by its identity server"
VERSION = VERSIONS[10]


def encoded(key: SigningKey) -> str:
    return b64encode(bytes(key.verify_key)).decode().rstrip("=")


def promise(version: RoomVersion, sender: str = ALICE, **content: Any) -> Event:
    content = content or {"public_key": encoded(IDENTITY_SERVER)}
    return event(version, "m.room.third_party_invite", sender, content, state_key="token", event_id="$promise")


def signed(key: SigningKey = IDENTITY_SERVER, *, key_id: str = "ed25519:0", **more: Any) -> dict[str, Any]:
    body = {"mxid": BOB, "token": "token", **more}
    signature = b64encode(key.sign(encode_canonical_json(body)).signature).decode().rstrip("=")
    return {**body, "signatures": {"id.example": {key_id: signature}}}


def invitation(version: RoomVersion, of: Any, sender: str = ALICE) -> Event:
    return member(version, BOB, "invite", sender, content={"third_party_invite": of})


def state(version: RoomVersion, promised: Event | None = None, members: Any = None) -> Mapping[StateKey, Event]:
    return room(version, members or {ALICE: "join"}, extra=[promised or promise(version)])


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: f"v{version.identifier}")
def test_a_signed_invitation_is_allowed(version: RoomVersion) -> None:
    assert refusal(invitation(version, {"signed": signed()}), state(version)) is None


def test_the_sender_may_have_left_since() -> None:
    assert refusal(invitation(VERSION, {"signed": signed()}), state(VERSION, members={ALICE: "leave"})) is None


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        (None, "the third-party invitation has no signed part"),
        ([], "the third-party invitation has no signed part"),
        ({}, "the third-party invitation has no signed part"),
        ({"signed": "yes"}, "the third-party invitation has no signed part"),
        ({"signed": {"token": "token"}}, "the third-party invitation has no mxid or no token"),
        ({"signed": {"mxid": BOB}}, "the third-party invitation has no mxid or no token"),
        ({"signed": {"mxid": BOB, "token": 1}}, "the third-party invitation has no mxid or no token"),
        ({"signed": signed(mxid=CAROL)}, "the third-party invitation is for another user"),
        ({"signed": signed(token="other")}, "the room has no third-party invitation with this token"),
        ({"signed": {"mxid": BOB, "token": "token"}}, NOT_SIGNED),
        ({"signed": signed(STRANGER)}, NOT_SIGNED),
        ({"signed": signed(key_id="rsa:0")}, NOT_SIGNED),
        ({"signed": {**signed(), "expires": 1}}, NOT_SIGNED),
        ({"signed": {**signed(), "signatures": None}}, NOT_SIGNED),
        ({"signed": {**signed(), "signatures": {"id.example": ["ed25519:0"]}}}, NOT_SIGNED),
        ({"signed": {**signed(), "signatures": {"id.example": {"ed25519:0": 5}}}}, NOT_SIGNED),
        ({"signed": {**signed(), "signatures": {"id.example": {"ed25519:0": "short"}}}}, NOT_SIGNED),
        ({"signed": {**signed(), "signatures": {"id.example": {"ed25519:0": "é" * 86}}}}, NOT_SIGNED),
        ({"signed": {**signed(), "odd": "\ud800"}}, NOT_SIGNED),
    ],
)
def test_each_clause_refuses(of: Any, reason: str) -> None:
    assert refusal(invitation(VERSION, of), state(VERSION)) == reason


def test_unsigned_is_not_signed() -> None:
    assert refusal(invitation(VERSION, {"signed": {**signed(), "unsigned": {"a": 1}}}), state(VERSION)) is None


def test_a_banned_user_is_not_invited() -> None:
    banned = state(VERSION, members={ALICE: "join", BOB: "ban"})
    assert refusal(invitation(VERSION, {"signed": signed()}), banned) == "the invited user is banned"


def test_the_sender_is_who_made_the_promise() -> None:
    other = state(VERSION, promise(VERSION, CAROL))
    assert refusal(invitation(VERSION, {"signed": signed()}), other) == (
        "the third-party invitation was made by another user"
    )


def test_any_of_the_promised_keys_will_do() -> None:
    keys = [None, {"public_key": "!!"}, {"public_key": encoded(STRANGER)[:10]}, {"public_key": encoded(EPHEMERAL)}]
    promised = promise(VERSION, public_key=encoded(IDENTITY_SERVER), public_keys=keys)
    for key in (IDENTITY_SERVER, EPHEMERAL):
        assert refusal(invitation(VERSION, {"signed": signed(key)}), state(VERSION, promised)) is None
    assert refusal(invitation(VERSION, {"signed": signed(STRANGER)}), state(VERSION, promised)) == NOT_SIGNED


@pytest.mark.parametrize("content", [{"public_key": 1}, {"public_key": ""}, {"public_keys": {}}, {"x": 1}])
def test_a_promise_without_keys_cannot_be_redeemed(content: dict[str, Any]) -> None:
    promised = promise(VERSION, **content)
    assert refusal(invitation(VERSION, {"signed": signed()}), state(VERSION, promised)) == NOT_SIGNED


def test_keys_come_in_either_alphabet_and_with_padding() -> None:
    key = next(key for key in map(SigningKey, (bytes([i]) * 32 for i in range(256))) if "/" in encoded(key))
    for text in (urlsafe_b64encode(bytes(key.verify_key)).decode(), encoded(key) + "="):
        promised = promise(VERSION, public_key=text)
        assert refusal(invitation(VERSION, {"signed": signed(key)}), state(VERSION, promised)) is None


def test_the_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(third_party_invite, "SIGNATURE_CHECKS_MAX", 3)
    wrong = signed(STRANGER)["signatures"]["id.example"]["ed25519:0"]
    body = signed()
    right = body["signatures"]["id.example"]["ed25519:0"]
    for wrong_ones, reason in ((2, None), (3, NOT_SIGNED)):
        body["signatures"] = {"id": {f"ed25519:{i}": wrong for i in range(wrong_ones)} | {"ed25519:x": right}}
        assert refusal(invitation(VERSION, {"signed": body}), state(VERSION)) == reason


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: f"v{version.identifier}")
def test_the_promise_takes_the_invite_level_alone(version: RoomVersion) -> None:
    levels = {"users": {BOB: 10}, "invite": 10, "events": {"m.room.third_party_invite": 100}}
    members = {ALICE: "join", BOB: "join", CAROL: "join"}
    before = room(version, members, power_levels=levels)
    assert refusal(promise(version, BOB), before) is None
    assert refusal(promise(version, CAROL), before) == "the sender's power level is too low to invite"
    assert refusal(promise(version, "@x:x.example"), before) == "the sender is not in the room"
