"""Who is in a room: our users join, leave, knock, invite, kick and ban.

``membership`` is the entrance for our users; ``joins`` and ``inviting`` are its larger parts. ``remote_joins``,
``remote_leaves`` and ``remote_knocks`` get the help of other servers for rooms that this server is not in.
``handshake_templates`` and ``resident`` help other servers in the same way. ``out_of_band`` and
``out_of_band_invitations`` accept memberships of our users in rooms that this server is not in. ``invitations``,
``bans`` and ``roles`` serve the governance API.
"""
