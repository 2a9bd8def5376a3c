"""Finds out the state before an event whose prev_events are missing, from what other servers say.

Whoever sends an event may lie about the state before it, so that it is accepted here and rejected where its past is
known. So servers that had no part in sending it are asked first, and about the missing prev_events rather than about
the event, which they may never have heard of. See docs/decisions/0010-missing-ancestors.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

import structlog

from homeserver.errors import IncompleteAnswer, NotAuthorized, RemoteError
from homeserver.graph.ancestors import Ancestors
from homeserver.graph.events import Events
from homeserver.graph.helpers import Helpers, NobodyToAsk, independent_servers
from homeserver.graph.judgement import GivenState, MissingAncestors
from homeserver.graph.outliers import Outliers
from homeserver.graph.silent_servers import SilentServers, is_given_up
from homeserver.graph.state import RoomHead, StateReader, StateSnapshot, stored_events_of
from homeserver.protocol.authorization import auth_event_keys, authorize
from homeserver.protocol.events import CREATE, Event
from homeserver.protocol.identifiers import server_of
from homeserver.storage.event_graph import Verdict

logger = structlog.get_logger(__name__)

PAST_EVENTS_MAX = 20
"""About how many missing events servers are asked while one batch of events is placed."""
ATTEMPTS_BEFORE_BELIEF = 5
"""After so many attempts, in about a minute and a half, the sender of an event is believed if nobody else answers."""
WITNESS_SECONDS_MAX = 5.0
"""How long a server that did not send an event may take for an answer about the past; a client may be waiting."""


@dataclass(slots=True)
class Inquiry:
    """What is asked about the past while one batch of events is placed, and the answers."""

    helpers: Helpers
    """The servers that may have sent the events, and others."""
    witnesses: Helpers
    """Servers in the room that did not send the events, without those that have been silent for long."""
    names: AbstractSet[str]
    """Who the witnesses were at first."""
    silences: AbstractSet[str]
    """The servers among them that did not answer the last time."""
    without_unverifiable: bool
    """Whether to do without what cannot be verified: see ``Ancestors.fetch_state_before``."""
    shown: dict[str, Event] = field(default_factory=dict)
    """Events that some server has shown, with valid signatures, by event ID."""
    after: dict[tuple[str, str], StateSnapshot] = field(default_factory=dict)
    """The states after missing events, by event ID and the server that was not asked."""
    asked: set[tuple[str, str]] = field(default_factory=set)
    """What was asked for, whether it was answered or not."""


class PastStates:
    """Finds out states before events whose prev_events are missing."""

    def __init__(
        self,
        ancestors: Ancestors,
        outliers: Outliers,
        events: Events,
        states: StateReader,
        silent: SilentServers,
        server_name: str,
    ) -> None:
        self._ancestors = ancestors
        self._outliers = outliers
        self._events = events
        self._states = states
        self._silent = silent
        self._server_name = server_name

    async def begin(self, head: RoomHead, origin: str, helpers: Helpers, without_unverifiable: bool) -> Inquiry:
        """Begin to ask about the past of events that ``origin`` sent, or gave as history."""
        create = await self._events.get(head.room_id, head.state[CREATE]) if CREATE in head.state else None
        likely = [server_of(create.original.sender)] if create is not None else []
        servers = independent_servers(head, self._server_name, origin, *likely)
        silences = await self._silent.silences_of(servers)
        witnesses = [name for name in servers if not is_given_up(silences.get(name))]
        return Inquiry(
            helpers,
            Helpers(witnesses, WITNESS_SECONDS_MAX),
            frozenset(witnesses),
            silences.keys(),
            without_unverifiable,
        )

    async def end(self, inquiry: Inquiry) -> None:
        """Remember which witnesses did not answer: after some minutes nothing waits for them any more."""
        for server_name in sorted(inquiry.witnesses.silent):
            await self._silent.did_not_answer(server_name)
        for server_name in sorted(inquiry.witnesses.answered & inquiry.silences):
            await self._silent.answered(server_name)

    async def before_new(
        self,
        inquiry: Inquiry,
        head: RoomHead,
        event: Event,
        missing: Collection[str],
        *,
        may_believe: bool,
    ) -> GivenState:
        """The state before a new event that lacks the prev_events ``missing``.

        ``may_believe``: use what the event's sender says of it, if nobody else says anything. Otherwise it is only used
        where there is nobody else to ask.

        Raises ``MissingAncestors`` if servers should be asked again later, and ``RemoteError`` if not even the sender
        answers.
        """
        if not inquiry.names <= {event.sender_domain}:
            try:
                return await self._derived(inquiry, head, event, missing)
            except RemoteError as error:
                logger.info("past of an event not told by others", event_id=event.event_id, reason=str(error))
            try:
                return await self._told(inquiry, inquiry.witnesses, head, event, {event.sender_domain})
            except RemoteError as error:
                logger.info("event not known to others", event_id=event.event_id, reason=str(error))
            if not may_believe:
                raise MissingAncestors(event.event_id, prev=missing)
        word = await self._told(inquiry, inquiry.helpers, head, event)
        return replace(word, is_independent=False)

    async def before_old(self, inquiry: Inquiry, head: RoomHead, event: Event, missing: Collection[str]) -> GivenState:
        """The state before an event of the past that lacks the prev_events ``missing``.

        The server that gave the event is asked about it after others, and its sender's server only if all others that
        should know it say that they do not: they came later, perhaps. Raises ``MissingAncestors`` if servers should be
        asked again later, and ``RemoteError`` if nobody knows.
        """
        sender = event.sender_domain
        for servers, except_for in ((inquiry.witnesses, {sender}), (inquiry.helpers, {sender, *inquiry.names})):
            try:
                return await self._told(inquiry, servers, head, event, except_for)
            except RemoteError as error:
                logger.info("event not known to others", event_id=event.event_id, reason=str(error))
        try:
            return await self._derived(inquiry, head, event, missing)
        except RemoteError as error:
            logger.info("past of an event not told by others", event_id=event.event_id, reason=str(error))
        if inquiry.witnesses.is_unsettled:
            raise MissingAncestors(event.event_id, prev=missing)
        return await self._told(inquiry, inquiry.helpers, head, event, inquiry.names - {sender})

    # -- by whom -------------------------------------------------------------------------------------------------------

    async def _told(
        self, inquiry: Inquiry, by: Helpers, head: RoomHead, event: Event, except_for: Collection[str] = ()
    ) -> GivenState:
        """The state before the event itself."""
        return GivenState(before=await self._fetch(inquiry, by, head, event.event_id, except_for))

    async def _fetch(
        self, inquiry: Inquiry, by: Helpers, head: RoomHead, event_id: str, except_for: Collection[str]
    ) -> StateSnapshot:
        return await self._ancestors.fetch_state_before(
            by, head, event_id, except_for=except_for, without_unverifiable=inquiry.without_unverifiable
        )

    async def _derived(self, inquiry: Inquiry, head: RoomHead, event: Event, missing: Iterable[str]) -> GivenState:
        """The states after missing prev_events, without a word of the event's sender."""
        suspect = event.sender_domain
        if inquiry.names <= {suspect}:
            raise NobodyToAsk()
        return GivenState(after={prev: await self._after(inquiry, head, prev, suspect) for prev in sorted(missing)})

    async def _after(self, inquiry: Inquiry, head: RoomHead, event_id: str, suspect: str) -> StateSnapshot:
        """The state after an event: known here, or according to any server but the ``suspect``.

        An event that none of them knows, but some server shows, follows others, and the state after it follows from the
        states after those. Raises ``RemoteError`` if that does not lead to anything that is known.
        """
        key = (event_id, suspect)
        if (known := inquiry.after.get(key)) is not None:
            return known
        if event_id == head.state.get(CREATE):
            return head.snapshot.towards({CREATE: event_id})
        stored = await self._events.get(head.room_id, event_id)
        if stored is not None and stored.state_group is not None:
            return await self._states.snapshot(stored.state_group)
        if key in inquiry.asked or len(inquiry.asked) >= PAST_EVENTS_MAX:
            raise IncompleteAnswer(suspect, "the event follows too many events that nobody else knows")
        inquiry.asked.add(key)
        event = stored.original if stored is not None else await self._shown(inquiry, head, event_id)
        try:
            before = await self._fetch(inquiry, inquiry.witnesses, head, event_id, {suspect})
        except RemoteError:
            if not event.prev_events:
                raise
            after = [await self._after(inquiry, head, prev, suspect) for prev in sorted(set(event.prev_events))]
            before = await self._states.resolve(head, after)
        inquiry.after[key] = result = await self._with_change(head, event, before)
        return result

    async def _shown(self, inquiry: Inquiry, head: RoomHead, event_id: str) -> Event:
        if event_id not in inquiry.shown:
            inquiry.shown.update(await self._ancestors.show(inquiry.helpers, head, [event_id]))
        if event_id not in inquiry.shown:
            raise IncompleteAnswer(head.room_id, "no server shows an event that comes before")
        return inquiry.shown[event_id]

    async def _with_change(self, head: RoomHead, event: Event, before: StateSnapshot) -> StateSnapshot:
        """The state after an event: what it changes, if it is allowed, in the state before it.

        A state event is stored as an outlier, since the state names it.
        """
        if not event.is_state:
            return before
        await self._outliers.take_in(head, event.sender_domain, [event.pdu])
        stored = await self._events.get(head.room_id, event.event_id)
        if stored is None:
            raise IncompleteAnswer(head.room_id, "the auth events of an event that comes before cannot be had")
        keys = auth_event_keys(event.type, event.sender, event.state_key, event.content, event.version)
        found = await stored_events_of(self._events, head.room_id, before.state, keys)
        create = None
        if head.version.room_id_is_create_hash:
            create = await self._events.get(head.room_id, "$" + head.room_id[1:])
        try:
            if stored.verdict & Verdict.REJECTED:
                raise NotAuthorized("its auth events do not allow it")
            authorize(
                event,
                {key: auth.original for key, auth in found.items()},
                create=create.original if create is not None else None,
            )
        except NotAuthorized:
            return before
        return before.changed({event.key: event.event_id})
