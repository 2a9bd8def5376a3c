"""The keys of other servers, and verifying events with them.

A key is looked up in memory, then in the database, then at its server, then at the notaries that the administrator
trusts. One fetch returns all keys of a server, so a batch of events needs at most one fetch for each server, and all
callers that need a server's keys at the same time share one fetch. After a fetch that did not return what was needed,
the server is not asked again for a time that doubles with each failure: events that name keys that do not exist must
not make this server flood the servers that they name.

https://spec.matrix.org/v1.19/server-server-api/#retrieving-server-keys
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import structlog

from homeserver.caches import WeightedCache
from homeserver.clock import Clock
from homeserver.errors import InvalidEvent, InvalidSignature, NoPlace, RemoteError
from homeserver.federation.caching import SingleFlight
from homeserver.federation.server_keys import (
    PUBLISHED_BYTES_MAX,
    VALIDITY_MS_MAX,
    ServerKeys,
    is_key_id,
    parse_server_keys,
)
from homeserver.outbound.places import Purpose
from homeserver.protocol.events import Event
from homeserver.protocol.hashes import unpadded_base64
from homeserver.protocol.identifiers import is_valid_server_name
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.signatures import (
    VerifyKeyData,
    event_signatures,
    parse_verify_key,
    required_signers,
    sign_json,
    signatures_of,
    verify_event_signature,
    verify_json,
)
from homeserver.signing import SigningKeys
from homeserver.storage import server_keys as store
from homeserver.storage.database import Database
from homeserver.storage.server_keys import StoredKey, StoredResponse

logger = structlog.get_logger(__name__)

Wanted: TypeAlias = Mapping[str, Mapping[str, int]]
"""Server name to key ID to the time, in ms since the epoch, until which the key must at least be valid."""

KEYS_BYTES_MAX = 16 * 2**20
"""The memory for keys of other servers; all of them are in the database too."""
KEY_BYTES = 400
"""The approximate size of one key."""
FETCHES_AT_ONCE_MAX = 24
"""How many servers one call asks for their keys at the same time; ``outbound.places`` bounds those of all calls."""
KEY_IDS_PER_SERVER_MAX = 50
"""How many key IDs of one server one call may ask for."""
RETRY_MS_MIN = 2_000
"""How long a server is not asked again after a fetch that did not help. Doubles each time."""
RETRY_MS_MAX = 60_000
NOTARY_ANSWER_BYTES_MAX = 2**20
"""How much of what servers published goes into one notary answer; the rest is left out."""
NOTARY_SERVERS_MAX = 100
"""How many servers one notary request to this server may be about."""
ANY_KEY = ""
"""In place of a key ID in notary requests: all keys of the server."""
NOTARY_FETCHES_AT_ONCE = 3
"""How often in a row notary requests may make this server ask another one in vain before the backoff starts."""
NOTARY_REFETCH_MS_MIN = 60_000
"""The least time between two fetches from a server that answers, when notary requests cause them."""
THREADED_EVENTS_MIN = 32
"""Batches of at least this many events are verified on threads."""
EVENTS_AT_A_STRETCH = 200
"""How many events are checked for their signers before other tasks of the event loop may run."""
EVENTS_PER_JOB = 64


class KeySource(Protocol):
    """Requests keys from servers; the federation client implements it."""

    async def get_server_keys(self, destination: str, purpose: Purpose) -> JsonObject:
        """The answer to ``GET /_matrix/key/v2/server``. Raises ``RemoteError``."""

    async def query_server_keys(self, notary: str, wanted: Wanted, purpose: Purpose) -> list[JsonObject]:
        """The answer to ``POST /_matrix/key/v2/query``. Raises ``RemoteError``."""


@dataclass(slots=True)
class _Known:
    """The known keys of one server, and when it may be asked again."""

    keys: dict[str, VerifyKeyData] = field(default_factory=dict)
    fetch_after_ts: int = 0
    failures_in_row: int = 0

    def satisfies(self, wanted: Mapping[str, int]) -> bool:
        """Whether every wanted key is known and valid for long enough."""
        for key_id, valid_until_ts in wanted.items():
            data = self.keys.get(key_id)
            if data is None or (data.valid_until_ts is not None and data.valid_until_ts < valid_until_ts):
                return False
        return True


def _weigh_keys(known: _Known) -> int:
    # A server may publish more keys later: reserve room for some.
    return KEY_BYTES * (4 + len(known.keys))


class KeyRing:
    """Finds the keys of servers and verifies events with them."""

    def __init__(
        self,
        source: KeySource,
        database: Database,
        signing_keys: SigningKeys,
        clock: Clock,
        *,
        trusted_key_servers: Sequence[str] = (),
    ) -> None:
        self._source = source
        self._database = database
        self._signing_keys = signing_keys
        self._clock = clock
        self._notaries = [name for name in trusted_key_servers if name != signing_keys.server_name]
        self._known: WeightedCache[str, _Known] = WeightedCache("keys of servers", KEYS_BYTES_MAX, _weigh_keys)
        self._flights: SingleFlight[tuple[str, Purpose], None] = SingleFlight()
        self._threads: ThreadPoolExecutor | None = None

    # -- events --------------------------------------------------------------------------------------------------------

    async def verify_events(self, events: Sequence[Event]) -> list[InvalidSignature | None]:
        """Check 2 for a batch: for each event the error of its signatures, or ``None``.

        https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu
        """
        signers: list[_Signers] = []
        wanted: dict[str, dict[str, int]] = {}
        for start in range(0, len(events), EVENTS_AT_A_STRETCH):
            if start:
                await asyncio.sleep(0)
            part = events[start : start + EVENTS_AT_A_STRETCH]
            signers_of_part = [_signers_of(event) for event in part]
            signers += signers_of_part
            self._add_wanted(wanted, part, signers_of_part)
        keys = await self.keys_for(wanted, Purpose.EVENT_KEYS)
        if len(events) < THREADED_EVENTS_MIN:
            return _verify(events, signers, keys)
        # PyNaCl releases the GIL while it computes, so threads share the work.
        if self._threads is None:
            self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="verify")
        loop = asyncio.get_running_loop()
        starts = range(0, len(events), EVENTS_PER_JOB)
        jobs = [
            loop.run_in_executor(
                self._threads,
                _verify,
                events[start : start + EVENTS_PER_JOB],
                signers[start : start + EVENTS_PER_JOB],
                keys,
            )
            for start in starts
        ]
        return [outcome for outcomes in await asyncio.gather(*jobs) for outcome in outcomes]

    async def fetch_keys_of(self, events: Iterable[Event]) -> None:
        """Fetch the keys that ``verify_events`` will need for these events."""
        wanted: dict[str, dict[str, int]] = {}
        for index, event in enumerate(events):
            if index % EVENTS_AT_A_STRETCH == EVENTS_AT_A_STRETCH - 1:
                await asyncio.sleep(0)
            self._add_wanted(wanted, [event], [_signers_of(event)])
        await self.keys_for(wanted, Purpose.EVENT_KEYS)

    def _add_wanted(
        self, wanted: dict[str, dict[str, int]], events: Sequence[Event], signers: Sequence[_Signers]
    ) -> None:
        """Add to ``wanted`` the keys that signed these events, and until when they must be valid."""
        now = self._clock.now_ms()
        for event, servers in zip(events, signers, strict=True):
            if isinstance(servers, InvalidSignature):
                continue
            valid_until_ts = _needed_until(event, now)
            for server in servers:
                of_server = wanted.setdefault(server, {})
                for key_id in event_signatures(event, server):
                    of_server[key_id] = max(of_server.get(key_id, 0), valid_until_ts)

    # -- keys ----------------------------------------------------------------------------------------------------------

    async def keys_for(
        self, wanted: Wanted, purpose: Purpose = Purpose.AUTHENTICATION
    ) -> dict[str, Mapping[str, VerifyKeyData]]:
        """All known keys of the servers, after fetching the wanted ones that are missing. Keys that cannot be found are
        left out. ``purpose`` says whose places the fetches take.

        The result includes old keys, which are valid until they expired: compare ``valid_until_ts`` with the time in
        question.
        """
        known = {server: self._known.get(server) for server in wanted}
        strangers = [
            server
            for server, found in known.items()
            if found is None and server != self._signing_keys.server_name and is_valid_server_name(server)
        ]
        if strangers:
            known.update(await self._load(strangers))
        unsatisfied = {
            server: needed
            for server, found in known.items()
            if found is not None and not found.satisfies(needed := _askable(wanted[server]))
        }
        if unsatisfied:
            turns = asyncio.Semaphore(FETCHES_AT_ONCE_MAX)

            async def fetch(server: str, needed: Mapping[str, int]) -> None:
                async with turns:
                    await self._fetch(server, known[server], needed, purpose)

            await asyncio.gather(*(fetch(server, needed) for server, needed in unsatisfied.items()))
        keys: dict[str, Mapping[str, VerifyKeyData]] = {
            server: found.keys for server, found in known.items() if found is not None
        }
        if self._signing_keys.server_name in wanted:
            keys[self._signing_keys.server_name] = self._signing_keys.verify_keys()
        return keys

    async def are_known(self, server: str, wanted: Mapping[str, int]) -> bool:
        """Whether the wanted keys of one server are known here, so that ``keys_for`` will ask nobody for them."""
        known = self._known.get(server)
        if known is None:
            if not is_valid_server_name(server):
                return False
            known = (await self._load([server]))[server]
        return known.satisfies(wanted)

    async def _load(self, servers: Sequence[str]) -> dict[str, _Known]:
        """Load the keys of servers from the database into memory."""
        stored = await self._database.read(store.load, servers)
        loaded: dict[str, _Known] = {}
        for server in servers:
            known = self._known.get(server)  # another call may have loaded it meanwhile
            if known is None:
                known = _Known({key.key_id: _from_stored(key) for key in stored.get(server, ())})
                self._known.put(server, known)
            loaded[server] = known
        return loaded

    async def _fetch(
        self,
        server: str,
        known: _Known | None,
        wanted: Mapping[str, int],
        purpose: Purpose,
        *,
        at_once: bool = False,
    ) -> None:
        if known is not None and (at_once or self._clock.now_ms() >= known.fetch_after_ts):
            # By purpose too: an incoming request must not wait for a fetch that waits behind those of strangers.
            key = (server, purpose)
            with contextlib.suppress(NoPlace):  # no fault of the server, so no reason to ask it later
                await self._flights.run(key, lambda: self._fetch_now(server, known, wanted, purpose))

    async def _fetch_now(self, server: str, known: _Known, wanted: Mapping[str, int], purpose: Purpose) -> None:
        """Ask the server itself, then the notaries, until all wanted keys are known; store the keys, and whether it
        helped. Raises ``NoPlace``.
        """
        is_new = await self._ask_origin(server, known, purpose)
        # Ask for a notary's own keys only at the notary itself: two notaries that ask each other would wait for ever.
        for notary in self._notaries if server not in self._notaries else ():
            if is_new and known.satisfies(wanted):
                break
            is_new |= await self._ask_notary(notary, server, known, wanted, purpose)
        if is_new and known.satisfies(wanted):
            known.failures_in_row = 0
            known.fetch_after_ts = 0
            return
        known.fetch_after_ts = self._clock.now_ms() + min(RETRY_MS_MIN << min(known.failures_in_row, 20), RETRY_MS_MAX)
        known.failures_in_row += 1

    async def _ask_origin(self, server: str, known: _Known, purpose: Purpose) -> bool:
        try:
            response = await self._source.get_server_keys(server, purpose)
            keys = parse_server_keys(response, server, self._clock.now_ms())
        except NoPlace:
            raise
        except (RemoteError, InvalidSignature) as error:
            logger.info("server_keys_not_fetched", server=server, reason=str(error))
            return False
        await self._remember(keys, known, {**keys.old_verify_keys, **keys.verify_keys})
        return True

    async def _ask_notary(
        self, notary: str, server: str, known: _Known, wanted: Mapping[str, int], purpose: Purpose
    ) -> bool:
        """https://spec.matrix.org/v1.19/server-server-api/#querying-keys-through-another-server"""
        try:
            responses = await self._source.query_server_keys(notary, {server: wanted}, purpose)
            found = [
                parse_server_keys(response, server, self._clock.now_ms())
                for response in responses
                if isinstance(response, dict) and response.get("server_name") == server
                if await self._check_notary_signature(notary, response, purpose)
            ]
        except NoPlace:
            raise
        except (RemoteError, InvalidSignature) as error:
            logger.info("server_keys_not_fetched", server=server, notary=notary, reason=str(error))
            return False
        for keys in sorted(found, key=lambda keys: keys.valid_until_ts):
            published = {**keys.old_verify_keys, **keys.verify_keys}
            # A notary may have an older document than we do: it may add keys and extend validity, but not take back
            # any.
            news = {key_id: data for key_id, data in published.items() if _is_newer(data, known.keys.get(key_id))}
            await self._remember(keys, known, news)
        return bool(found)

    async def _check_notary_signature(self, notary: str, response: JsonObject, purpose: Purpose) -> bool:
        now = self._clock.now_ms()
        signatures = signatures_of(response, notary)
        keys = (await self.keys_for({notary: dict.fromkeys(signatures, now)}, purpose)).get(notary, {})
        for key_id in signatures:
            data = keys.get(key_id)
            if data is not None and (data.valid_until_ts is None or data.valid_until_ts >= now):
                verify_json(response, notary, key_id, data.key)
                return True
        raise InvalidSignature(f"not signed with a valid key of the notary {notary}")

    async def _remember(self, keys: ServerKeys, known: _Known, news: Mapping[str, VerifyKeyData]) -> None:
        now = self._clock.now_ms()
        known.keys.update(news)
        rows = [_to_stored(key_id, data, is_old=key_id in keys.old_verify_keys) for key_id, data in news.items()]
        response = None
        if keys.published is not None:
            response = StoredResponse(keys.published, keys.valid_until_ts, now)
        await self._database.write(store.store, keys.server_name, rows, now, response)

    # -- as a notary ---------------------------------------------------------------------------------------------------

    async def notary_response(self, wanted: Wanted) -> list[JsonObject]:
        """What these servers published about their keys, each signed by us too; unreachable servers are left out.

        The times say until when the keys should be valid. Without key IDs, or with the key ID ``ANY_KEY`` among them,
        the result has all keys of the server that are known here. A key that the server no longer publishes comes in a
        separate object: the last one that contained it.

        https://spec.matrix.org/v1.19/server-server-api/#post_matrixkeyv2query
        """
        servers = [server for server in wanted if is_valid_server_name(server)][:NOTARY_SERVERS_MAX]
        answers = await asyncio.gather(*(self._published_by(server, wanted[server]) for server in servers))
        signer = self._signing_keys.current
        signed: list[JsonObject] = []
        room = NOTARY_ANSWER_BYTES_MAX
        for response in (response for answer in answers for response in answer):
            room -= len(response.response)
            if room < 0:
                break
            signed.append(sign_json(response.parsed(), signer))
        if self._signing_keys.server_name in wanted:
            signed.append(sign_json(self._signing_keys.server_keys_object(self._clock.now_ms()), signer))
        return signed

    async def _published_by(self, server: str, wanted: Mapping[str, int]) -> list[StoredResponse]:
        now = self._clock.now_ms()
        if server == self._signing_keys.server_name:
            return []
        stored = await self._database.read(store.load_responses, server)
        lacks = _lacks_one(stored, _askable(wanted))
        if lacks or _is_stale(stored[0], wanted, now):
            known = (await self._load([server]))[server]
            may_be_at_once = lacks and known.failures_in_row < NOTARY_FETCHES_AT_ONCE
            await self._fetch(server, known, _askable(wanted), Purpose.NOTARY, at_once=may_be_at_once)
            # "If the server fails to respond to this request, intermediate notary servers should continue to return
            # the last response they received from the server".
            stored = await self._database.read(store.load_responses, server)
        key_ids = set(_askable(wanted))
        named: list[StoredResponse] = []
        for response in stored:
            if not key_ids.isdisjoint(found := response.key_ids()):
                named.append(response)
                key_ids -= found
        if ANY_KEY in wanted or not wanted:
            named += [response for response in stored if response not in named]
        # Earlier versions stored whatever servers published.
        return [response for response in named or stored[:1] if len(response.response) <= PUBLISHED_BYTES_MAX]

    async def aclose(self) -> None:
        """Cancel fetches and stop the threads."""
        await self._flights.aclose()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


_Signers: TypeAlias = Iterable[str] | InvalidSignature


def _signers_of(event: Event) -> _Signers:
    try:
        return required_signers(event)
    except InvalidSignature as error:
        return error


def _verify(
    events: Sequence[Event], signers: Sequence[_Signers], keys: Mapping[str, Mapping[str, VerifyKeyData]]
) -> list[InvalidSignature | None]:
    return [_verify_one(event, servers, keys) for event, servers in zip(events, signers, strict=True)]


def _verify_one(
    event: Event, servers: _Signers, keys: Mapping[str, Mapping[str, VerifyKeyData]]
) -> InvalidSignature | None:
    if isinstance(servers, InvalidSignature):
        return servers
    try:
        for server in servers:
            verify_event_signature(event, server, keys.get(server, {}))
    except InvalidSignature as error:
        return error
    except InvalidEvent as error:
        return InvalidSignature(f"{event.event_id}: {error}")
    return None


def _needed_until(event: Event, now: int) -> int:
    """The time until which a key must be valid to count for the event."""
    if not event.version.enforce_key_validity:
        return 0
    # No key is valid for longer than that, so fetching cannot help an event from the more distant future.
    return event.origin_server_ts if event.origin_server_ts <= now + VALIDITY_MS_MAX else 0


def _askable(wanted: Mapping[str, int]) -> dict[str, int]:
    """The wanted keys that are worth a request."""
    usable = {key_id: valid_until_ts for key_id, valid_until_ts in wanted.items() if is_key_id(key_id)}
    return dict(list(usable.items())[:KEY_IDS_PER_SERVER_MAX])


def _is_newer(data: VerifyKeyData, known: VerifyKeyData | None) -> bool:
    if known is None:
        return True
    return data.key == known.key and (data.valid_until_ts or 0) > (known.valid_until_ts or 0)


def _from_stored(key: StoredKey) -> VerifyKeyData:
    return VerifyKeyData(parse_verify_key(key.verify_key), key.valid_until_ts, is_old=key.expired_ts is not None)


def _to_stored(key_id: str, data: VerifyKeyData, *, is_old: bool) -> StoredKey:
    valid_until_ts = data.valid_until_ts or 0
    return StoredKey(key_id, unpadded_base64(bytes(data.key)), valid_until_ts, valid_until_ts if is_old else None)


def _lacks_one(stored: Sequence[StoredResponse], wanted: Mapping[str, int]) -> bool:
    """Whether one of the keys in a notary request is unknown here, or not valid for long enough, or no key is known at
    all.

    It may be a new key: the requester has seen something that was signed with it.
    """
    given = [(response.key_ids(), response.valid_until_ts) for response in stored]
    return not given or not all(
        any(key_id in key_ids and until >= needed for key_ids, until in given) for key_id, needed in wanted.items()
    )


def _is_stale(latest: StoredResponse, wanted: Mapping[str, int], now: int) -> bool:
    """Whether a server should be asked again before this server signs its keys, all of which are known here."""
    if now - latest.fetched_ts < NOTARY_REFETCH_MS_MIN:
        return False
    needed = max([now, *(min(valid_until_ts, now + VALIDITY_MS_MAX) for valid_until_ts in wanted.values())])
    # "Intermediate notary servers should cache a response for half of its lifetime to avoid serving a stale response."
    return latest.valid_until_ts < needed or now > (latest.fetched_ts + latest.valid_until_ts) // 2
