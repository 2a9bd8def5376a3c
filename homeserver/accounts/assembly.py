"""Builds the services for accounts."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.accounts.access_tokens import AccessTokens
from homeserver.accounts.account_data import AccountData
from homeserver.accounts.administration import Accounts
from homeserver.accounts.filters import Filters
from homeserver.accounts.login import Login
from homeserver.accounts.login_guard import LoginGuard
from homeserver.accounts.passwords import Passwords
from homeserver.accounts.profiles import Profiles
from homeserver.accounts.registration import Registration
from homeserver.accounts.sessions import Sessions
from homeserver.accounts.user_interactive import UserInteractive
from homeserver.federation.assembly import FederationServices
from homeserver.foundation import Foundation
from homeserver.limits.rate_limits import RateLimits
from homeserver.membership.membership import Memberships
from homeserver.notifier import Notifier


@dataclass(frozen=True, slots=True)
class AccountServices:
    """Registration, login, and the data of accounts."""

    access_tokens: AccessTokens
    sessions: Sessions
    passwords: Passwords
    user_interactive: UserInteractive
    registration: Registration
    login: Login
    accounts: Accounts
    profiles: Profiles
    account_data: AccountData
    filters: Filters


def build(
    base: Foundation,
    federation: FederationServices,
    notifier: Notifier,
    memberships: Memberships,
    limits: RateLimits,
) -> AccountServices:
    """Build the services of this package. ``memberships`` is notified of changes of accounts, to update the rooms."""
    database, clock, server_name = base.database, base.clock, base.server_name
    access_tokens = AccessTokens(database, clock)
    sessions = Sessions(database, clock, access_tokens, notifier)
    passwords = Passwords()
    user_interactive = UserInteractive(database, clock)
    return AccountServices(
        access_tokens=access_tokens,
        sessions=sessions,
        passwords=passwords,
        user_interactive=user_interactive,
        registration=Registration(
            database,
            clock,
            passwords,
            sessions,
            user_interactive,
            server_name=server_name,
            is_enabled=base.config.registration.enabled,
        ),
        login=Login(database, clock, passwords, sessions, LoginGuard(limits, clock), server_name=server_name),
        accounts=Accounts(
            database, clock, passwords, sessions, server_name=server_name, on_deactivated=memberships.leave_all
        ),
        profiles=Profiles(database, federation.client, server_name=server_name, on_change=memberships.refresh_profile),
        account_data=AccountData(database, notifier),
        filters=Filters(database),
    )
