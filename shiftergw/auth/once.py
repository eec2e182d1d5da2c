"""A munge credential counts once, at whichever of several gateways it is used.

A daemon refuses a credential that it has seen before, but knows of no other daemon. So what it has
accepted is asked of the store that the gateways share, before anything else is done.

While the store is away, nobody can say whether a credential was used at another gateway. Then
nothing happens on its strength: whoever may be told something all the same learns that from
`ReplayUnchecked`. The credential is owed to the store, which is told of it as soon as it is back.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from shiftergw.auth.munge import digest_of, used_before
from shiftergw.errors import Unavailable
from shiftergw.model import Session
from shiftergw.plumbing.rounds import Rounds
from shiftergw.ports import CREDENTIAL_SECONDS, Authenticator, ReplayUnchecked, UsedCredentials

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

SETTLE_SECONDS = 1.0
"""How often the store is told of what it is owed."""

MOST_OWED = 100_000
"""Credentials; while so many are owed, nobody is told anything."""

MOST_TOGETHER = 1000
"""Credentials that the store is told of at once."""


class Once:
    """An `Authenticator` for the credentials of all systems of a gateway."""

    def __init__(
        self, inner: Mapping[str, Authenticator], used: UsedCredentials, clock: IReactorTime
    ) -> None:
        """Know users by `inner`, one for each system, and their credentials' use by `used`."""
        self._inner = inner
        self._used = used
        self._clock = clock
        self._owed: dict[bytes, float] = {}
        self.rounds = Rounds(self.settle, clock, SETTLE_SECONDS, "used credentials")

    async def authenticate(self, credential: str, system: str) -> Session:
        """Return the session of whoever made the credential, the first time that it is used.

        Raises what `inner` raises, `NotAuthenticated` for a used one, and `ReplayUnchecked`.
        """
        session = await self._inner[system].authenticate(credential, system)
        digest = digest_of(credential)
        now = self._clock.seconds()
        try:
            first = await self._used.use(digest, now)
        except Unavailable as error:
            if len(self._owed) >= MOST_OWED:
                raise
            self._owed[digest] = now
            raise ReplayUnchecked(error.what, session, detail=error.detail) from error
        if not first:
            raise used_before()
        return session

    async def settle(self) -> None:
        """Tell the store of what it is owed, if it is there."""
        now = self._clock.seconds()
        with suppress(Unavailable):  # the log knows
            while self._owed:
                old = [one for one, at in self._owed.items() if now - at > CREDENTIAL_SECONDS]
                some = old or list(self._owed)[:MOST_TOGETHER]
                if not old:
                    await self._used.note_used(some, now)
                for one in some:
                    self._owed.pop(one, None)
