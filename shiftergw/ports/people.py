"""The seams to users: who sent a credential, and in which groups he is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from shiftergw.model import (
        Session,
    )


class Authenticator(Protocol):
    """Knows who sent a credential."""

    async def authenticate(self, credential: str, system: str) -> Session:
        """Return the session, or raise `NotAuthenticated`."""
        ...


class UserDirectory(Protocol):
    """The users and groups of a system."""

    async def groups(self, user: str, uid: int, gid: int) -> frozenset[int]:
        """Return the gids that the user is in, the primary one included."""
        ...
