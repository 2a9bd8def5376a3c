"""Which servers to ask for the missing history of a room, and in which order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from homeserver.clock import Clock
from homeserver.graph.events import Events
from homeserver.graph.silent_servers import SilentServers, is_given_up, is_to_be_asked
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.protocol.events import CREATE, POWER_LEVELS
from homeserver.protocol.identifiers import server_of
from homeserver.protocol.power_levels import power_levels_of
from homeserver.storage.history_lanes import Gap
from homeserver.storage.silent_servers import Silence

GIVEN_UP_SERVERS_MIN = 10
"""Pages go on without a room's servers once so many of them, or all if there are fewer, are given up."""


@dataclass(slots=True)
class Candidates:
    """The other servers of a room."""

    to_ask: list[str]
    """The servers to ask now, the likeliest first."""
    count: int
    """The number of other servers, including those that are not asked for now."""
    silences: dict[str, Silence]

    @property
    def are_given_up(self) -> bool:
        """Whether to go on without the events that they may have."""
        given_up = sum(is_given_up(silence) for silence in self.silences.values())
        return given_up >= min(self.count, GIVEN_UP_SERVERS_MIN)

    def witnesses(self, server_name: str) -> list[str] | None:
        """The servers that can confirm what this one says; None if there is no other that answers at all."""
        given_up = sum(is_given_up(silence) for name, silence in self.silences.items() if name != server_name)
        return None if self.count - given_up <= 1 else [name for name in self.to_ask if name != server_name]


class HistoryServers:
    """Chooses servers, and remembers which of them do not answer."""

    def __init__(self, server_name: str, heads: RoomHeads, events: Events, silent: SilentServers, clock: Clock) -> None:
        self._server_name = server_name
        self._heads = heads
        self._events = events
        self._silent = silent
        self._clock = clock

    async def candidates(self, head: RoomHead, gaps: Sequence[Gap]) -> Candidates:
        """The servers to ask about gaps: those of powerful members, of the events at the gaps, and the largest.

        Each time that no server could fill a gap, the next servers are asked. Servers that did not answer the last time
        come last.
        """
        stored = await self._events.by_nid([gap.event_nid for gap in gaps])
        ranked = _distinct(
            [
                *await self._servers_of_powerful_members(head),
                *(server_of(event.event.sender) for event in stored.values()),
                *sorted(head.joined_servers, key=lambda name: (-head.joined_servers[name], name)),
            ],
            {name for name in head.joined_servers if name != self._server_name},
        )
        silences = await self._silent.silences_of(ranked)
        if ranked:
            turn = min(gap.fruitless for gap in gaps) % len(ranked)
            ranked = [*ranked[turn:], *ranked[:turn]]
        now = self._clock.now_ms()
        to_ask = [name for name in ranked if is_to_be_asked(silences.get(name), now)]
        to_ask.sort(key=lambda name: silences[name].last_ts if name in silences else 0)
        return Candidates(to_ask, len(ranked), silences)

    async def did_not_answer(self, candidates: Candidates, server_name: str) -> None:
        """Note that a server did not answer, or not in time."""
        candidates.silences[server_name] = await self._silent.did_not_answer(server_name)

    async def answered(self, candidates: Candidates, server_name: str) -> None:
        """Note that a server has answered, whatever it had."""
        if candidates.silences.pop(server_name, None) is not None:
            await self._silent.answered(server_name)

    async def _servers_of_powerful_members(self, head: RoomHead) -> list[str]:
        keys = (CREATE, POWER_LEVELS)
        state = await self._heads.original_state_events(head, keys)
        power = state.get(keys[1])
        levels = power_levels_of(head.version, state.get(keys[0]), power)
        listed = power.content.get("users") if power is not None else None
        named = [*levels.creators, *(listed if isinstance(listed, dict) else ())]
        joined = [user_id for user_id in named if user_id in head.joined]
        joined.sort(key=lambda user_id: (-levels.of_user(user_id), user_id))
        return [server_of(user_id) for user_id in joined]


def _distinct(names: Iterable[str], allowed: Collection[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name in allowed]
