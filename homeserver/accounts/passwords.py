"""Passwords: hashed with Argon2id, on a bounded number of threads of their own.

Parameters: 19 MiB, two passes, one lane; OWASP's recommendation for Argon2id. One hash takes 20 to 50 ms of a core, and
all together at most 2 x 19 MiB of memory. More memory would make guessing harder, but this server is meant to be small.

Those who wait take turns by address, so that a flood of logins from one address delays others by one hash at most. The
threads have a low priority: the event loop, which serves everybody, comes first.

https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

from homeserver.errors import BadJson, WeakPassword
from homeserver.limits.fair_budget import FairBudget

T = TypeVar("T")

MEMORY_KIB = 19_456
PASSES = 2
LANES = 1
AT_ONCE_MAX = 2
WAITING_MAX = 200
"""How many requests may wait for a thread; further ones get M_LIMIT_EXCEEDED."""
WAITING_PER_ADDRESS_MAX = 16
NICENESS = 10
PASSWORD_BYTES_MAX = 512


class Passwords:
    """Computes and checks password hashes without blocking the event loop."""

    def __init__(self, *, memory_kib: int = MEMORY_KIB, passes: int = PASSES) -> None:
        self._argon2 = argon2.PasswordHasher(
            time_cost=passes, memory_cost=memory_kib, parallelism=LANES, hash_len=32, salt_len=16
        )
        self._nobodys = _hash_that_nothing_fits(memory_kib, passes)
        self._threads = ThreadPoolExecutor(AT_ONCE_MAX, thread_name_prefix="passwords", initializer=_lower_priority)
        self._turns = FairBudget(
            AT_ONCE_MAX,
            waiting_max=WAITING_MAX,
            waiting_per_subject_max=WAITING_PER_ADDRESS_MAX,
            text="Too many logins at once",
        )

    async def hash(self, password: str, address: str = "") -> str:
        """The hash to store for a new password, asked for by an address; without one by the server itself.

        Raises ``WeakPassword``, ``BadJson``, ``LimitExceeded``.
        """
        return await self._run(address, self.hash_now, password)

    async def verify(self, password_hash: str | None, password: str, address: str = "") -> bool:
        """Whether the password matches the hash. With None as the hash it never does, after the same time.

        Raises ``LimitExceeded``.
        """
        return await self._run(address, self._verify_now, password_hash, password)

    def hash_now(self, password: str) -> str:
        """The same as ``hash``, on the calling thread."""
        check_new_password(password)
        return self._argon2.hash(password)

    def needs_rehash(self, password_hash: str) -> bool:
        """Whether a hash was made with other parameters than the current ones."""
        return self._argon2.check_needs_rehash(password_hash)

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify_now(self, password_hash: str | None, password: str) -> bool:
        if len(password.encode()) > PASSWORD_BYTES_MAX:
            return False
        try:
            return self._argon2.verify(password_hash or self._nobodys, password) and password_hash is not None
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, address: str, function: Callable[..., T], *args: str | None) -> T:
        async with self._turns.share(address):
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


def _lower_priority() -> None:
    # On Linux each thread has a niceness of its own; elsewhere this would slow down the whole server.
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def check_new_password(password: str) -> None:
    """Raise ``WeakPassword`` for an empty password, ``BadJson`` for one that is too long.

    Clients enforce how complex a password must be:
    https://spec.matrix.org/v1.19/client-server-api/#password-management
    """
    if not password:
        raise WeakPassword("The password is empty")
    if len(password.encode()) > PASSWORD_BYTES_MAX:
        raise BadJson(f"The password may have {PASSWORD_BYTES_MAX} bytes")


def _hash_that_nothing_fits(memory_kib: int, passes: int) -> str:
    """A well-formed hash that no password matches, to check against when the user does not exist."""
    salt, digest = (base64.b64encode(os.urandom(size)).decode().rstrip("=") for size in (16, 32))
    return f"$argon2id$v=19$m={memory_kib},t={passes},p={LANES}${salt}${digest}"
