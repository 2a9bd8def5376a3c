"""The life of rooms: creation, upgrades, aliases, and the personal settings that follow them."""
