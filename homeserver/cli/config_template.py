"""The configuration file that ``homeserver init`` writes: every key with its default and a short explanation."""

from __future__ import annotations

import json

_TEMPLATE = """\
# The configuration of this homeserver. Lines that are commented out show the defaults.
# Each key can be set by an environment variable as well: HOMESERVER_DATABASE__URL for url under [database].
# Relative paths are relative to this file. `homeserver config check` shows the effective settings.

# The name after the colon in user IDs. It cannot be changed once the server has users.
server_name = {server_name}

# Where clients reach this server, when that is not https://<server_name>; served in /.well-known/matrix/client.
{public_base_url}

# Where media and an SQLite database are kept; relative paths of both are under it.
# data_dir = "."

# Signing keys, under data_dir unless absolute. Back them up: they are this server's identity.
{keys_dir}

# Reverse proxies whose X-Forwarded-For is believed: addresses or networks.
# trusted_proxies = ["127.0.0.1", "::1"]

# One section for each address to listen on.
[[listeners]]
bind = "127.0.0.1"
port = 8008
# TLS, for a listener that the world reaches without a reverse proxy; both or neither:
# tls_certificate = "cert.pem"
# tls_private_key = "key.pem"
# serves = ["client", "federation", "media", "console"]   # and "metrics"

[database]
# url = "sqlite:///homeserver.db"
# url = "postgresql+psycopg://user:password@host/name"

[registration]
# Anybody who can reach this server may create an account.
{registration_enabled}
# Anybody who knows the secret may create accounts, administrators included.
# shared_secret = ""
# Only with a registration token. This version has none: it does not start with true.
# require_token = false

[federation]
# enabled = true
# verify_certificates = true
# A file of further trusted certificate authorities, PEM.
# ca_file = ""
# Allow requests to loopback and private addresses; only for closed networks and tests.
# allow_private_addresses = false
# Talk to these servers only; empty: to all.
# allowed_servers = []
# denied_servers = []
# Notary servers to ask for the keys of others; empty: ask each server itself.
# trusted_key_servers = []
# Refuse requests of servers so old that they do not sign for which server a request is.
# require_destination = false

[rate_limits]
# enabled = true
# Users without limits, such as "@bridge:example.org".
# exempt_users = []
# How often: "10/s, burst 100" is 100 at once, and 10 a second in the long run (also /m and /h); "off" is without limit.
# By address: logins, wrong passwords, registrations; wrong passwords at one account.
# logins = "60/m, burst 120"
# login_failures = "10/m, burst 30"
# account_login_failures = "20/m, burst 60"
# registrations = "20/m, burst 200"
# By account: events, new rooms, joins, invitations, changes of the profile.
# messages = "50/s, burst 1000"
# rooms = "60/m, burst 200"
# joins = "2/s, burst 200"
# invites = "1/s, burst 200"
# profile_changes = "1/s, burst 100"
# By device: receipts and typing; account data and filters.
# receipts_and_typing = "20/s, burst 500"
# settings = "10/s, burst 300"
# By address: profiles and aliases.
# lookups = "50/s, burst 1000"
# By server: transactions, other requests, invitations; by address: servers whose keys are not known, keys of others.
# federation_transactions = "50/s, burst 500"
# federation_requests = "50/s, burst 1000"
# federation_invites = "2/s, burst 100"
# unknown_servers = "5/s, burst 100"
# notary_queries = "5/s, burst 200"

[read_receipts]
# The administrator's switch for read receipts, local and federated.
# enabled = true

[rooms]
# The room version of new rooms.
# default_version = "11"

[governance]
# Whether the last owner of a room may leave others behind without one: "enforce", "warn" or "off".
# last_owner_protection = "enforce"

[appservices]
# Registration files of application services, YAML.
# files = []

[media]
# max_upload_size = "50M"

[logging]
# "debug", "info", "warning", "error" or "critical"
# level = "info"
# "console" for people, "json" for machines
# format = "console"
"""


def render(server_name: str, keys_dir: str = "keys", *, development: bool = False) -> str:
    """The text of a configuration file.

    ``development`` is for trying things out on one's own machine: anybody may register, and clients are told to connect
    to http://localhost:8008.
    """
    return _TEMPLATE.format(
        server_name=_quoted(server_name),
        keys_dir="# keys_dir = " + _quoted("keys") if keys_dir == "keys" else "keys_dir = " + _quoted(keys_dir),
        public_base_url=(
            'public_base_url = "http://localhost:8008"'
            if development
            else '# public_base_url = "https://matrix.example.org"'
        ),
        registration_enabled="enabled = true" if development else "# enabled = false",
    )


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)  # a JSON string is a TOML string
