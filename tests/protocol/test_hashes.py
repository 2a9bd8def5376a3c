from __future__ import annotations

import contextlib
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.errors import InvalidEvent
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.events import Event
from homeserver.protocol.hashes import (
    content_hash,
    decode_unpadded_base64,
    event_id_of,
    has_intact_content,
    reference_bytes,
    reference_hash,
    unpadded_base64,
    urlsafe_unpadded_base64,
)
from homeserver.protocol.redaction import redact_event
from homeserver.protocol.room_versions import ROOM_VERSIONS
from tests.factories.rooms import RoomFactory

VECTORS = Path(__file__).parents[1] / "vectors" / "appendices"
ALL = list(ROOM_VERSIONS)


@pytest.mark.parametrize(("text", "encoded"), json.loads((VECTORS / "unpadded_base64.json").read_text()))
def test_base64_of_the_specification(text: str, encoded: str) -> None:
    assert unpadded_base64(text.encode()) == encoded
    assert decode_unpadded_base64(encoded) == text.encode()


@given(st.binary(max_size=80))
def test_base64_there_and_back(data: bytes) -> None:
    encoded = unpadded_base64(data)
    assert "=" not in encoded
    assert decode_unpadded_base64(encoded) == data
    assert decode_unpadded_base64(encoded + "=" * (-len(encoded) % 4)) == data
    assert decode_unpadded_base64(urlsafe_unpadded_base64(data), any_alphabet=True) == data
    assert decode_unpadded_base64(encoded, any_alphabet=True) == data


@pytest.mark.parametrize("text", ["Z", "Zg===", "Z g", "Zg\n", "Zg==Zg==", "é", "-_-_", "Zm9v!", "A" * 65_537, None, 5])
def test_what_is_no_base64(text: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_unpadded_base64(text)


@given(st.text(max_size=20))
def test_base64_fails_with_value_error_only(text: str) -> None:
    with contextlib.suppress(ValueError):
        decode_unpadded_base64(text, any_alphabet=True)


@pytest.mark.parametrize("vector", json.loads((VECTORS / "signing.json").read_text())["events"])
def test_content_hashes_of_the_specification(vector: dict[str, Any]) -> None:
    assert content_hash(vector["input"], ROOM_VERSIONS["1"]) == vector["signed"]["hashes"]["sha256"]
    assert content_hash(vector["signed"], ROOM_VERSIONS["1"]) == vector["signed"]["hashes"]["sha256"]


@pytest.mark.parametrize("version", ALL)
def test_hashes_by_hand(version: str) -> None:
    """The definitions, written out: not by way of the functions that the module itself uses."""
    room = RoomFactory(version)
    room.create()
    pdu = room.send("alice", "hello").pdu
    covered = {key: value for key, value in pdu.items() if key not in ("unsigned", "signatures", "hashes")}
    assert decode_unpadded_base64(pdu["hashes"]["sha256"]) == sha256(encode_canonical_json(covered)).digest()
    essential = {key: value for key, value in pdu.items() if key not in ("signatures", "unsigned")}
    reference = encode_canonical_json({**essential, "content": {}})
    assert reference_bytes(pdu, room.version) == reference
    assert reference_hash(pdu, room.version) == sha256(reference).digest()


@pytest.mark.parametrize("version", ALL)
def test_event_ids(version: str) -> None:
    room = RoomFactory(version)
    room.create()
    for event in room.events.values():
        assert event_id_of(event.pdu, room.version) == event.event_id
        assert event_id_of({**event.pdu, "unsigned": {"age": 5}, "signatures": {}}, room.version) == event.event_id
        digest = reference_hash(event.pdu, room.version)
        if version in ("1", "2"):
            assert event.event_id.endswith(":example.org")
        elif version == "3":
            assert event.event_id == "$" + unpadded_base64(digest)
        else:
            assert event.event_id == "$" + urlsafe_unpadded_base64(digest)


@pytest.mark.parametrize("event_id", [None, 5, ["$a:b"]])
def test_an_event_id_that_is_missing(event_id: Any) -> None:
    with pytest.raises(InvalidEvent):
        event_id_of({"event_id": event_id}, ROOM_VERSIONS["1"])


@pytest.mark.parametrize("version", ALL)
def test_a_redacted_event_has_the_same_id_but_not_its_content(version: str) -> None:
    room = RoomFactory(version)
    room.create()
    message = room.send("alice", "secret")
    redacted = redact_event(message)
    assert event_id_of(redacted.pdu, room.version) == message.event_id
    assert has_intact_content(message)
    assert not has_intact_content(redacted)


def with_hash(event: Event, claimed: str) -> Event:
    return Event({**event.pdu, "hashes": {"sha256": claimed}}, event.version, event.event_id, event.room_id)


@pytest.mark.parametrize("version", ALL)
def test_content_that_was_changed(version: str) -> None:
    room = RoomFactory(version)
    room.create()
    message = room.send("alice", "hello")
    changed = orjson.loads(message.json.replace(b"hello", b"hullo"))
    assert not has_intact_content(Event(changed, room.version, message.event_id, room.room_id))
    added = {**message.pdu, "extra": 1}
    assert not has_intact_content(Event(added, room.version, message.event_id, room.room_id))


def test_hashes_are_compared_decoded() -> None:
    room = RoomFactory()
    room.create()
    message = room.send("alice", "hello")
    claimed = message.pdu["hashes"]["sha256"]
    assert has_intact_content(with_hash(message, claimed + "="))
    for wrong in ("", claimed[:-2], "not base64!", claimed.swapcase()):
        assert not has_intact_content(with_hash(message, wrong))
