"""``homeserver keys``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from homeserver.federation.server_keys import parse_server_keys
from homeserver.protocol.signatures import parse_verify_key, verify_json
from tests.cli.conftest import Run


def test_list_and_generate(run: Run, server: Path) -> None:
    (first,) = run("keys", "list", "--json").json()
    assert first["current"]
    assert first["expired_ts"] is None
    second = run("keys", "generate").out.strip()
    keys = run("keys", "list", "--json").json()
    assert [key["key_id"] for key in keys] == [second, first["key_id"]]
    table = run("keys", "list").out.splitlines()
    assert len(table) == 3
    assert table[1].startswith(second)


def test_rotate_moves_the_old_key_to_old_verify_keys(run: Run, server: Path) -> None:
    (old,) = run("keys", "list", "--json").json()
    new = run("keys", "rotate").out.strip()
    published = run("keys", "export").json()
    assert list(published["verify_keys"]) == [new]
    assert published["old_verify_keys"][old["key_id"]]["key"] == old["verify_key"]
    assert published["old_verify_keys"][old["key_id"]]["expired_ts"] >= old["created_ts"]


def test_export_is_what_other_servers_accept(run: Run, server: Path) -> None:
    published = run("keys", "export", "--json").json()
    keys = parse_server_keys(published, "example.org", published["valid_until_ts"] - 1000)
    assert list(keys.verify_keys) == [key["key_id"] for key in run("keys", "list", "--json").json()]


def test_sign(run: Run, server: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"b": 2, "a": "\\u00e9"}')
    signed = run("keys", "sign", "a.json").json()
    assert (signed["a"], signed["b"]) == ("é", 2)
    (key,) = run("keys", "list", "--json").json()
    verify_json(signed, "example.org", key["key_id"], parse_verify_key(key["verify_key"]))


@pytest.mark.parametrize(("content", "reason"), [("{", "not JSON"), ("[1]", "JSON object"), (None, "a.json")])
def test_sign_what_cannot_be_signed(run: Run, server: Path, tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    outcome = run("keys", "sign", "a.json")
    assert outcome.status == 1
    assert reason in outcome.err


def test_sign_without_a_key_names_the_setting(run: Run, server: Path, tmp_path: Path) -> None:
    for key in (server / "keys").glob("*.key"):
        key.unlink()
    (tmp_path / "a.json").write_text("{}")
    outcome = run("keys", "sign", "a.json")
    assert outcome.status == 2
    assert "keys_dir" in outcome.err


def test_verify_refuses_private_addresses_unless_allowed(
    run: Run, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "private" in run("keys", "verify", "localhost:1").err
    monkeypatch.setenv("HOMESERVER_FEDERATION__ALLOW_PRIVATE_ADDRESSES", "true")
    outcome = run("keys", "verify", "localhost:1")
    assert outcome.status == 1
    assert outcome.err.startswith("homeserver: localhost:1")
    assert "private" not in outcome.err


def test_no_secret_is_printed(run: Run, server: Path) -> None:
    (file,) = (server / "keys").glob("*.key")
    seed = file.read_text().split()[2]
    for command in (["list"], ["list", "--json"], ["export"], ["rotate"]):
        outcome = run("keys", *command)
        assert seed not in outcome.out + outcome.err, command
    assert json.loads(run("keys", "export").out)["old_verify_keys"]
