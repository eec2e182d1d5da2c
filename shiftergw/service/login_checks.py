"""Try the logins of users at registries, before the users store them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from shiftergw.config import Config
from shiftergw.errors import (
    BadRequest,
    GatewayError,
    NotAllowed,
    NotAuthenticated,
    PullError,
    RegistryDenied,
    TimedOut,
    TooMany,
    Unavailable,
    printable,
)
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import ANONYMOUS, RegistryLogin, Session
from shiftergw.plumbing.timing import within
from shiftergw.ports import LoginChecker
from shiftergw.service.registry_logins import login_for

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

DEFAULT_LOCATION = "default"
"""What users call the gateway's default registry."""

CHECK_SECONDS = 20.0
"""Seconds for the answer of a registry."""

MOST_OF_USER = 10
"""Logins that one user may try in `PERIOD`: nobody is to guess passwords by the gateway."""

MOST_CHECKS = 20
"""Logins of all users that are tried at the same time."""

PERIOD = 600.0
"""Seconds after which the logins that a user has tried no longer count."""


@dataclass(frozen=True, slots=True)
class LoginVerdict:
    """What a registry says of a login.

    `result` is `accepted`, `refused`, `not-asked` if the registry wants no login, or `unknown` if
    it cannot be asked; then `cause` and `remedy` say why.
    """

    result: str
    cause: str = ""
    remedy: str = ""


class LoginChecks:
    """Tries logins; each user may try a few of them in a while."""

    _log = Logger()

    def __init__(self, config: Config, checker: LoginChecker, clock: IReactorTime) -> None:
        """Have `checker` ask the registries."""
        self._config = config
        self._checker = checker
        self._clock = clock
        self._running = 0
        self._counts: Counter[int] = Counter()
        """The logins that each user has tried in this period."""
        self._period_end = 0.0

    async def check(self, session: Session, place: str) -> LoginVerdict:
        """Return what the registry of a location says of the session's login for it.

        Raises `BadRequest` and `NotAllowed` for a registry that the gateway does not have, or a
        session without a login, `TooMany`, and `Unavailable`.
        """
        if session.uid == ANONYMOUS:
            raise NotAuthenticated("Logins are tried for known users only.")
        location = self._location(place)
        login = login_for(self._config, session, location)
        if login is None:
            raise BadRequest(
                f"The credential has no login for {printable(place, 80)}.",
                remedy="It must be in the credential, as for a pull.",
            )
        self._count(session.uid)
        self._running += 1
        try:
            verdict = await self._ask(location, login)
        finally:
            self._running -= 1
        self._log.info(
            "the login of uid {uid} at {location} was tried: {result} {cause}",
            uid=session.uid,
            location=printable(location, 80),
            result=verdict.result,
            cause=verdict.cause,
        )
        return verdict

    def _location(self, place: str) -> str:
        """Return the location that users call `place`, which must be a registry."""
        name = self._config.default_image_location
        if place != DEFAULT_LOCATION:
            name, _ = self._config.locate(ImageReference.parse(f"{place}/any"))
            if name != self._config.location_named(place):
                raise BadRequest(
                    f"This gateway has no registry {printable(place, 80)}.",
                    remedy=f"Its default registry is {name}.",
                )
        section = self._config.locations.get(name)
        if section is not None and not section.is_registry:
            raise NotAllowed(
                f"{printable(place, 80)} is a directory of the site, which takes no logins."
            )
        return name

    def _count(self, uid: int) -> None:
        """Count a try; raise `TooMany` or `Unavailable` beyond the limits."""
        now = self._clock.seconds()
        if now >= self._period_end:
            self._period_end = now + PERIOD
            self._counts.clear()
        if self._counts[uid] >= MOST_OF_USER:
            raise TooMany(
                f"You have tried {MOST_OF_USER} logins.", retry_after=self._period_end - now
            )
        if self._running >= MOST_CHECKS:
            raise Unavailable("Too many logins are being tried.")
        self._counts[uid] += 1

    async def _ask(self, location: str, login: RegistryLogin) -> LoginVerdict:
        checking = self._checker.check_login(location, login)
        try:
            is_asked = await within(CHECK_SECONDS, self._clock, checking, _too_late)
        except CancelledError:
            raise
        except RegistryDenied as error:
            return LoginVerdict("refused", *error.texts_for_users())
        except (PullError, TimedOut) as error:
            return LoginVerdict("unknown", *error.texts_for_users())
        except GatewayError as error:
            what = f"{error.what} {error.detail}"
            self._log.warn("a login was not tried: {what}", what=what)
            return LoginVerdict("unknown", "The gateway could not ask the registry.")
        return LoginVerdict("accepted" if is_asked else "not-asked")


def _too_late() -> TimedOut:
    return TimedOut(f"The registry did not answer within {CHECK_SECONDS:.0f} s.")
