"""What this server adds to Matrix: who is in charge of a room, as pure functions."""
