"""Who is in a room: our users join, leave, knock, invite, kick and ban.

``membership`` is what our users ask for. ``remote_membership`` does it with the help of other servers, ``resident``
helps other servers in turn, ``out_of_band`` keeps memberships in rooms that this server is not in. ``invitations``,
``bans`` and ``roles`` are the governance on top.
"""
