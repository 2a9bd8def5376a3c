"""Which member events a device has been sent, so that lazily loaded members need not be sent again.

A response may get lost on its way; the client then repeats its request. So a response counts only once the client uses
the token that was in it. If entries are dropped here, the member events are sent again.

https://spec.matrix.org/v1.19/client-server-api/#lazy-loading-room-members
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from homeserver.caches import register

BYTES_MAX = 32 * 2**20
"""How much memory may be used for all devices together."""
DEVICE_BYTES = 1_200
ROOM_BYTES = 400
MEMBER_BYTES = 220
"""A dictionary entry, a number and a user ID."""

Members = dict[str, int]
"""User ID to the numeric ID of the member event that the device knows."""
NOTHING: Mapping[str, Members] = {}


@dataclass(slots=True)
class _Device:
    position: int = -1
    """The token that the client last used."""
    known: dict[str, Members] = field(default_factory=dict)
    """The members that it knows at ``position``, by room."""
    next_position: int = -1
    sent: Mapping[str, Members] = field(default_factory=dict)
    """The members that it knows in addition once it uses ``next_position``."""
    afresh: Collection[str] = ()
    """The rooms of which it then knows only ``sent``."""
    weight: int = 0


class SentMembers:
    """Remembers which members of rooms each device knows."""

    name = "members that devices know"

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._devices: OrderedDict[tuple[str, str], _Device] = OrderedDict()
        self.bytes_max = bytes_max
        self.bytes = 0
        register(self)

    def __len__(self) -> int:
        return len(self._devices)

    def known_to(self, user_id: str, device_id: str, since: int | None) -> Mapping[str, Members]:
        """The members that a device with this token knows, by room."""
        device = self._devices.get((user_id, device_id))
        if device is None:
            return NOTHING
        if since is None:
            self._forget((user_id, device_id))
            return NOTHING
        if since == device.next_position:
            for room_id in device.afresh:
                device.known.pop(room_id, None)
            for room_id, members in device.sent.items():
                device.known.setdefault(room_id, {}).update(members)
            device.position = since
        elif since != device.position:
            self._forget((user_id, device_id))
            return NOTHING
        device.next_position, device.sent, device.afresh = -1, NOTHING, ()
        return device.known

    def sending(
        self,
        user_id: str,
        device_id: str,
        since: int | None,
        next_position: int,
        sent: Mapping[str, Members],
        afresh: Collection[str] = (),
    ) -> None:
        """Note that the response to the token ``since`` holds these member events and the token ``next_position``.

        For the rooms in ``afresh``, which were joined or left, earlier member events no longer count.
        """
        key = (user_id, device_id)
        device = self._devices.get(key)
        if device is None:
            if not sent:
                return
            device = self._devices[key] = _Device(-1 if since is None else since)
        device.next_position, device.sent, device.afresh = next_position, sent, afresh
        self._devices.move_to_end(key)
        if sent:
            self._weigh(device)
        while len(self._devices) > 1 and self.bytes > self.bytes_max:
            self._forget(next(iter(self._devices)))

    def _weigh(self, device: _Device) -> None:
        weight = DEVICE_BYTES + ROOM_BYTES * (len(device.known) + len(device.sent))
        weight += MEMBER_BYTES * (sum(map(len, device.known.values())) + sum(map(len, device.sent.values())))
        self.bytes += weight - device.weight
        device.weight = weight

    def _forget(self, key: tuple[str, str]) -> None:
        self.bytes -= self._devices.pop(key).weight
