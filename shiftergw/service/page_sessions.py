"""Let a browser read what its user may see: entries that work once, and the sessions they open.

A browser has no munge. Its user requests an entry with a munge credential and opens it as a URL;
the gateway then gives the browser the token of a session. Entries and tokens are encrypted with
`SecretKeyFile`, so each gateway of a site accepts those of the others, and a restart ends no
session.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from shiftergw.errors import GatewayError, NotAuthenticated
from shiftergw.model.requests import ANONYMOUS, Session
from shiftergw.plumbing.recent import RecentValues
from shiftergw.plumbing.seal import Seal
from shiftergw.ports import UsedCredentials

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

ENTRY_SECONDS = 300.0
"""Seconds for which an entry can be opened: as long as a munge credential is valid."""

SESSION_SECONDS = 4 * 3600.0
"""Seconds for which a browser may read; the groups of its user are looked up at each request."""

MOST_REMEMBERED = 10_000
"""Entries that were not opened yet, and sessions that their users ended, in memory.

Beyond that the oldest are dropped: an entry that is no longer known is refused.
"""

_ENTRY = "entry of a page"
_TOKEN = "session of a page"  # noqa: S105 - the purpose of a text, for `Seal`

_REMEDY = "Run `shiftergw page`, and open the address that it prints."


@dataclass(frozen=True, slots=True)
class PageSession:
    """The session of a browser, without the groups and rights of its user.

    It ends at the time `end`; `nonce` identifies it.
    """

    user: Session
    end: float
    nonce: str


class PageSessions:
    """Makes entries, and opens, finds and ends the sessions of browsers."""

    def __init__(
        self, seal: Callable[[], Seal], used: UsedCredentials | None, clock: IReactorTime
    ) -> None:
        """Encrypt with `seal`.

        `used` is what several gateways share: an entry that any of them has opened is used up. A
        gateway alone knows the entries that it has made, so those of before its start are refused.
        """
        self._seal = seal
        self._used = used
        self._clock = clock
        self._unused_entries: RecentValues[str, bool] = RecentValues(
            MOST_REMEMBERED, ENTRY_SECONDS, clock
        )
        self._ended_sessions: RecentValues[str, bool] = RecentValues(
            MOST_REMEMBERED, SESSION_SECONDS, clock
        )

    def make_entry(self, session: Session) -> str:
        """Return an entry for a user, of letters, digits, `-` and `_`.

        Raises `NotAuthenticated` for a caller without a credential.
        """
        if session.uid == ANONYMOUS:
            raise NotAuthenticated("The page is shown to known users only.", remedy=_REMEDY)
        return self._open_session(session, _ENTRY, ENTRY_SECONDS, self._unused_entries)

    async def enter(self, entry: str) -> tuple[str, PageSession]:
        """Use an entry up; return the token of a new session, and the session.

        Raises `NotAuthenticated` for an entry that is invalid, old, or used up, and `Unavailable`
        if other gateways cannot be told that it is used up; then it can be tried again.
        """
        invitation = self._read(entry, _ENTRY)
        if invitation is None or not await self._use_up(invitation.nonce):
            raise NotAuthenticated(
                "This address of the page was opened before, or is too old.", remedy=_REMEDY
            )
        token = self._open_session(invitation.user, _TOKEN, SESSION_SECONDS)
        session = self._read(token, _TOKEN)
        assert session is not None
        return token, session

    def find(self, token: str) -> PageSession:
        """Return the session of a token; raise `NotAuthenticated` if there is none, or no more."""
        session = self._read(token, _TOKEN)
        if session is None or self._ended_sessions.get(session.nonce):
            raise NotAuthenticated("This session has ended.", remedy=_REMEDY)
        return session

    def end(self, session: PageSession) -> None:
        """Refuse the token of a session from now on, at this gateway."""
        self._ended_sessions.set(session.nonce, value=True)

    async def _use_up(self, nonce: str) -> bool:
        """Return whether an entry is used for the first time."""
        if self._used is not None:
            digest = sha256(f"{_ENTRY} {nonce}".encode()).digest()
            return await self._used.use(digest, self._clock.seconds())
        is_unused = self._unused_entries.get(nonce) is not None
        self._unused_entries.discard(nonce)
        return is_unused

    def _open_session(
        self,
        user: Session,
        purpose: str,
        seconds: float,
        nonces: RecentValues[str, bool] | None = None,
    ) -> str:
        """Return an encrypted session that ends after `seconds`; note its nonce in `nonces`."""
        nonce = secrets.token_hex(8)
        if nonces is not None:
            nonces.set(nonce, value=True)
        members = {
            "system": user.system,
            "user": user.user,
            "uid": user.uid,
            "group": user.group,
            "gid": user.gid,
            "end": self._clock.seconds() + seconds,
            "nonce": nonce,
        }
        # The alphabet for URLs (RFC 4648, section 5).
        ciphertext = self._seal().close(json.dumps(members), purpose)
        return ciphertext.translate(_TO_URL).rstrip("=")

    def _read(self, text: str, purpose: str) -> PageSession | None:
        """Return a session that was encrypted for a purpose and has not ended; None if invalid."""
        ciphertext = text.translate(_FROM_URL) + "=" * (-len(text) % 4)
        try:
            members: dict[str, Any] = json.loads(self._seal().open(ciphertext, purpose))
            names = ("system", "user", "uid", "group", "gid")
            user = Session(**{name: members[name] for name in names})
            session = PageSession(user, float(members["end"]), str(members["nonce"]))
        except (GatewayError, ValueError, TypeError, KeyError):  # another version may have made it
            return None
        return session if self._clock.seconds() < session.end else None


_TO_URL = str.maketrans("+/", "-_")
_FROM_URL = str.maketrans("-_", "+/")
