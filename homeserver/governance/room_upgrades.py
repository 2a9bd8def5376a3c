"""Who may have a room replaced by a new one: the owners must not be lost, and nobody becomes one by it.

In the new room nobody is joined but who upgraded it. Rules 1 and 3 of the governance API, read for that.
"""

from __future__ import annotations

from collections.abc import Collection

from homeserver.protocol.room_versions import RoomVersion

NOT_OWNER = "Only owners upgrade this room: whoever upgrades it to this version is an owner of the new room for ever"


def refusal_of_upgrade(
    version: RoomVersion, upgrader: str, owners: Collection[str], joined: Collection[str], closed: Collection[str] = ()
) -> str | None:
    """Why a user may not upgrade a room, as a ``reason`` of the governance API; None where nothing speaks against it.

    ``version`` is that of the new room; ``owners`` and ``joined`` are the joined owners and users of the old one, and
    ``closed`` those of them whose accounts were closed, who can act for nobody.
    """
    acting = set(owners).difference(closed)
    others = set(joined).difference(closed, {upgrader})
    # Whoever is alone may do anything, and a room that nobody is in charge of has no owners to lose.
    if not others or not acting or upgrader in acting:
        return None
    # Only Owners change roles, and this gives one: in such a version who creates a room is its Owner for ever.
    if version.creators_have_infinite_power:
        return "not_owner"
    # The levels are carried over, but those who have them are not there: a room without a joined Owner.
    return "last_owner"
