"""Ports to users: who sent a credential, and the groups of a user."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

from shiftergw.errors import Unavailable

if TYPE_CHECKING:
    from shiftergw.model.requests import Session, UserAccount

CREDENTIAL_SECONDS = 7800.0
"""Seconds for which a used credential is remembered: until no munge daemon would accept it.

munge's longest lifetime is one hour. Because clocks differ, a credential is valid for that long
before and after its encode time. Ten more minutes allow for the gateway's own clock.
"""


class ReplayUnchecked(Unavailable):
    """The user who encoded a credential is known, but not whether the credential was used before.

    The gateway must not act on such a credential.
    """

    def __init__(self, what: str, session: Session, *, detail: str) -> None:
        """`session` is that of the user who encoded the credential, not always of the sender."""
        super().__init__(what, detail=detail)
        self.session = session


class Authenticator(Protocol):
    """Identifies the sender of a credential."""

    async def authenticate(self, credential: str, system: str) -> Session:
        """Return the session of the sender on a system.

        Raises `NotAuthenticated`, or `ReplayUnchecked` if the used credentials cannot be queried.
        """
        ...

    async def renew(self, session: Session) -> Session:
        """Return a session of the same user with the present names, groups and rights.

        It has no logins. Raises `Unavailable` if the directory of users cannot be queried.
        """
        ...


class UsedCredentials(Protocol):
    """The credentials that were used at any of the gateways that share a store.

    A credential is identified by its digest and remembered for `CREDENTIAL_SECONDS`. Methods raise
    `Unavailable` if the store cannot be reached.
    """

    async def use(self, digest: bytes, now: float) -> bool:
        """Record that a credential is used now; return whether this is its first use."""
        ...

    async def note_used(self, digests: Collection[bytes], now: float) -> None:
        """Record that credentials were used, without checking for earlier uses."""
        ...


class GroupDirectory(Protocol):
    """The groups of a system's users."""

    async def groups(self, user: str, uid: int, gid: int) -> frozenset[int]:
        """Return the gids of all groups of a user, including the primary group `gid`."""
        ...


class UserDirectory(GroupDirectory, Protocol):
    """The users and groups of a system. Methods raise `Unavailable` if it cannot be queried."""

    async def account(self, uid: int, gid: int) -> UserAccount:
        """Return the names and groups of the user with these ids."""
        ...

    async def uid_of(self, user: str) -> int | None:
        """Return the uid of a user by name; None if there is no such user."""
        ...
