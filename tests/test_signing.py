"""Our own keys: files, rotation, what is published."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import signedjson.key
import signedjson.sign
from signedjson.key import decode_verify_key_base64
from structlog.testing import capture_logs

from homeserver.errors import ConfigurationError
from homeserver.federation.server_keys import parse_server_keys
from homeserver.protocol.signatures import is_signature_of
from homeserver.signing import SigningKeys
from tests.factories.rooms import START_TS as NOW

SERVER = "example.org"
DAY = 24 * 3600 * 1000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def key_files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_an_empty_directory_has_no_key(directory: Path) -> None:
    keys = SigningKeys.load(directory, SERVER)
    assert not keys.has_keys
    assert keys.list() == []
    with pytest.raises(ConfigurationError, match="no signing key"):
        keys.current  # noqa: B018
    with pytest.raises(ConfigurationError, match="no signing key"):
        keys.server_keys_object(NOW)


def test_a_generated_key_signs(directory: Path) -> None:
    key = SigningKeys.load(directory, SERVER).generate(NOW)
    loaded = SigningKeys.load(directory, SERVER).current
    assert (loaded.key_id, loaded.server_name, loaded.created_ts) == (key.key_id, SERVER, NOW)
    assert is_signature_of(b"message", loaded.sign(b"message"), key.verify_key)
    assert not is_signature_of(b"another", loaded.sign(b"message"), key.verify_key)


def test_files_are_private_and_what_signedjson_reads(directory: Path) -> None:
    key = SigningKeys.load(directory, SERVER).generate(NOW)
    path = directory / f"{key.version}.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    with path.open() as file:
        (read,) = signedjson.key.read_signing_keys(file)
    assert f"{read.alg}:{read.version}" == key.key_id
    assert bytes(read.verify_key) == bytes(key.verify_key)


def test_a_key_of_another_homeserver_can_be_copied_in(directory: Path) -> None:
    directory.mkdir()
    theirs = signedjson.key.generate_signing_key("a_Theirs")
    with (directory / "signing.key").open("w") as file:
        signedjson.key.write_signing_keys(file, [theirs])
    keys = SigningKeys.load(directory, SERVER)
    assert keys.current.key_id == "ed25519:a_Theirs"
    assert bytes(keys.current.verify_key) == bytes(theirs.verify_key)


def test_a_second_key_stands_beside_the_first(directory: Path) -> None:
    keys = SigningKeys.load(directory, SERVER)
    first, second = keys.generate(NOW), keys.generate(NOW)  # within one millisecond
    assert SigningKeys.load(directory, SERVER).current.key_id == second.key_id
    published = keys.server_keys_object(NOW)
    assert set(published["verify_keys"]) == set(published["signatures"][SERVER]) == {first.key_id, second.key_id}


def test_rotation(directory: Path) -> None:
    keys = SigningKeys.load(directory, SERVER)
    old = keys.generate(NOW - DAY)
    event_signature = old.sign(b"an event")
    new = keys.rotate(NOW)
    for seen in (keys, SigningKeys.load(directory, SERVER)):
        assert seen.current.key_id == new.key_id != old.key_id
        infos = [(info.key_id, info.created_ts, info.expired_ts, info.is_current) for info in seen.list()]
        assert infos == [(new.key_id, NOW, None, True), (old.key_id, NOW - DAY, NOW, False)]
        assert seen.verify_keys()[old.key_id].valid_until_ts == NOW
        assert is_signature_of(b"an event", event_signature, seen.verify_keys()[old.key_id].key)
        published = seen.server_keys_object(NOW)
        assert set(published["verify_keys"]) == {new.key_id}
        assert published["old_verify_keys"] == {old.key_id: {"key": old.verify_key_base64, "expired_ts": NOW}}
        assert set(published["signatures"][SERVER]) == {new.key_id}
    assert key_files(directory) == sorted([f"{new.version}.key", f"old/{old.version}.key"])
    assert "ed25519" in (directory / "old" / f"{old.version}.key").read_text()


def test_rotation_keeps_what_was_retired_before(directory: Path) -> None:
    keys = SigningKeys.load(directory, SERVER)
    made = [keys.generate(NOW), keys.rotate(NOW + 1), keys.rotate(NOW + 2)]
    published = keys.server_keys_object(NOW + 3)["old_verify_keys"]
    assert {key_id: key["expired_ts"] for key_id, key in published.items()} == {
        made[0].key_id: NOW + 1,
        made[1].key_id: NOW + 2,
    }


def test_an_interrupted_rotation_leaves_no_harm(directory: Path) -> None:
    keys = SigningKeys.load(directory, SERVER)
    old = keys.generate(NOW)
    seed = (directory / f"{old.version}.key").read_bytes()
    new = keys.rotate(NOW + 1)
    (directory / f"{old.version}.key").write_bytes(seed)  # as if it had stopped before the seed was deleted
    os.utime(directory / f"{old.version}.key")
    again = SigningKeys.load(directory, SERVER)
    assert again.current.key_id == new.key_id
    assert set(again.server_keys_object(NOW)["verify_keys"]) == {new.key_id}
    again.rotate(NOW + 2)
    assert SigningKeys.load(directory, SERVER).verify_keys()[old.key_id].valid_until_ts == NOW + 1


def test_the_published_object_is_what_others_accept(directory: Path) -> None:
    keys = SigningKeys.load(directory, SERVER)
    keys.generate(NOW - 1)
    keys.rotate(NOW)
    key = keys.generate(NOW + 1)
    published = keys.server_keys_object(NOW)
    assert published["server_name"] == SERVER
    assert published["valid_until_ts"] == NOW + DAY
    for key_id, entry in published["verify_keys"].items():
        algorithm, _, version = key_id.partition(":")
        signedjson.sign.verify_signed_json(
            published, SERVER, decode_verify_key_base64(algorithm, version, entry["key"])
        )
    parsed = parse_server_keys(published, SERVER, NOW)
    assert bytes(parsed.verify_keys[key.key_id].key) == bytes(key.verify_key)


def test_a_running_server_picks_up_a_rotation(directory: Path) -> None:
    running = SigningKeys.load(directory, SERVER)
    running.generate(NOW)
    assert not running.reload_if_changed()
    new = SigningKeys.load(directory, SERVER).rotate(NOW + 1)
    assert running.reload_if_changed()
    assert running.current.key_id == new.key_id
    assert not running.reload_if_changed()


@pytest.mark.parametrize("damage", ["broken file", "no key left"])
def test_a_running_server_keeps_its_keys_when_the_new_ones_are_unusable(directory: Path, damage: str) -> None:
    running = SigningKeys.load(directory, SERVER)
    key = running.generate(NOW)
    if damage == "broken file":
        (directory / "other.key").touch(mode=0o600)
        (directory / "other.key").write_text("ed25519 broken")
    else:
        (directory / f"{key.version}.key").unlink()
    with capture_logs() as logs:
        assert not running.reload_if_changed()
        assert not running.reload_if_changed()
    assert [log["event"] for log in logs] == ["signing_keys_not_reloaded"]
    assert running.current.key_id == key.key_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "hello\n",
        "ed25519 a_1\n",
        "ed25519 a_1 AAAA\n",
        "ed25519 a_1 ???\n",
        "rsa a_1 " + "A" * 43 + "\n",
        "ed25519 a/1 " + "A" * 43 + "\n",
        "ed25519 ä " + "A" * 43 + "\n",
        "x" * 20_000,
    ],
)
@pytest.mark.parametrize("place", ["x.key", "old/x.key"])
def test_files_that_hold_no_key(directory: Path, place: str, text: str) -> None:
    path = directory / place
    path.parent.mkdir(parents=True)
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigurationError, match=r"x\.key") as caught:
        SigningKeys.load(directory, SERVER)
    assert "A" * 43 not in str(caught.value)


def test_the_same_key_twice(directory: Path) -> None:
    key = SigningKeys.load(directory, SERVER).generate(NOW)
    (directory / "copy.key").write_bytes((directory / f"{key.version}.key").read_bytes())
    with pytest.raises(ConfigurationError, match="two files"):
        SigningKeys.load(directory, SERVER)


def test_a_warning_when_others_can_read_the_key(directory: Path) -> None:
    key = SigningKeys.load(directory, SERVER).generate(NOW)
    with capture_logs() as logs:
        SigningKeys.load(directory, SERVER)
        assert logs == []
        (directory / f"{key.version}.key").chmod(0o644)
        SigningKeys.load(directory, SERVER)
    assert [log["event"] for log in logs] == ["signing_key_readable_by_others"]


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "up").write_text("a file")
    keys = SigningKeys(tmp_path / "up" / "keys", SERVER)
    with pytest.raises(ConfigurationError):
        keys.generate(NOW)


@pytest.mark.parametrize("place", ["x.key", "old/x.key"])
def test_a_key_file_that_cannot_be_read_is_not_taken_for_a_missing_one(directory: Path, place: str) -> None:
    SigningKeys.load(directory, SERVER).generate(NOW)
    path = directory / place
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(path.name)  # a loop: even root cannot read it
    with pytest.raises(ConfigurationError, match=r"x\.key: cannot be read.*right to read the keys"):
        SigningKeys.load(directory, SERVER)


def test_a_keys_directory_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file")
    with pytest.raises(ConfigurationError, match=r"keys.*: cannot be read"):
        SigningKeys.load(tmp_path / "keys", SERVER)
