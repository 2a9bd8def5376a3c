from __future__ import annotations

from homeserver.sync.sent_members import DEVICE_BYTES, MEMBER_BYTES, ROOM_BYTES, SentMembers

ROOM = "!room:example.org"


def test_counts_only_once_the_client_comes_back_with_the_token() -> None:
    sent = SentMembers()
    assert sent.known_to("@a:x", "D", None) == {}
    sent.sending("@a:x", "D", None, 10, {ROOM: {"@b:x": 1}})
    assert sent.known_to("@a:x", "D", 10) == {ROOM: {"@b:x": 1}}
    sent.sending("@a:x", "D", 10, 12, {ROOM: {"@c:x": 2}})
    # The response got lost: the client asks again from where it was.
    assert sent.known_to("@a:x", "D", 10) == {ROOM: {"@b:x": 1}}
    sent.sending("@a:x", "D", 10, 13, {ROOM: {"@c:x": 3}})
    assert sent.known_to("@a:x", "D", 13) == {ROOM: {"@b:x": 1, "@c:x": 3}}


def test_any_other_token_and_a_first_sync_start_afresh() -> None:
    for since in (9, None):
        sent = SentMembers()
        sent.sending("@a:x", "D", None, 10, {ROOM: {"@b:x": 1}})
        assert sent.known_to("@a:x", "D", since) == {}
        assert sent.known_to("@a:x", "D", 10) == {}


def test_empty_responses_move_on() -> None:
    sent = SentMembers()
    sent.sending("@a:x", "D", None, 10, {ROOM: {"@b:x": 1}})
    for since, then in ((10, 11), (11, 11), (11, 15)):
        assert sent.known_to("@a:x", "D", since) == {ROOM: {"@b:x": 1}}
        sent.sending("@a:x", "D", since, then, {})
    assert sent.known_to("@a:x", "D", 15) == {ROOM: {"@b:x": 1}}


def test_devices_are_apart_and_the_oldest_is_forgotten() -> None:
    sent = SentMembers(bytes_max=2 * (DEVICE_BYTES + ROOM_BYTES + 2 * MEMBER_BYTES))
    for device in ("A", "B", "C"):
        sent.sending("@a:x", device, None, 10, {ROOM: {"@b:x": 1, "@c:x": 2}})
    assert sent.known_to("@a:x", "A", 10) == {}
    assert sent.known_to("@a:x", "C", 10) == {ROOM: {"@b:x": 1, "@c:x": 2}}
    assert sent.known_to("@other:x", "C", 10) == {}


def test_rooms_that_were_joined_or_left_start_afresh() -> None:
    sent = SentMembers()
    sent.sending("@a:x", "D", None, 10, {ROOM: {"@b:x": 1}, "!left:x": {"@b:x": 2}})
    sent.known_to("@a:x", "D", 10)
    sent.sending("@a:x", "D", 10, 11, {ROOM: {"@c:x": 3}}, afresh=[ROOM, "!left:x"])
    assert sent.known_to("@a:x", "D", 11) == {ROOM: {"@c:x": 3}}
