"""What this server adds to Matrix: the rules on who governs a room, as pure functions."""
