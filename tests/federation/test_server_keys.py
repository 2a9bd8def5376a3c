"""Checking what a server publishes about its keys."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.errors import InvalidSignature
from homeserver.federation.server_keys import (
    OLD_VERIFY_KEYS_MAX,
    PUBLISHED_BYTES_MAX,
    VALIDITY_MS_MAX,
    VERIFY_KEYS_MAX,
    parse_server_keys,
)
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.hashes import unpadded_base64
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.signatures import sign_json
from tests.factories.rooms import START_TS as NOW
from tests.factories.rooms import ServerKey

SERVER = "origin.example"
HOUR = 3600 * 1000


def public(key: ServerKey) -> str:
    return unpadded_base64(bytes(key.verify_key))


def published(
    *keys: ServerKey, signers: tuple[ServerKey, ...] | None = None, old: JsonObject | None = None, **fields: Any
) -> JsonObject:
    """What a server with these keys publishes."""
    answer = {
        "server_name": SERVER,
        "valid_until_ts": NOW + HOUR,
        "verify_keys": {key.key_id: {"key": public(key)} for key in keys},
        "old_verify_keys": old or {},
        **fields,
    }
    for signer in keys if signers is None else signers:
        answer = sign_json(answer, signer)
    return answer


ONE, TWO = ServerKey(SERVER, "one"), ServerKey(SERVER, "two")


def test_keys_count_when_the_object_is_signed_with_them() -> None:
    keys = parse_server_keys(published(ONE, TWO), SERVER, NOW)
    assert {key_id: data.valid_until_ts for key_id, data in keys.verify_keys.items()} == {
        "ed25519:one": NOW + HOUR,
        "ed25519:two": NOW + HOUR,
    }
    assert keys.verify_keys["ed25519:one"].key == ONE.verify_key
    keys = parse_server_keys(published(ONE, TWO, signers=(TWO,)), SERVER, NOW)
    assert set(keys.verify_keys) == {"ed25519:two"}


def test_validity_ends_within_seven_days() -> None:
    keys = parse_server_keys(published(ONE, valid_until_ts=NOW + 2 * VALIDITY_MS_MAX), SERVER, NOW)
    assert keys.valid_until_ts == keys.verify_keys["ed25519:one"].valid_until_ts == NOW + VALIDITY_MS_MAX


def test_old_keys_are_valid_until_they_were_given_up() -> None:
    old = {
        "ed25519:past": {"key": public(TWO), "expired_ts": NOW - 5},
        "ed25519:future": {"key": public(TWO), "expired_ts": NOW + HOUR},
        "ed25519:one": {"key": public(TWO), "expired_ts": NOW - 5},
        "ed25519:no_end": {"key": public(TWO)},
        "ed25519:no_key": {"expired_ts": 5},
        "rsa:x": {"key": public(TWO), "expired_ts": NOW - 5},
        "ed25519:odd": 5,
    }
    keys = parse_server_keys(published(ONE, old=old), SERVER, NOW)
    assert all(data.is_old for data in keys.old_verify_keys.values())
    validity = {key_id: data.valid_until_ts for key_id, data in keys.old_verify_keys.items()}
    assert validity == {"ed25519:past": NOW - 5, "ed25519:future": NOW}
    assert keys.verify_keys["ed25519:one"].key == ONE.verify_key


def test_what_is_kept_has_the_servers_own_signatures_only() -> None:
    with_notary = sign_json(published(ONE), ServerKey("notary.example"))
    assert parse_server_keys(with_notary, SERVER, NOW).published == encode_canonical_json(published(ONE))


WRONG = sign_json({**published(ONE), "server_name": "other.example"}, ONE)


@pytest.mark.parametrize(
    "response",
    [
        None,
        [],
        {},
        WRONG,
        published(ONE, signers=()),
        published(signers=(ONE,)),
        published(ONE, signers=(TWO,)),
        {**published(ONE), "valid_until_ts": NOW + 2},
        {
            **published(ONE, TWO),
            "signatures": {SERVER: {**published(ONE, TWO)["signatures"][SERVER], TWO.key_id: "AAAA"}},
        },
        published(ONE, valid_until_ts="soon"),
        published(ONE, valid_until_ts=True),
        published(ONE, verify_keys=[]),
        published(ONE, verify_keys={"ed25519:one": {"key": "AAAA"}}),
        published(ONE, verify_keys={"ed25519:one": public(ONE)}),
        published(ONE, verify_keys={"ed25519:one": {"key": public(TWO)}}),
        published(ONE, old_verify_keys=[]),
        published(ONE, old={f"ed25519:{n}": {} for n in range(OLD_VERIFY_KEYS_MAX + 1)}),
        published(*(ServerKey(SERVER, str(n)) for n in range(VERIFY_KEYS_MAX + 1))),
        {**published(ONE), "extra": "\ud800"},
    ],
)
def test_what_is_refused(response: Any) -> None:
    with pytest.raises(InvalidSignature):
        parse_server_keys(response, SERVER, NOW)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["valid_until_ts", "verify_keys", "old_verify_keys", "signatures", "extra"]), JSON)
def test_odd_objects_raise_nothing_else(field: str, value: Any) -> None:
    answer = published(ONE)
    answer[field] = value
    try:
        keys = parse_server_keys(answer, SERVER, NOW)
    except InvalidSignature:
        return
    assert set(keys.verify_keys) == {"ed25519:one"}


@pytest.mark.parametrize(
    "more",
    [
        {"padding": "x"},
        {"old_verify_keys": {"ed25519:old": {"key": public(TWO), "expired_ts": 1, "padding": "x"}}},
        {"old_verify_keys": {"ed25519:old": "x"}},
        {"tls_fingerprints": ["x" * PUBLISHED_BYTES_MAX]},
    ],
)
def test_a_notary_passes_on_keys_only(more: JsonObject) -> None:
    """What else stands in the object could be anything, of any size. The keys themselves count."""
    keys = parse_server_keys(published(ONE, **more), SERVER, NOW)
    assert list(keys.verify_keys) == ["ed25519:one"]
    assert keys.published is None
    assert parse_server_keys({**published(ONE), "unsigned": {"x": "x"}}, SERVER, NOW).published is not None
