"""Creating rooms: the events of a new room, all in one transaction.

https://spec.matrix.org/v1.19/client-server-api/#creation
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from homeserver.clock import Clock
from homeserver.errors import (
    BadJson,
    Forbidden,
    InvalidParam,
    InvalidRoomState,
    MatrixError,
    RemoteFailed,
    RemoteTimedOut,
    RoomInUse,
)
from homeserver.governance.room_defaults import default_power_levels
from homeserver.graph.append import RoomWriters
from homeserver.graph.send import Sender, new_event_id_localpart
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.membership.member_profiles import MemberProfiles
from homeserver.membership.membership import Memberships
from homeserver.protocol.compose import compose_event
from homeserver.protocol.events import POWER_LEVELS, Event, EventDraft, Signer
from homeserver.protocol.identifiers import is_valid_room_alias, is_valid_user_id, server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import RoomVersion
from homeserver.rooms.aliases import RoomAliases
from homeserver.storage.appends import AliasTaken, NewAlias, StaleHead

logger = structlog.get_logger(__name__)

SERVERS_AT_ONCE = 4
"""How many servers are asked for invitations at the same time, since each invitation makes a branch of the room."""
INVITES_MAX = 100
"""How many users one request may invite."""
ROOM_ID_ATTEMPTS_MAX = 20
"""From room version 12 on, the room ID is a hash of the create event: two equal ones would be the same room."""
INITIAL_STATE_MAX = 200
"""How many state events a request may contain."""


@dataclass(frozen=True, slots=True)
class Preset:
    """The settings that a preset gives to a new room."""

    join_rule: str
    guest_access: str
    history_visibility: str = "shared"
    invitees_own: bool = False
    """Whether invited users get the creator's power level."""


PRESETS = {
    "private_chat": Preset("invite", "can_join"),
    "trusted_private_chat": Preset("invite", "can_join", invitees_own=True),
    "public_chat": Preset("public", "forbidden"),
}


@dataclass(frozen=True, slots=True)
class RoomRequest:
    """The parameters of createRoom."""

    version: RoomVersion
    preset: Preset
    published: bool = False
    alias_localpart: str | None = None
    name: str | None = None
    topic: str | None = None
    invite: Sequence[str] = ()
    creation_content: JsonObject = field(default_factory=dict)
    initial_state: Sequence[tuple[str, str, JsonObject]] = ()
    """``(type, state_key, content)``"""
    is_direct: bool = False
    power_levels: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class FailedInvitation:
    """An invitation that could not be sent when a room was created."""

    user_id: str
    reason: MatrixError

    def body(self) -> JsonObject:
        """The entry for it in the answer to createRoom."""
        return {"user_id": self.user_id, "errcode": self.reason.errcode, "error": self.reason.message}


@dataclass(frozen=True, slots=True)
class CreatedRoom:
    """A room that was created."""

    room_id: str
    failed_invitations: Sequence[FailedInvitation] = ()


class RoomCreation:
    """Creates rooms."""

    def __init__(
        self,
        writers: RoomWriters,
        sender: Sender,
        memberships: Memberships,
        aliases: RoomAliases,
        profiles: MemberProfiles,
        signer: Signer,
        clock: Clock,
    ) -> None:
        self._writers = writers
        self._sender = sender
        self._memberships = memberships
        self._aliases = aliases
        self._profiles = profiles
        self._signer = signer
        self._clock = clock

    async def create(self, creator: str, request: RoomRequest) -> CreatedRoom:
        """Create a room and invite the users that the request names.

        Users of this server are invited in the transaction that creates the room. The servers of other users must agree
        to an invitation: if one does not, the room is created without it, and the answer names it. But a direct chat
        with only that one user is removed again, and the error is raised
        (docs/decisions/0005-create-room-with-remote-invitees.md).

        Raises ``RoomInUse``, ``InvalidRoomState``, ``InvalidParam``, ``BadJson``, and the errors of inviting.
        """
        alias = await self._free_alias(request)
        _check_invites(creator, request, self._signer.server_name)
        member = await self._profiles.member_content(creator, "join")
        local = [user for user in request.invite if server_of(user) == self._signer.server_name]
        remote = [user for user in request.invite if user not in local]
        await self._memberships.check_invitable(creator, local)
        invitations = [await self._invitation(creator, user, request.is_direct) for user in dict.fromkeys(local)]
        drafts = [
            EventDraft("m.room.member", creator, member, creator),
            *_opening_state(creator, request, alias),
            *invitations,
        ]

        room_id = await self._create(creator, request, drafts, alias)
        failed = await self._invite_remote(creator, room_id, list(dict.fromkeys(remote)), request.is_direct)
        if failed and request.is_direct and len(set(request.invite)) == 1:
            await self._take_back(creator, room_id)
            raise failed[0].reason
        return CreatedRoom(room_id, failed)

    async def _create(self, creator: str, request: RoomRequest, drafts: Sequence[EventDraft], alias: str | None) -> str:
        for attempt in range(ROOM_ID_ATTEMPTS_MAX):
            create = self._create_event(creator, request, self._clock.now_ms() + attempt)

            async def job(working: WorkingHead, create: Event = create) -> Sequence[NewEvent]:
                await working.take_in(NewEvent(create, working.head.snapshot))
                for draft in drafts:
                    await working.take_in(await self._sender.compose(working, draft, is_governed=False))
                return []

            try:
                await self._writers.create(
                    create.room_id,
                    request.version,
                    job,
                    self._clock.now_ms(),
                    published=request.published,
                    alias=NewAlias(alias, creator) if alias is not None else None,
                )
            except Forbidden as error:
                raise InvalidRoomState(f"The creator could not set up the room: {error.message}") from error
            except AliasTaken as error:
                raise RoomInUse(f"{alias} is already taken") from error
            except StaleHead:
                continue  # the creator asked for two such rooms in the same millisecond
            return create.room_id
        raise RuntimeError("no room ID is left for this millisecond")

    async def _invite_remote(
        self, creator: str, room_id: str, users: Sequence[str], is_direct: bool
    ) -> list[FailedInvitation]:
        """Invite users of other servers: several servers at once, but users of the same server one after the other."""
        by_server: dict[str, list[str]] = {}
        for user_id in users:
            by_server.setdefault(server_of(user_id), []).append(user_id)
        turns = asyncio.Semaphore(SERVERS_AT_ONCE)

        async def invite_those_of(server_users: Sequence[str]) -> list[FailedInvitation]:
            failed: list[FailedInvitation] = []
            async with turns:
                for number, user_id in enumerate(server_users):
                    try:
                        await self._memberships.invite(creator, room_id, user_id, is_direct=is_direct)
                    except MatrixError as error:
                        failed.append(FailedInvitation(user_id, error))
                        if isinstance(error, RemoteFailed | RemoteTimedOut):
                            # The client is waiting, and the server would most likely fail for its other users too.
                            failed.extend(FailedInvitation(other, error) for other in server_users[number + 1 :])
                            break
            return failed

        found = await asyncio.gather(*(invite_those_of(server_users) for server_users in by_server.values()))
        failed = [failure for of_server in found for failure in of_server]
        for failure in failed:
            logger.info(
                "user not invited to a new room",
                room_id=room_id,
                user_id=failure.user_id,
                reason=failure.reason.message,
            )
        return failed

    async def _take_back(self, creator: str, room_id: str) -> None:
        """Remove all traces of a room that only its creator knows: its aliases and its entries in lists."""
        await self._aliases.withdraw(room_id)
        await self._memberships.leave(creator, room_id, is_governed=False)
        await self._memberships.forget(creator, room_id)

    async def _free_alias(self, request: RoomRequest) -> str | None:
        if request.alias_localpart is None:
            return None
        alias = f"#{request.alias_localpart}:{self._signer.server_name}"
        if not request.alias_localpart or ":" in request.alias_localpart or not is_valid_room_alias(alias):
            raise InvalidParam("room_alias_name is not a valid local part of an alias")
        if await self._aliases.is_taken(alias):
            raise RoomInUse(f"{alias} is already taken")
        return alias

    def _create_event(self, creator: str, request: RoomRequest, now_ms: int) -> Event:
        version, content = request.version, dict(request.creation_content)
        if version.creators_have_infinite_power and request.preset.invitees_own and request.invite:
            content["additional_creators"] = [*_additional_creators(content), *request.invite]
        room_id = None if version.room_id_is_create_hash else new_room_id(self._signer.server_name)
        return compose_create(creator, version, content, now_ms, self._signer, room_id)

    async def _invitation(self, creator: str, user_id: str, is_direct: bool) -> EventDraft:
        content = await self._profiles.member_content(user_id, "invite")
        if is_direct:
            content["is_direct"] = True
        return EventDraft("m.room.member", creator, content, user_id)


def new_room_id(server_name: str) -> str:
    """An ID for a new room, for the room versions in which servers choose it."""
    return f"!{secrets.token_urlsafe(18)}:{server_name}"


def compose_create(
    creator: str, version: RoomVersion, content: JsonObject, now_ms: int, signer: Signer, room_id: str | None
) -> Event:
    """The m.room.create event of a new room.

    Adds the fields that the room version requires to ``content``. ``room_id`` is None if it is the hash of this event.
    Raises ``InvalidParam`` if the version has ``additional_creators`` and they are not a list of user IDs.
    """
    content = {**content, "room_version": version.identifier}
    content.pop("creator", None)
    if not version.creator_is_sender:
        content["creator"] = creator
    if version.creators_have_infinite_power and "additional_creators" in content:
        named = dict.fromkeys(_additional_creators(content))
        content["additional_creators"] = [user_id for user_id in named if user_id != creator]
    return compose_event(
        EventDraft("m.room.create", creator, content, ""),
        version,
        room_id=room_id,
        prev_events=[],
        auth_events=[],
        depth=1,
        origin_server_ts=now_ms,
        signer=signer,
        event_id_localpart=new_event_id_localpart(version),
    )


def _additional_creators(content: JsonObject) -> list[str]:
    named = content.get("additional_creators", [])
    if not isinstance(named, list) or not all(isinstance(u, str) and is_valid_user_id(u) for u in named):
        raise InvalidParam("additional_creators is not a list of user IDs")
    return named


def _opening_state(creator: str, request: RoomRequest, alias: str | None) -> list[EventDraft]:
    """The state after the creator's join, in the order that the specification gives."""
    version, preset = request.version, request.preset
    owners = [] if version.creators_have_infinite_power else [creator]
    if preset.invitees_own and not version.creators_have_infinite_power:
        owners.extend(request.invite)
    levels = default_power_levels(version, dict.fromkeys(owners), request.power_levels)
    given = {(event_type, state_key): content for event_type, state_key, content in request.initial_state}
    if POWER_LEVELS in given:
        levels = given.pop(POWER_LEVELS)
        if request.power_levels:
            levels = {**levels, **request.power_levels}
    state: dict[tuple[str, str], JsonObject] = {POWER_LEVELS: levels}
    if alias is not None:
        state["m.room.canonical_alias", ""] = {"alias": alias}
    # Events that the request sets itself override those of the preset.
    for event_type, content in (
        ("m.room.join_rules", {"join_rule": preset.join_rule}),
        ("m.room.history_visibility", {"history_visibility": preset.history_visibility}),
        ("m.room.guest_access", {"guest_access": preset.guest_access}),
    ):
        state[event_type, ""] = given.pop((event_type, ""), content)
    state.update(given)
    if request.name is not None:
        state["m.room.name", ""] = {"name": request.name}
    if request.topic is not None:
        state["m.room.topic", ""] = _topic(request.topic)
    return [EventDraft(key[0], creator, content, key[1]) for key, content in state.items()]


def _topic(text: str) -> dict[str, Any]:
    return {"topic": text, "m.topic": {"m.text": [{"body": text, "mimetype": "text/plain"}]}}


def _check_invites(creator: str, request: RoomRequest, server_name: str) -> None:
    if len(request.invite) > INVITES_MAX:
        raise InvalidParam(f"A room is created with {INVITES_MAX} invitations at most")
    if len(request.initial_state) > INITIAL_STATE_MAX:
        raise InvalidParam(f"A room is created with {INITIAL_STATE_MAX} state events at most")
    for event_type, _, _ in request.initial_state:
        if event_type in ("m.room.create", "m.room.member"):
            raise InvalidRoomState(f"initial_state may not hold {event_type}")
    closed = request.creation_content.get("m.federate") is False
    for user_id in request.invite:
        if not is_valid_user_id(user_id):
            raise InvalidParam(f"Not a valid user ID: {user_id}")
        if user_id == creator:
            raise InvalidParam("You cannot invite yourself")
        if closed and server_of(user_id) != server_name:
            raise Forbidden(f"The room is closed to other servers, so {user_id} cannot be invited")
    if not isinstance(request.creation_content.get("m.federate", True), bool):
        raise BadJson("m.federate is not a boolean")
