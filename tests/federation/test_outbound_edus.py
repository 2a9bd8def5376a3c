from __future__ import annotations

from homeserver.federation.outbound_edus import ENTRIES_MAX, EduBuffer, Receipt


def receipt(user: str, event: str, *, room: str = "!a:x", thread: str | None = None) -> Receipt:
    return Receipt(room, user, event, 5, thread)


def test_only_the_newest_receipt_of_a_user_is_sent() -> None:
    edus = EduBuffer()
    edus.add_receipt(receipt("@a:x", "$1"))
    edus.add_receipt(receipt("@a:x", "$2"))
    edus.add_receipt(receipt("@b:x", "$1"))
    edus.add_receipt(receipt("@a:x", "$3", room="!b:x"))
    assert edus.take(10) == [
        {
            "edu_type": "m.receipt",
            "content": {
                "!a:x": {
                    "m.read": {
                        "@a:x": {"event_ids": ["$2"], "data": {"ts": 5}},
                        "@b:x": {"event_ids": ["$1"], "data": {"ts": 5}},
                    }
                },
                "!b:x": {"m.read": {"@a:x": {"event_ids": ["$3"], "data": {"ts": 5}}}},
            },
        }
    ]
    assert not edus
    assert edus.take(10) == []


def test_receipts_of_threads_take_an_edu_each() -> None:
    edus = EduBuffer()
    edus.add_receipt(receipt("@a:x", "$1"))
    edus.add_receipt(receipt("@a:x", "$2", thread="main"))
    edus.add_receipt(receipt("@a:x", "$3", thread="$root"))
    first = edus.take(2)
    assert [list(edu["content"]["!a:x"]["m.read"]["@a:x"]["event_ids"]) for edu in first] == [["$1"], ["$2"]]
    assert first[1]["content"]["!a:x"]["m.read"]["@a:x"]["data"] == {"ts": 5, "thread_id": "main"}
    (last,) = edus.take(2)
    assert last["content"]["!a:x"]["m.read"]["@a:x"]["event_ids"] == ["$3"]


def test_only_the_last_typing_state_is_sent() -> None:
    edus = EduBuffer()
    edus.add_typing("!a:x", "@a:x", True)
    edus.add_typing("!a:x", "@b:x", True)
    edus.add_typing("!a:x", "@a:x", False)
    assert edus.take(1) == [{"edu_type": "m.typing", "content": {"room_id": "!a:x", "user_id": "@b:x", "typing": True}}]
    assert edus.take(1) == [
        {"edu_type": "m.typing", "content": {"room_id": "!a:x", "user_id": "@a:x", "typing": False}}
    ]


def test_what_waits_is_bounded() -> None:
    edus = EduBuffer()
    for number in range(ENTRIES_MAX + 5):
        edus.add_receipt(receipt(f"@{number}:x", "$1"))
        edus.add_typing("!a:x", f"@{number}:x", True)
    assert sum(len(edu["content"]["!a:x"]["m.read"]) for edu in edus._take_receipts(100)) == ENTRIES_MAX
    assert len(edus._typing) == ENTRIES_MAX
