"""The seams to users: who sent a credential, and in which groups he is."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

from shiftergw.errors import Unavailable

if TYPE_CHECKING:
    from shiftergw.model import (
        Session,
    )

CREDENTIAL_SECONDS = 7800.0
"""How long a used credential is remembered: until no daemon would take it any more.

munge's longest lifetime is an hour, and a credential counts so long before and after the time that
it names, lest clocks that differ do harm; ten minutes more for the clock of whoever remembers.
"""


class Unproved(Unavailable):
    """Who sent a credential is known, but not whether it was used before.

    So nothing may be done on its strength.
    """

    def __init__(self, what: str, session: Session, *, detail: str) -> None:
        """`session` is the sender's, if it is he who sent it."""
        super().__init__(what, detail=detail)
        self.session = session


class Authenticator(Protocol):
    """Knows who sent a credential."""

    async def authenticate(self, credential: str, system: str) -> Session:
        """Return the session, or raise `NotAuthenticated`, or `Unproved`."""
        ...


class UsedCredentials(Protocol):
    """The credentials that were used at any of the gateways that share a store.

    Each is named by a digest, and remembered for `CREDENTIAL_SECONDS`. A store that cannot be
    reached raises `Unavailable`.
    """

    async def use(self, digest: bytes, now: float) -> bool:
        """Note that a credential is used now; say whether it never was before."""
        ...

    async def note_used(self, digests: Collection[bytes], now: float) -> None:
        """Note that credentials were used."""
        ...


class UserDirectory(Protocol):
    """The users and groups of a system."""

    async def groups(self, user: str, uid: int, gid: int) -> frozenset[int]:
        """Return the gids that the user is in, the primary one included."""
        ...
