"""Our own signing keys: kept in the keys directory, one file for each, and used to sign events and requests.

The directory::

    keys/<version>.key        ``ed25519 <version> <seed in unpadded Base64>``: signs; the newest is the current one
    keys/old/<version>.key    ``ed25519 <version> <expired_ts> <public key in unpadded Base64>``: retired

Both are the formats of the signedjson library, so a key file of another homeserver can be copied in as it is. A file's
modification time is the creation of its key. Retiring a key deletes its seed: it must not sign any more, and the public
half is enough to check old events.

https://spec.matrix.org/v1.19/server-server-api/#publishing-keys
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import signedjson.key
import structlog
from nacl.signing import SigningKey as Ed25519SigningKey
from nacl.signing import VerifyKey

from homeserver.errors import ConfigurationError
from homeserver.protocol.hashes import unpadded_base64
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.signatures import ALGORITHM, VerifyKeyData, sign_json

logger = structlog.get_logger(__name__)

SERVER_KEYS_VALIDITY_MS = 24 * 3600 * 1000
"""How long others may use our published keys before they ask again."""
KEY_FILE_BYTES_MAX = 16 * 1024
_SUFFIX = ".key"
_OLD = "old"
_VERSION = re.compile(r"[a-zA-Z0-9_]{1,64}\Z")
_VERSION_ALPHABET = string.ascii_letters + string.digits


@dataclass(slots=True, eq=False)
class SigningKey:
    """One of our keys, as a ``protocol.events.Signer``. Treat it as frozen."""

    server_name: str
    version: str
    created_ts: int
    """Milliseconds since the epoch."""
    _key: Ed25519SigningKey
    key_id: str

    def sign(self, message: bytes) -> str:
        """The signature of the bytes, in unpadded Base64."""
        return unpadded_base64(self._key.sign(message).signature)

    @property
    def verify_key(self) -> VerifyKey:
        """The public half of the key."""
        return self._key.verify_key

    @property
    def verify_key_base64(self) -> str:
        """The public half of the key, in unpadded Base64."""
        return unpadded_base64(bytes(self._key.verify_key))


@dataclass(frozen=True, slots=True)
class RetiredKey:
    """A key of ours that no longer signs; events signed until ``expired_ts`` stay valid."""

    version: str
    created_ts: int
    expired_ts: int
    verify_key: VerifyKey

    @property
    def key_id(self) -> str:
        """``ed25519:...``"""
        return f"{ALGORITHM}:{self.version}"


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What ``homeserver keys list`` shows of a key."""

    key_id: str
    created_ts: int
    expired_ts: int | None
    is_current: bool
    verify_key: str
    """In unpadded Base64."""


class SigningKeys:
    """The keys of this server. Build with ``load``."""

    def __init__(self, directory: Path, server_name: str) -> None:
        self._directory = directory
        self._server_name = server_name
        self._active: tuple[SigningKey, ...] = ()
        self._retired: tuple[RetiredKey, ...] = ()
        self._seen: _DirectoryState = ()

    @classmethod
    def load(cls, directory: Path, server_name: str) -> SigningKeys:
        """Read the keys of a directory, which may be empty or missing: then ``generate`` makes the first one.

        Raises ``ConfigurationError`` for a file without a valid key or an unreadable one. It does not make a new key
        instead, because other servers would not trust that key for what was signed before.
        """
        keys = cls(directory, server_name)
        keys._read()
        return keys

    @property
    def server_name(self) -> str:
        """The server that these keys belong to."""
        return self._server_name

    @property
    def has_keys(self) -> bool:
        """Whether there is a key to sign with."""
        return bool(self._active)

    @property
    def current(self) -> SigningKey:
        """The key that signs. Raises ``ConfigurationError`` when there is none."""
        if not self._active:
            raise ConfigurationError(f"keys_dir = {str(self._directory)!r}: no signing key there, expected one")
        return self._active[-1]

    @property
    def key_id(self) -> str:
        """The ID of the key that signs. With ``sign`` it makes this class a ``Signer`` that follows key rotations."""
        return self.current.key_id

    def sign(self, message: bytes) -> str:
        """The signature of the bytes with the current key, in unpadded base64."""
        return self.current.sign(message)

    def list(self) -> list[KeyInfo]:
        """All keys: the current one first, then the others from the newest to the oldest."""
        active = [
            KeyInfo(key.key_id, key.created_ts, None, key is self._active[-1], key.verify_key_base64)
            for key in reversed(self._active)
        ]
        retired = [
            KeyInfo(key.key_id, key.created_ts, key.expired_ts, False, unpadded_base64(bytes(key.verify_key)))
            for key in reversed(self._retired)
        ]
        return active + retired

    def verify_keys(self) -> dict[str, VerifyKeyData]:
        """Our public keys, for checking our own signatures: key ID to key, retired ones with the end of their
        validity.
        """
        retired = {key.key_id: VerifyKeyData(key.verify_key, key.expired_ts, is_old=True) for key in self._retired}
        return {**retired, **{key.key_id: VerifyKeyData(key.verify_key) for key in self._active}}

    def server_keys_object(self, now_ms: int, validity_ms: int = SERVER_KEYS_VALIDITY_MS) -> JsonObject:
        """What ``GET /_matrix/key/v2/server`` answers, signed with every active key.

        Raises ``ConfigurationError`` when there is no key.

        https://spec.matrix.org/v1.19/server-server-api/#get_matrixkeyv2server
        """
        if not self._active:
            raise ConfigurationError(f"keys_dir = {str(self._directory)!r}: no signing key there, expected one")
        answer: JsonObject = {
            "server_name": self._server_name,
            "valid_until_ts": now_ms + validity_ms,
            "verify_keys": {key.key_id: {"key": key.verify_key_base64} for key in self._active},
            "old_verify_keys": {
                key.key_id: {"key": unpadded_base64(bytes(key.verify_key)), "expired_ts": key.expired_ts}
                for key in self._retired
            },
        }
        for key in self._active:
            answer = sign_json(answer, key)
        return answer

    # -- changes -------------------------------------------------------------------------------------------------------

    def generate(self, now_ms: int) -> SigningKey:
        """Make a key, which becomes the current one; existing keys stay active beside it."""
        version = self._new_version()
        line = f"{ALGORITHM} {version} {unpadded_base64(bytes(Ed25519SigningKey.generate()))}\n"
        # The newest key is the current one, even if the clock went back or two keys are made within a millisecond.
        created_ts = max(now_ms, *(key.created_ts + 1 for key in self._active)) if self._active else now_ms
        _write_file(self._directory / f"{version}{_SUFFIX}", line, created_ts)
        self._read()
        return self.current

    def rotate(self, now_ms: int) -> SigningKey:
        """Make a new current key and retire all others as of now. A crash in between does no harm.

        https://spec.matrix.org/v1.19/server-server-api/#publishing-keys
        """
        before = self._active
        self.generate(now_ms)
        for key in before:
            line = f"{ALGORITHM} {key.version} {now_ms} {key.verify_key_base64}\n"
            _write_file(self._directory / _OLD / f"{key.version}{_SUFFIX}", line, key.created_ts)
        self._delete_seeds({key.version for key in before})
        self._read()
        return self.current

    def reload_if_changed(self) -> bool:
        """Read the directory again if a file in it changed, as after ``homeserver keys rotate``.

        Takes only a few system calls if nothing changed. Keeps the old keys if the new files cannot be used.
        """
        state = _directory_state(self._directory)
        if state == self._seen:
            return False
        self._seen = state  # set it even if loading fails: try again only after the next change
        try:
            changed = SigningKeys.load(self._directory, self._server_name)
            current = changed.current
        except ConfigurationError as error:
            logger.error("signing_keys_not_reloaded", reason=str(error))
            return False
        self._active, self._retired = changed._active, changed._retired
        logger.info("signing_keys_reloaded", current=current.key_id)
        return True

    def _new_version(self) -> str:
        taken = {key.version for key in self._active} | {key.version for key in self._retired}
        while True:
            version = "a_" + "".join(secrets.choice(_VERSION_ALPHABET) for _ in range(6))
            if version not in taken:
                return version

    def _delete_seeds(self, versions: set[str]) -> None:
        for path in _key_files(self._directory):
            lines = [line for line in _read_lines(path) if line.split()[1] not in versions]
            if lines:
                _write_file(path, "".join(line + "\n" for line in lines), _modified_ts(path))
            else:
                path.unlink()
        _sync_directory(self._directory)

    def _read(self) -> None:
        seen = _directory_state(self._directory)
        retired = {key.version: key for path in _key_files(self._directory / _OLD) for key in _read_retired(path)}
        active: dict[str, SigningKey] = {}
        for path in _key_files(self._directory):
            _warn_if_readable_by_others(path)
            for key in _read_active(path, self._server_name):
                if key.version in active:
                    raise ConfigurationError(f"{path}: {key.key_id} is in two files, expected one")
                active[key.version] = key
        # A key in both places comes from a rotation that was interrupted before it could delete the seed.
        usable = [key for key in active.values() if key.version not in retired]
        self._active = tuple(sorted(usable, key=lambda key: (key.created_ts, key.version)))
        self._retired = tuple(sorted(retired.values(), key=lambda key: (key.expired_ts, key.version)))
        self._seen = seen


# -- files -------------------------------------------------------------------------------------------------------------

_DirectoryState = tuple[tuple[str, int, int, int], ...]


def _directory_state(directory: Path) -> _DirectoryState:
    """A value that changes with any change to the key files."""
    return tuple(_stat_files(directory)) + tuple(_stat_files(directory / _OLD))


def _stat_files(directory: Path) -> Iterator[tuple[str, int, int, int]]:
    try:
        with os.scandir(directory) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.endswith(_SUFFIX):
                    status = entry.stat()
                    yield entry.name, status.st_mtime_ns, status.st_size, status.st_ino
    except OSError:
        return  # a missing or unreadable directory holds no keys; whoever needs a key gets an error


def _key_files(directory: Path) -> list[Path]:
    try:
        return sorted(directory / name for name in os.listdir(directory) if name.endswith(_SUFFIX))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(directory, error) from error


def _unreadable(path: Path, error: Exception) -> ConfigurationError:
    reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
    return ConfigurationError(
        f"{path}: cannot be read: {reason}. Give the user that runs the homeserver the right to read the keys "
        "(owner and mode), or restore them from a backup"
    )


def _read_lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > KEY_FILE_BYTES_MAX:
            raise ConfigurationError(f"{path}: too large for a key file")
        lines = [line for line in path.read_text("ascii").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    if not lines:
        raise ConfigurationError(
            f"{path}: the key file is empty. Restore it from a backup; if there is none, delete it, so that the server "
            "makes a new key"
        )
    return lines


def _read_active(path: Path, server_name: str) -> Iterator[SigningKey]:
    lines, created_ts = _read_lines(path), _modified_ts(path)
    try:
        keys = signedjson.key.read_signing_keys(lines)
    except Exception as error:  # signedjson does not wrap the errors of its decoders
        raise ConfigurationError(
            f"{path}: not a signing key ({type(error).__name__}), expected: ed25519 <version> <seed in Base64>"
        ) from error
    for key in keys:
        _check_version(path, key.version)
        yield SigningKey(
            server_name, key.version, created_ts, Ed25519SigningKey(key.encode()), f"{ALGORITHM}:{key.version}"
        )


def _read_retired(path: Path) -> Iterator[RetiredKey]:
    lines = _read_lines(path)
    try:
        keys = signedjson.key.read_old_signing_keys(lines)
    except Exception as error:  # signedjson does not wrap the errors of its decoders
        raise ConfigurationError(
            f"{path}: not a retired key ({type(error).__name__}), expected: "
            "ed25519 <version> <expired_ts> <public key in Base64>"
        ) from error
    for key in keys:
        _check_version(path, key.version)
        yield RetiredKey(key.version, _modified_ts(path), key.expired, VerifyKey(key.encode()))


def _check_version(path: Path, version: str) -> None:
    if not _VERSION.match(version):
        raise ConfigurationError(f"{path}: {version!r} is not a key version, expected letters, digits and _")


def _modified_ts(path: Path) -> int:
    return _status(path).st_mtime_ns // 1_000_000


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error


def _warn_if_readable_by_others(path: Path) -> None:
    if _status(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        logger.warning("signing_key_readable_by_others", file=str(path), advice="chmod 600")


def _write_file(path: Path, text: str, modified_ts: int) -> None:
    """Write a file atomically, readable for this user only, and wait until it is on the disk."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(temporary, "w", encoding="ascii", opener=_open_private) as file:
            _write_durably(file, text)
        os.utime(temporary, ns=(modified_ts * 1_000_000, modified_ts * 1_000_000))
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ConfigurationError(f"{path}: cannot be written: {error}") from error
    _sync_directory(path.parent)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL, 0o600)


def _write_durably(file: TextIO, text: str) -> None:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
