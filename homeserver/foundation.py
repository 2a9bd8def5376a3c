"""What every package of the server needs: the configuration, the clock, the signing keys and the database."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.clock import Clock, SystemClock
from homeserver.config import Config
from homeserver.signing import SigningKeys
from homeserver.storage.database import Database


@dataclass(frozen=True, slots=True)
class Foundation:
    """The objects that nearly every service is built from."""

    config: Config
    clock: Clock
    signing_keys: SigningKeys
    database: Database

    @property
    def server_name(self) -> str:
        """The name of this server, which is the domain of all its user IDs."""
        return self.config.server_name

    def is_local(self, user_id: str) -> bool:
        """Whether a user has an account on this server, judged by the domain of the user ID."""
        return user_id.endswith(f":{self.config.server_name}")


def build(config: Config) -> Foundation:
    """Load the signing keys and connect to the database."""
    return Foundation(
        config=config,
        clock=SystemClock(),
        signing_keys=SigningKeys.load(config.keys_dir, config.server_name),
        database=Database(config.database.url),
    )
