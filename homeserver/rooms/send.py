"""A draft becomes an authorized, hashed, signed event of a room that this server takes part in."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from homeserver.clock import Clock
from homeserver.errors import Forbidden, NotAuthorized, NotFound
from homeserver.protocol.authorization import auth_event_keys, authorize
from homeserver.protocol.compose import compose_event
from homeserver.protocol.events import EventDraft, Signer
from homeserver.protocol.hashes import reference_hash, unpadded_base64
from homeserver.protocol.power_levels import power_levels_of
from homeserver.protocol.room_versions import EventIdFormat, RoomVersion
from homeserver.rooms.append import RoomWriters
from homeserver.rooms.governed_events import GovernedEvents, refusal
from homeserver.rooms.working_head import Job, NewEvent, WorkingHead
from homeserver.storage.appends import TransactionKey
from homeserver.storage.event_graph import StoredEvent

PREV_EVENTS_CITED_MAX = 10
"""Forward extremities that one of our events brings together; the protocol allows 20."""
CREATE = ("m.room.create", "")
POWER_LEVELS = ("m.room.power_levels", "")


class Sender:
    """Sends the events of our own users."""

    def __init__(
        self, writers: RoomWriters, signer: Signer, clock: Clock, governed: GovernedEvents | None = None
    ) -> None:
        self._writers = writers
        self._governed = governed or GovernedEvents()
        self._signer = signer
        self._clock = clock

    async def send(
        self, room_id: str, draft: EventDraft, txn: TransactionKey | None = None, *, is_governed: bool = True
    ) -> StoredEvent:
        """Send one event; returns once it is durable.

        A state event that says what the state says already is not sent again; the one that stands is returned.

        Raises ``Forbidden`` where the authorization rules or, if the event ``is_governed``, the rules of governance
        do, ``TooLarge`` and ``BadJson`` for impossible content.
        """
        standing: list[str] = []

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            standing.clear()
            same = await self._same_state(working, draft)
            if same is not None:
                standing.append(same)
                return []
            return [await self.compose(working, draft, txn, is_governed=is_governed)]

        stored = await self._submit(room_id, job, txn)
        if stored:
            return stored[0]
        return await self._writers.stored(standing[0])

    def transaction_key(self, user_id: str, device_id: str, scope: str, txn_id: str) -> TransactionKey:
        """What makes a request of a device harmless to repeat; ``scope`` is the request without its ID."""
        return TransactionKey(user_id, device_id, scope, txn_id, self._clock.now_ms())

    async def redact(self, room_id: str, draft: EventDraft, txn: TransactionKey | None = None) -> StoredEvent:
        """Send a redaction: of the sender's own event, or of any with the room's redact level.

        Raises ``Forbidden`` otherwise. The authorization rules let it pass, but it would take no effect.
        """

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            assert draft.redacts is not None
            target = (await working.events([draft.redacts])).get(draft.redacts)
            if target is not None and target.room_id != room_id:
                target = None
            if target is None or target.sender != draft.sender:
                state = await working.state_events((CREATE, POWER_LEVELS))
                levels = power_levels_of(working.head.version, state.get(CREATE), state.get(POWER_LEVELS))
                if levels.of_user(draft.sender) < levels.redact:
                    raise Forbidden("You may redact your own messages only")
            return [await self.compose(working, draft, txn)]

        return (await self._submit(room_id, job, txn))[0]

    async def send_all(self, room_id: str, drafts: Sequence[EventDraft]) -> list[StoredEvent]:
        """Send several events, all in one transaction or none; what the state says already is left out."""

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            for draft in drafts:
                if await self._same_state(working, draft) is not None:
                    continue
                await working.take_in(await self.compose(working, draft))
            return []

        return await self._submit(room_id, job)

    async def _submit(self, room_id: str, job: Job, txn: TransactionKey | None = None) -> list[StoredEvent]:
        try:
            return await self._writers.submit(room_id, job)
        except (Forbidden, NotFound) as error:
            # Who repeats a request gets the same answer, even if by now they could not make it any more.
            if txn is not None and (sent := await self._writers.sent_before(txn)) is not None:
                return [sent]
            if isinstance(error, NotFound):
                raise Forbidden("You are not in this room") from error
            raise

    async def compose(
        self,
        working: WorkingHead,
        draft: EventDraft,
        txn: TransactionKey | None = None,
        *,
        is_governed: bool = True,
    ) -> NewEvent:
        """The draft as the next event of the room, checked against the room's state. For jobs.

        Raises ``Forbidden`` where the authorization rules or, if it ``is_governed``, the rules of governance do.
        """
        head = working.head
        version = head.version
        keys = auth_event_keys(draft.type, draft.sender, draft.state_key, draft.content, version)
        auth = await working.state_events(keys)
        extremities = sorted(head.extremities, key=lambda e: e.depth, reverse=True)[:PREV_EVENTS_CITED_MAX]
        event = compose_event(
            draft,
            version,
            room_id=head.room_id,
            prev_events=await self._references(working, [e.event_id for e in extremities], version),
            auth_events=await self._references(working, [e.event_id for e in auth.values()], version),
            depth=1 + max((e.depth for e in extremities), default=0),
            origin_server_ts=self._clock.now_ms(),
            signer=self._signer,
            event_id_localpart=new_event_id_localpart(version),
        )
        create = (await working.state_events([CREATE])).get(CREATE)
        try:
            authorize(event, auth, create=create)
        except NotAuthorized as error:
            raise refusal(event, auth, create, error) from error
        if is_governed:
            await self._governed.check(working, event)
        return NewEvent(event, head.snapshot, txn=txn)

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
        standing = (await working.state_events([(draft.type, draft.state_key)])).get((draft.type, draft.state_key))
        if standing is not None and standing.sender == draft.sender and standing.content == draft.content:
            return standing.event_id
        return None


def new_event_id_localpart(version: RoomVersion) -> str | None:
    """The part of an event ID that this server chooses, in the room versions where it does."""
    return secrets.token_urlsafe(16) if version.event_id_format is EventIdFormat.IN_EVENT else None
