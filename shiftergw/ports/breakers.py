"""Port to the circuit breakers that all processes of a site share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from shiftergw.model.postponement import Breaker


class BreakerStore(Protocol):
    """Circuit breakers: they block requests to a failing peer, for all processes of a site."""

    async def check_breaker(self, key: str, now: float, seconds: float) -> Breaker | None:
        """Return the breaker for requests with this key, or None if there is none.

        If its `until` is later than `now`, the caller must not send a request. Otherwise the
        breaker is due and the caller is its probe: for the next `seconds` all other callers get a
        breaker with `probed` set and with the end of the probe as its `until`. A breaker with a
        time that only a clock far in the future can have written counts as none.
        """
        ...

    async def trip_breaker(self, key: str, until: float, why: str, now: float) -> None:
        """Block requests with this key until a time; never shorten a breaker that is not due.

        `why` names the cause in words for the user. `trips` rises by one if the breaker was due,
        because then its probe has failed. A breaker is deleted an hour after its time. A key must
        not contain a login in plain text.
        """
        ...

    async def close_breaker(self, key: str, now: float) -> None:
        """Remove a due breaker after its probe has succeeded.

        A breaker that has been tripped again stays.
        """
        ...

    async def end_probe(self, key: str, end: float, at: float) -> None:
        """Give up the probe that would run until `end`, and allow the next one at `at`.

        A breaker with another probe, or one that has been tripped again, stays as it is.
        """
        ...
