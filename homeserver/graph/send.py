"""Turns drafts into authorized, hashed and signed events of rooms that this server is in."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from homeserver.clock import Clock
from homeserver.errors import Conflict, Forbidden, InvalidParam, MatrixError, NotAuthorized, NotFound
from homeserver.graph.append import RoomWriters
from homeserver.graph.forward_extremities import next_place
from homeserver.graph.governed_events import GovernedEvents, refusal
from homeserver.graph.policy_servers import PolicyServers, Unasked
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.protocol.authorization import auth_event_keys, authorize
from homeserver.protocol.compose import compose_event
from homeserver.protocol.event_format import depth_after
from homeserver.protocol.events import CREATE, POWER_LEVELS, Event, EventDraft, Signer
from homeserver.protocol.hashes import reference_hash, unpadded_base64
from homeserver.protocol.policy_servers import POLICY, PolicyServer
from homeserver.protocol.power_levels import power_levels_of
from homeserver.protocol.room_versions import EventIdFormat, RoomVersion
from homeserver.protocol.server_acls import SERVER_ACL, check_acl
from homeserver.storage.appends import TransactionKey
from homeserver.storage.event_graph import StoredEvent

POLICY_ROUNDS_MAX = 200
"""How often one request asks policy servers: once for each of its events, and again if the room changes meanwhile."""


@dataclass(slots=True)
class Recommended:
    """The events of one request that the room's policy server has signed, with their drafts."""

    events: list[tuple[EventDraft, Event]] = field(default_factory=list)

    def find(self, draft: EventDraft) -> Event | None:
        """The last event that was made from a draft."""
        return next((event for known, event in reversed(self.events) if known == draft), None)


SendJob: TypeAlias = Callable[[WorkingHead, Recommended], Awaitable[Sequence[NewEvent]]]
"""A job that composes events of our users; it also gets those that the policy server has signed already."""


ReplacementJob: TypeAlias = Callable[[WorkingHead, Recommended], Awaitable[WorkingHead | None]]
"""The same for replacing a room: composes its last events, and returns the room that replaces it
(``RoomWriters.replace``)."""


class _Unsigned(Unasked):
    """The event made from a draft needs the policy server's signature first."""

    def __init__(self, event: Event, server: PolicyServer, draft: EventDraft) -> None:
        super().__init__(event, server)
        self.draft = draft


class Sender:
    """Sends the events of our own users. If built without policy servers, it asks none."""

    def __init__(
        self,
        writers: RoomWriters,
        signer: Signer,
        clock: Clock,
        governed: GovernedEvents | None = None,
        policy: PolicyServers | None = None,
    ) -> None:
        self._writers = writers
        self._governed = governed or GovernedEvents()
        self._policy = policy
        self._signer = signer
        self._clock = clock

    async def send(
        self, room_id: str, draft: EventDraft, txn: TransactionKey | None = None, *, is_governed: bool = True
    ) -> StoredEvent:
        """Send one event; returns once it is stored durably.

        A state event that changes nothing is not sent; the existing one is returned. Raises ``Forbidden`` if the
        authorization rules, the room's policy server or, if the event ``is_governed``, the rules of governance refuse
        it, ``TooLarge`` and ``BadJson`` for invalid content, and the errors of ``submit``.
        """
        standing: list[str] = []

        async def job(working: WorkingHead, recommended: Recommended) -> Sequence[NewEvent]:
            standing.clear()
            same = await self._same_state(working, draft)
            if same is not None:
                standing.append(same)
                return []
            return [await self.compose_recommended(working, draft, recommended, txn, is_governed=is_governed)]

        stored = await self._submit(room_id, job, txn)
        if stored:
            return stored[0]
        return await self._writers.stored(room_id, standing[0])

    def transaction_key(self, user_id: str, device_id: str, scope: str, txn_id: str) -> TransactionKey:
        """The key that makes a repeated request of a device harmless; ``scope`` is the request without its ID."""
        return TransactionKey(user_id, device_id, scope, txn_id, self._clock.now_ms())

    async def redact(self, room_id: str, draft: EventDraft, txn: TransactionKey | None = None) -> StoredEvent:
        """Send a redaction of the sender's own event, or of any event if the sender has the room's redact level.

        Raises ``Forbidden`` otherwise: the authorization rules would allow it, but it would have no effect. Raises
        ``InvalidParam`` for an event of another room.
        """

        async def job(working: WorkingHead, recommended: Recommended) -> Sequence[NewEvent]:
            assert draft.redacts is not None
            target = (await working.events([draft.redacts])).get(draft.redacts)
            if target is not None and target.room_id != room_id:
                target = None
            if target is None and await self._writers.is_of_another_room(draft.redacts, room_id):
                raise InvalidParam("The event to be redacted is not one of this room")
            if target is None or target.sender != draft.sender:
                state = await working.state_events((CREATE, POWER_LEVELS))
                levels = power_levels_of(working.head.version, state.get(CREATE), state.get(POWER_LEVELS))
                if levels.of_user(draft.sender) < levels.redact:
                    raise Forbidden("You may redact your own messages only")
            if target is not None and (target.type, target.state_key) == SERVER_ACL:
                # A redacted server ACL has no content, which would shut out every server.
                raise Forbidden("A server ACL cannot be redacted: set another one")
            return [await self.compose_recommended(working, draft, recommended, txn)]

        return (await self._submit(room_id, job, txn))[0]

    async def send_all(self, room_id: str, drafts: Sequence[EventDraft]) -> list[StoredEvent]:
        """Send several events in one transaction, all or none; state events that change nothing are left out."""

        async def job(working: WorkingHead, recommended: Recommended) -> Sequence[NewEvent]:
            for draft in drafts:
                if await self._same_state(working, draft) is not None:
                    continue
                await working.take_in(await self.compose_recommended(working, draft, recommended))
            return []

        return await self._submit(room_id, job)

    async def submit(self, room_id: str, job: SendJob, txn: TransactionKey | None = None) -> list[StoredEvent]:
        """Append the events that a job composes with ``compose_recommended``.

        The job runs again once the room's policy server has signed. Raises the errors of ``RoomWriters.submit``,
        ``NotRecommended`` if the policy server refuses, ``RemoteFailed`` and ``RemoteTimedOut`` if it does not answer.
        """
        recommended = Recommended()
        for _ in range(POLICY_ROUNDS_MAX):
            try:
                return await self._writers.submit(room_id, lambda working: job(working, recommended))
            except _Unsigned as unsigned:
                # Asked while the room is not locked, so that others can write meanwhile.
                if txn is not None and (sent := await self._writers.sent_before(txn)) is not None:
                    return [sent]
                await self._have_signed(unsigned, recommended)
        raise Conflict("The room changes too fast for its policy server")

    async def _have_signed(self, unsigned: _Unsigned, recommended: Recommended) -> None:
        assert self._policy is not None
        signed = await self._policy.sign(unsigned.server, unsigned.event)
        recommended.events.append((unsigned.draft, signed))

    async def replace(self, room_id: str, job: ReplacementJob) -> None:
        """Replace a room by a new one; see ``RoomWriters.replace``. Raises the errors of ``submit``."""
        recommended = Recommended()
        for _ in range(POLICY_ROUNDS_MAX):
            try:
                return await self._writers.replace(room_id, lambda working: job(working, recommended))
            except _Unsigned as unsigned:
                await self._have_signed(unsigned, recommended)
            except NotFound as error:
                raise Forbidden("You are not in this room") from error
        raise Conflict("The room changes too fast for its policy server")

    async def _submit(self, room_id: str, job: SendJob, txn: TransactionKey | None = None) -> list[StoredEvent]:
        try:
            return await self.submit(room_id, job, txn)
        except MatrixError as error:
            # A repeated request gets the same answer, even if the user could not make it any more.
            if txn is not None and (sent := await self._writers.sent_before(txn)) is not None:
                return [sent]
            if isinstance(error, NotFound):
                raise Forbidden("You are not in this room") from error
            raise

    async def compose_recommended(
        self,
        working: WorkingHead,
        draft: EventDraft,
        recommended: Recommended,
        txn: TransactionKey | None = None,
        *,
        is_governed: bool = True,
    ) -> NewEvent:
        """Like ``compose``, with the signature of the room's policy server if it has one. For jobs of ``submit``.

        https://spec.matrix.org/v1.19/server-server-api/#asking-for-a-policy-server-signature-on-an-event
        """
        if POLICY not in working.head.state or self._policy is None:
            return await self.compose(working, draft, txn, is_governed=is_governed)
        signed = recommended.find(draft)
        if signed is not None and (new := await self._policy.take_up(working, signed)) is not None:
            # If the room has changed meanwhile, the event makes a branch, and is checked by the current state
            # nevertheless.
            if is_governed:
                await self._governed.check(working, signed)
            return replace(new, txn=txn)
        new = await self.compose(working, draft, txn, is_governed=is_governed)
        server = await self._policy.missing(working, new.event)
        if server is not None:
            raise _Unsigned(new.event, server, draft)
        return new

    async def recommended(self, working: WorkingHead, new: NewEvent) -> NewEvent:
        """An event that was composed while the room was not locked, with the policy server's signature if it needs one.

        Raises the errors of ``submit``.
        """
        if self._policy is None or (server := await self._policy.missing(working, new.event)) is None:
            return new
        return replace(new, event=await self._policy.sign(server, new.event))

    async def compose(
        self,
        working: WorkingHead,
        draft: EventDraft,
        txn: TransactionKey | None = None,
        *,
        is_governed: bool = True,
    ) -> NewEvent:
        """The draft as the next event of the room, checked by the room's state, but not by its policy server.

        Raises ``Forbidden`` if the authorization rules or, if it ``is_governed``, the rules of governance refuse it,
        and ``BadJson`` or ``InvalidParam`` for a server ACL that is malformed or shuts out this server.
        """
        if (draft.type, draft.state_key) == SERVER_ACL:
            check_acl(draft.content, self._signer.server_name)
        head = working.head
        version = head.version
        keys = auth_event_keys(draft.type, draft.sender, draft.state_key, draft.content, version)
        place = await next_place(working, keys)
        auth = await working.state_events(keys, place.before.state)
        event = compose_event(
            draft,
            version,
            room_id=head.room_id,
            prev_events=await self._references(working, [e.event_id for e in place.extremities], version),
            auth_events=await self._references(working, [e.event_id for e in auth.values()], version),
            depth=depth_after((e.depth for e in place.extremities), version),
            origin_server_ts=self._clock.now_ms(),
            signer=self._signer,
            event_id_localpart=new_event_id_localpart(version),
        )
        create = auth.get(CREATE) or (await working.state_events([CREATE])).get(CREATE)
        try:
            authorize(event, auth, create=create)
            if not head.is_exact:
                authorize(event, await working.state_events(keys), create=create)
        except NotAuthorized as error:
            raise refusal(event, auth, create, error) from error
        if is_governed:
            await self._governed.check(working, event)
        return NewEvent(event, place.before, txn=txn)

    @staticmethod
    async def _references(
        working: WorkingHead, event_ids: Sequence[str], version: RoomVersion
    ) -> list[tuple[str, str]]:
        if not version.references_with_hashes:
            return [(event_id, "") for event_id in event_ids]
        found = await working.events(event_ids)
        return [(i, unpadded_base64(reference_hash(found[i].pdu, version))) for i in event_ids]

    @staticmethod
    async def _same_state(working: WorkingHead, draft: EventDraft) -> str | None:
        if draft.state_key is None:
            return None
        key = (draft.type, draft.state_key)
        # As it is shown: what was redacted can be set again.
        standing = (await working.shown_state_events([key])).get(key)
        if standing is not None and standing.sender == draft.sender and standing.content == draft.content:
            return standing.event_id
        return None


def new_event_id_localpart(version: RoomVersion) -> str | None:
    """The part of an event ID that this server chooses, for the room versions in which it does."""
    return secrets.token_urlsafe(16) if version.event_id_format is EventIdFormat.IN_EVENT else None
