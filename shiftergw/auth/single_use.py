"""Accept a munge credential only once, at whichever of several gateways it is used.

A munge daemon refuses a credential that it has decoded before, but does not know what other daemons
have decoded. So the gateways share a store of used credentials, which is queried before anything
else is done.

While the store is away, a gateway cannot know whether a credential was used at another gateway.
Then it raises `ReplayUnchecked`, and does nothing on the strength of the credential. It remembers
the credential, and records it in the store as soon as the store is back.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from shiftergw.auth.munge import digest_of, used_before
from shiftergw.errors import Unavailable
from shiftergw.model.requests import Session
from shiftergw.plumbing.rounds import Rounds
from shiftergw.ports import (
    CREDENTIAL_SECONDS,
    Authenticator,
    ReplayUnchecked,
    UsedCredentials,
)

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

SETTLE_SECONDS = 1.0
"""Seconds between two attempts to record credentials in the store."""

MAX_UNRECORDED = 100_000
"""Credentials; while as many are not recorded, every request is refused."""

BATCH_SIZE = 1000
"""Credentials that are recorded in the store at once."""


class SingleUse:
    """An `Authenticator` that accepts each credential once, for all systems of a gateway."""

    def __init__(
        self,
        authenticators: Mapping[str, Authenticator],
        used: UsedCredentials,
        clock: IReactorTime,
    ) -> None:
        """Identify callers by the authenticator of their system; record credentials in `used`."""
        self._authenticators = authenticators
        self._used = used
        self._clock = clock
        self._backlog: dict[bytes, float] = {}
        """The time of use of credentials that the store does not have yet, by digest."""
        self.rounds = Rounds(self.settle, clock, SETTLE_SECONDS, "used credentials")

    async def authenticate(self, credential: str, system: str) -> Session:
        """Return the session of the user who made the credential, on its first use.

        Raises the exceptions of the system's authenticator, `NotAuthenticated` for a used
        credential, and `ReplayUnchecked` while the store is away.
        """
        session = await self._authenticators[system].authenticate(credential, system)
        digest = digest_of(credential)
        now = self._clock.seconds()
        try:
            is_first = await self._used.use(digest, now)
        except Unavailable as error:
            if len(self._backlog) >= MAX_UNRECORDED:
                raise
            self._backlog[digest] = now
            raise ReplayUnchecked(error.what, session, detail=error.detail) from error
        if not is_first:
            raise used_before()
        return session

    async def renew(self, session: Session) -> Session:
        """Return the session that the authenticator of its system renews."""
        return await self._authenticators[session.system].renew(session)

    async def settle(self) -> None:
        """Record credentials in the store, and drop those that no daemon accepts any more."""
        now = self._clock.seconds()
        with suppress(Unavailable):  # the store has logged it
            while self._backlog:
                digests = [
                    digest
                    for digest, used_at in self._backlog.items()
                    if now - used_at > CREDENTIAL_SECONDS
                ]
                if not digests:
                    digests = list(self._backlog)[:BATCH_SIZE]
                    await self._used.note_used(digests, now)
                for digest in digests:
                    self._backlog.pop(digest, None)
