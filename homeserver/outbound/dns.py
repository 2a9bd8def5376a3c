"""Resolves host names without threads: slow name servers of some names delay no others.

The system's own resolver blocks a thread for each name, so a handful of names whose name servers do not answer would
delay all others. Here each look-up is a datagram and a timer. ``/etc/hosts`` and ``/etc/resolv.conf`` are honoured, and
read again after they have changed; other sources that a system may be configured for (NIS, mDNS) are not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from homeserver.caches import WeightedCache

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver

T = TypeVar("T")

LOOKUP_SECONDS_MAX = 5.0
"""How long looking up one name may take."""
LIFETIME_SECONDS_MIN = 5.0
"""How long an answer is used at least: a name server that forbids caching must not be asked for each request."""
LIFETIME_SECONDS_MAX = 3600.0
NO_NAME_SECONDS = 30.0
"""How long it is remembered that a name does not exist."""
FAILED_SECONDS = 5.0
"""How long it is remembered that looking up a name failed."""
SECOND_FAMILY_SECONDS = 0.25
"""How long the IPv6 addresses of a name are waited for when its IPv4 addresses are known."""
NAMES_BYTES_MAX = 4 * 2**20
"""Memory for the addresses of names: some 10,000 names."""
HOSTS_FILE_BYTES_MAX = 8 * 2**20
ADDRESSES_MAX = 16
"""How many addresses of a name are kept."""
_ADDRESS_BYTES = 60
_LOOPBACK = ("127.0.0.1", "::1")


class WatchedFile(Generic[T]):
    """What a file says, read again when the file has changed."""

    def __init__(self, file: Path, read: Callable[[Path], T]) -> None:
        self._file = file
        self._read = read
        self._seen: tuple[int, int] | None = None
        self._value: T | None = None

    async def get(self) -> T:
        """What the file says now; raises what reading it raises."""
        try:
            stat = self._file.stat()
            seen = (stat.st_mtime_ns, stat.st_size)
        except OSError:
            seen = (0, 0)
        if self._value is None or seen != self._seen:
            # On a thread: a hosts file that blocks advertisements has a hundred thousand lines.
            self._value = await asyncio.to_thread(self._read, self._file)
            self._seen = seen
        return self._value


class NameServers:
    """The system's name servers, as a resolver of dnspython."""

    def __init__(self, file: Path = Path("/etc/resolv.conf")) -> None:
        self._resolver = WatchedFile(file, _read_resolv_conf)

    async def resolver(self) -> Resolver:
        """The resolver. Raises ``OSError`` if no name servers are configured."""
        # Import it here: a start without federation then saves a tenth of a second.
        import dns.exception

        try:
            return await self._resolver.get()
        except dns.exception.DNSException as error:
            raise OSError(f"no name servers: {error}") from error


def _read_resolv_conf(file: Path) -> Resolver:
    from dns.asyncresolver import Resolver

    resolver = Resolver(str(file))
    resolver.lifetime = LOOKUP_SECONDS_MAX
    return resolver


def read_hosts_file(file: Path) -> dict[str, tuple[str, ...]]:
    """The addresses by name of a file like ``/etc/hosts``; empty if it cannot be read."""
    try:
        with file.open("rb") as opened:
            text = opened.read(HOSTS_FILE_BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return {}
    hosts: dict[str, list[str]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        for name in names:
            of_name = hosts.setdefault(name.lower(), [])
            if len(of_name) < ADDRESSES_MAX and address not in of_name:
                of_name.append(address)
    return {name: tuple(addresses) for name, addresses in hosts.items()}


@dataclass(frozen=True, slots=True)
class _Remembered:
    addresses: tuple[str, ...]
    """Empty if looking the name up failed, or it has no address."""
    until: float
    """On the monotonic clock."""
    failure: str = ""


class DnsLookup:
    """Looks up the addresses of host names: a ``homeserver.outbound.addresses.Lookup``."""

    def __init__(
        self,
        name_servers: NameServers | None = None,
        hosts_file: Path = Path("/etc/hosts"),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name_servers = name_servers or NameServers()
        self._hosts = WatchedFile(hosts_file, read_hosts_file)
        self._monotonic = monotonic
        self._remembered: WeightedCache[str, _Remembered] = WeightedCache(
            "addresses of hosts", NAMES_BYTES_MAX, lambda kept: 200 + _ADDRESS_BYTES * len(kept.addresses)
        )
        self._under_way: dict[str, asyncio.Task[_Remembered]] = {}

    async def __call__(self, host: str) -> list[str]:
        """The addresses of a name, in the order to try them. Raises ``OSError`` when there are none."""
        name = host.lower().rstrip(".")
        if not name.isascii() or not 0 < len(name) <= 253:
            raise OSError("not a host name")
        if found := (await self._hosts.get()).get(name):
            return list(found)
        if name == "localhost" or name.endswith(".localhost"):
            return list(_LOOPBACK)  # RFC 6761: such names always mean this host
        remembered = self._remembered.get(name)
        if remembered is None or remembered.until <= self._monotonic():
            remembered = await self._ask_once(name)
        if not remembered.addresses:
            raise OSError(remembered.failure)
        return list(remembered.addresses)

    async def _ask_once(self, name: str) -> _Remembered:
        """Ask, or wait for the answer to the same question that is under way."""
        task = self._under_way.get(name)
        if task is None:
            task = self._under_way[name] = asyncio.get_running_loop().create_task(self._ask(name))
            task.add_done_callback(lambda _: self._under_way.pop(name, None))
        # The question is worth an answer even when the one who asked first is cancelled.
        return await asyncio.shield(task)

    async def _ask(self, name: str) -> _Remembered:
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._ask_for(name, kind)) for kind in ("A", "AAAA")]
        try:
            first = await tasks[0]
            # A name server that does not know this kind of record may not answer: go on with what there is.
            await asyncio.wait(tasks, timeout=SECOND_FAMILY_SECONDS if first.addresses else None)
        finally:
            for task in tasks:
                task.cancel()
        answers = [first, tasks[1].result()] if tasks[1].done() else [first]
        # IPv4 first: addresses are tried one after the other, and IPv6 is what does not work more often.
        addresses = tuple(address for answer in answers for address in answer.addresses)[:ADDRESSES_MAX]
        until = min(answer.until for answer in answers if answer.addresses or not addresses)
        remembered = _Remembered(addresses, until, first.failure)
        self._remembered.put(name, remembered)
        return remembered

    async def _ask_for(self, name: str, kind: str) -> _Remembered:
        import dns.exception
        import dns.resolver

        try:
            resolver = await self._name_servers.resolver()
            answer = await resolver.resolve(name, kind, search=True, lifetime=LOOKUP_SECONDS_MAX)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer) as error:
            return _Remembered((), self._monotonic() + NO_NAME_SECONDS, _reason(error))
        except (dns.exception.DNSException, OSError, ValueError) as error:
            return _Remembered((), self._monotonic() + FAILED_SECONDS, _reason(error))
        ttl = answer.chaining_result.minimum_ttl
        lifetime = max(LIFETIME_SECONDS_MIN, min(ttl, LIFETIME_SECONDS_MAX))
        addresses = tuple(str(record.address) for record in answer)[:ADDRESSES_MAX]
        return _Remembered(addresses, self._monotonic() + lifetime)

    def close(self) -> None:
        """Cancel the questions under way."""
        for task in list(self._under_way.values()):
            task.cancel()


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:200]
