"""Check 7: asks the policy servers of rooms to sign received events and events of our users.

A job, which runs while the room is locked for writing, only finds out that a signature is missing, and raises
``Unasked``. Its caller asks while the room is not locked, which may take seconds, and submits the job again with the
answer.

https://spec.matrix.org/v1.19/server-server-api/#policy-servers
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from homeserver.clock import Clock
from homeserver.errors import (
    Forbidden,
    HomeserverError,
    InvalidSignature,
    LimitExceeded,
    MatrixError,
    NotRecommended,
    RemoteError,
    RemoteRefused,
    RemoteTimedOut,
    RemoteUnreachable,
    TooLarge,
)
from homeserver.federation.caching import LruDict
from homeserver.federation.refusals import as_matrix_error
from homeserver.graph.events import Events
from homeserver.graph.judgement import Judge, MissingAncestors
from homeserver.graph.working_head import NewEvent, SentInBatch, WorkingHead
from homeserver.protocol.event_format import PDU_BYTES_MAX
from homeserver.protocol.events import Event
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.policy_servers import (
    POLICY,
    PolicyServer,
    is_for_policy_server,
    is_recommended,
    policy_server_of,
    with_recommendation,
)
from homeserver.storage.event_graph import Verdict

logger = structlog.get_logger(__name__)

SECONDS_MAX = 15.0
"""How long all events of a request or batch wait for a policy server in total."""
REQUESTS_AT_ONCE_MAX = 10
"""How many requests one policy server gets from us at the same time."""
SECOND_ATTEMPT_SECONDS = 1.0
"""The pause before a failing policy server is asked again about another server's event, which has one chance only."""
LEFT_ALONE_MS_MIN = 2_000
"""How long a failing policy server is not asked at all. Doubles each time."""
LEFT_ALONE_MS_MAX = 30_000
SERVERS_REMEMBERED_MAX = 1_000
ROUNDS_MAX = 3
"""How often policy servers are asked about one batch, if the room changes its policy meanwhile."""

_PASSED_ON = frozenset(
    {(400, "M_FORBIDDEN"), (400, "M_BAD_JSON"), (400, "M_NOT_JSON"), (403, "M_FORBIDDEN"), (404, "M_NOT_FOUND")}
)
"""The refusals that the specification defines for policy servers. Other errors could tell a client more than that its
event is refused: M_UNKNOWN_TOKEN, for instance, would log it out."""


class PolicySigner(Protocol):
    """Asks policy servers: the federation client."""

    async def ask_policy_server_to_sign(self, destination: str, event: bytes) -> JsonObject:
        """The answer of ``POST /_matrix/policy/v1/sign``. Raises ``RemoteError``."""


class Unasked(HomeserverError):
    """The room's policy server has to be asked about an event first."""

    def __init__(self, event: Event, server: PolicyServer) -> None:
        super().__init__(f"{server.name} has not signed {event.event_id}")
        self.event = event
        self.server = server


@dataclass(frozen=True, slots=True)
class Opinion:
    """The answer of a policy server about an event."""

    server: PolicyServer
    event: Event
    """The event with its signature, if it gave one."""
    objection: MatrixError | None = None
    """The reason why the event is not recommended."""


@dataclass(slots=True)
class Opinions:
    """The answers of policy servers about the events of one batch."""

    by_event_id: dict[str, Opinion] = field(default_factory=dict)
    rounds: int = 0
    """How often they were asked: more than once if the room changes its policy meanwhile."""

    def objection_to(self, event: Event) -> MatrixError | None:
        """The last objection to the event, if there is one."""
        opinion = self.by_event_id.get(event.event_id)
        return opinion.objection if opinion is not None else None


@dataclass(slots=True)
class _Standing:
    """The recent failures of a policy server."""

    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(REQUESTS_AT_ONCE_MAX))
    failures_in_row: int = 0
    left_alone_until_ts: int = 0


class PolicyServers:
    """Finds the policy servers of rooms, and asks them."""

    def __init__(self, client: PolicySigner, events: Events, judge: Judge, clock: Clock) -> None:
        self._client = client
        self._events = events
        self._judge = judge
        self._clock = clock
        self._standings: LruDict[str, _Standing] = LruDict(SERVERS_REMEMBERED_MAX, "policy servers")

    # -- while the room is locked for writing --------------------------------------------------------------------------

    async def missing(self, working: WorkingHead, event: Event) -> PolicyServer | None:
        """The policy server that has to sign an event before it is appended, by the current state of the room."""
        policy_id = working.head.state.get(POLICY)
        if policy_id is None or not is_for_policy_server(event):
            return None
        server = policy_server_of(await self._policy(working, policy_id), working.head.joined_servers)
        return None if server is None or is_recommended(event, server) else server

    async def _policy(self, working: WorkingHead, event_id: str) -> JsonObject:
        stored = None if working.knows(event_id) else await self._events.get(working.head.room_id, event_id)
        if stored is None:
            return (await working.events([event_id]))[event_id].content
        return stored.event.content

    async def opinion(self, working: WorkingHead, event: Event, opinions: Opinions) -> Opinion | None:
        """Check 7 for another server's event: the answer of the policy server, or None if it need not be asked.

        Raises ``Unasked``.
        """
        if (server := await self.missing(working, event)) is None:
            return None
        opinion = opinions.by_event_id.get(event.event_id)
        if opinion is None or opinion.server != server:
            raise Unasked(event, server)
        return opinion

    async def take_up(self, working: WorkingHead, event: Event) -> NewEvent | None:
        """Check our own event, which was composed before the policy server was asked, again on the current head.

        Returns None if it cannot be sent any more as it is. Raises ``SentInBatch`` if it is in the graph already,
        because the policy server has passed it on.
        """
        if working.knows(event.event_id):
            raise SentInBatch(event)
        stored = await self._events.get(event.room_id, event.event_id)
        if stored is not None:
            if stored.verdict == Verdict.ACCEPTED:
                raise SentInBatch(stored.original)
            return None
        if await self.missing(working, event) is not None:
            return None
        try:
            before = await self._judge.state_before(working, event)
            ruling = await self._judge.judge(working, event, before)
        except MissingAncestors:
            return None
        return NewEvent(event, before) if ruling.verdict == Verdict.ACCEPTED else None

    # -- while the room is not locked ----------------------------------------------------------------------------------

    async def sign(self, server: PolicyServer, event: Event) -> Event:
        """Our user's event with the policy server's signature.

        Raises ``NotRecommended`` if it refuses, ``Forbidden`` if its signature is invalid, ``LimitExceeded``,
        ``RemoteFailed`` and ``RemoteTimedOut`` if it does not answer.
        """
        try:
            async with asyncio.timeout(SECONDS_MAX):
                signed = await self._ask(server, event, attempts=1)
        except (RemoteError, InvalidSignature, TimeoutError) as error:
            logger.info("event not recommended", room_id=event.room_id, server=server.name, reason=str(error))
            raise _answer_to_client(server, error) from error
        if len(signed.json) > PDU_BYTES_MAX:
            raise TooLarge(f"With its signatures, the event is larger than {PDU_BYTES_MAX} bytes")
        return signed

    async def ask_about(self, server: PolicyServer, events: Iterable[Event], opinions: Opinions) -> None:
        """Add the policy server's answers about other servers' events, all of them within ``SECONDS_MAX``.

        An event without an answer is not recommended, like a refused one. Never raises.
        """
        wanted = [e for e in events if is_for_policy_server(e) and not is_recommended(e, server)]
        late = RemoteTimedOut(f"The room's policy server {server.name} did not answer in time")
        opinions.by_event_id.update((event.event_id, Opinion(server, event, late)) for event in wanted)
        opinions.rounds += 1
        if opinions.rounds > ROUNDS_MAX:
            return

        async def ask(event: Event) -> None:
            opinions.by_event_id[event.event_id] = await self._opinion(server, event)

        try:
            async with asyncio.timeout(SECONDS_MAX):
                await asyncio.gather(*map(ask, wanted))
        except TimeoutError:
            logger.info("policy server too slow", server=server.name, events=len(wanted))

    async def _opinion(self, server: PolicyServer, event: Event) -> Opinion:
        try:
            signed = await self._ask(server, event, attempts=2)
        except (RemoteError, InvalidSignature) as error:
            logger.info("event not recommended", event_id=event.event_id, server=server.name, reason=str(error))
            return Opinion(server, event, _answer_to_client(server, error))
        # Other servers may ask about an event themselves if it has no room for another signature.
        return Opinion(server, signed if len(signed.json) <= PDU_BYTES_MAX else event)

    async def _ask(self, server: PolicyServer, event: Event, *, attempts: int) -> Event:
        """The event with the policy server's signature. Raises ``RemoteError``, ``InvalidSignature``."""
        standing = self._standings.get(server.name)
        if standing is None:
            standing = _Standing()
            self._standings.put(server.name, standing)
        async with standing.slots:
            if self._clock.now_ms() < standing.left_alone_until_ts:
                raise RemoteUnreachable(server.name, "it failed a moment ago")
            for left in reversed(range(attempts)):
                try:
                    answer = await self._client.ask_policy_server_to_sign(server.name, event.json)
                except RemoteError as error:
                    self._note(standing, error)
                    if not left or not _may_pass(error):
                        raise
                    await asyncio.sleep(SECOND_ATTEMPT_SECONDS)
                else:
                    self._note(standing)
                    break
        return with_recommendation(event, server, answer)

    def _note(self, standing: _Standing, error: RemoteError | None = None) -> None:
        if error is None or not _is_outage(error):
            standing.failures_in_row = standing.left_alone_until_ts = 0
            return
        pause_ms = min(LEFT_ALONE_MS_MIN << min(standing.failures_in_row, 20), LEFT_ALONE_MS_MAX)
        standing.failures_in_row += 1
        standing.left_alone_until_ts = self._clock.now_ms() + pause_ms


def _is_outage(error: RemoteError) -> bool:
    return not isinstance(error, RemoteRefused) or error.status >= 500


def _may_pass(error: RemoteError) -> bool:
    return _is_outage(error) or (isinstance(error, RemoteRefused) and error.status == LimitExceeded.status)


def _answer_to_client(server: PolicyServer, error: RemoteError | InvalidSignature | TimeoutError) -> MatrixError:
    """The error for our user whose event has no valid signature of the policy server."""
    if isinstance(error, RemoteRefused):
        # "If the Policy Server returned an error, that error SHOULD be provided to the client verbatim."
        if (error.status, error.errcode) in _PASSED_ON:
            return NotRecommended(error.status, error.errcode, error.error)
        if error.status == LimitExceeded.status:
            wait = {} if error.retry_after_ms is None else {"retry_after_ms": error.retry_after_ms}
            return LimitExceeded(error.error or None, **wait)
    if isinstance(error, RemoteError):
        return as_matrix_error(error, "have the event checked by the room's policy server")
    if isinstance(error, TimeoutError):
        return RemoteTimedOut(f"The room's policy server {server.name} did not answer in time")
    # This will not pass by itself: a user who may change the room's policy has to set the new key.
    return Forbidden(f"The event could not be sent: {error}")
