"""Who may upgrade a room: an upgrade must not lose the room's Owners, and must not make anybody an Owner.

In the new room, only the user who upgraded is joined. This applies rules 1 and 3 of the governance API to that.
"""

from __future__ import annotations

from collections.abc import Collection

from homeserver.protocol.room_versions import RoomVersion

NOT_OWNER = "Only owners upgrade this room: whoever upgrades it to this version is an owner of the new room for ever"


def refusal_of_upgrade(
    version: RoomVersion, upgrader: str, owners: Collection[str], joined: Collection[str], closed: Collection[str] = ()
) -> str | None:
    """Why a user may not upgrade a room, as a ``reason`` of the governance API; None if the user may.

    ``version`` is that of the new room; ``owners`` and ``joined`` are the joined Owners and users of the old one, and
    ``closed`` those of them with closed accounts, who cannot act any more.
    """
    acting = set(owners).difference(closed)
    others = set(joined).difference(closed, {upgrader})
    # A user who is alone may do anything, and a room without an Owner who can act has no Owners to lose.
    if not others or not acting or upgrader in acting:
        return None
    # Only Owners change roles, and in such a version the upgrade does: the new room's creator is its Owner for ever.
    if version.creators_have_infinite_power:
        return "not_owner"
    # The new room has the same levels, but none of the Owners is joined to it.
    return "last_owner"
