"""Choose among the hosts of a system, which are equivalent; some may be down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.channel import SystemUnavailable, no_answer
from shiftergw.plumbing.timing import within

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.channel import Connection

Connect = Callable[[], Awaitable["Connection"]]
"""Connects to one host; raises `DeliveryFailed`, and can be cancelled."""

HOST_SECONDS = 60.0
"""Seconds to connect to a host and open a session; connecting has a limit of its own, too."""

ALL_SECONDS = 180.0
"""Seconds to find a host with which a session can be opened."""

SHUNNED_SECONDS = 300.0
"""Seconds for which a failed host is tried last, and its failure is not logged again.

It is more than `ALL_SECONDS`, so that hosts that a search had no time for come first in the next.
"""

_LONG_AGO = float("-inf")

T = TypeVar("T")


class Hosts:
    """Find a host that works: first the host that worked last, then the others in their order."""

    _log = Logger()

    def __init__(
        self,
        connects: Mapping[str, Connect],
        clock: IReactorTime,
        host_seconds: float = HOST_SECONDS,
        all_seconds: float = ALL_SECONDS,
    ) -> None:
        """Connect to each host with its function in `connects`; nothing is opened yet."""
        self._connects = connects
        self._clock = clock
        self._host_seconds = host_seconds
        self._all_seconds = all_seconds
        self._current_host: str | None = None
        self._failure_times: dict[str, float] = {}
        self._shun_times: dict[str, float] = {}
        self._logged_failures: dict[str, tuple[str, float]] = {}

    @property
    def count(self) -> int:
        """Return how many hosts there are."""
        return len(self._connects)

    async def first(
        self, begin: Callable[[Connect], Coroutine[Deferred[Any], Any, T]]
    ) -> tuple[str, T]:
        """Return the first host with which `begin` works, and the result of `begin`.

        Raises `DeliveryFailed` with the reason of every host in its `detail`; `SystemUnavailable`
        if a later attempt may succeed.
        """
        errors: dict[str, DeliveryFailed] = {}
        deadline = self._clock.seconds() + self._all_seconds
        for host in sorted(self._connects, key=self._rank):
            remaining = deadline - self._clock.seconds()
            if errors and remaining <= 0:
                break
            seconds = min(self._host_seconds, remaining)
            try:
                result = await within(seconds, self._clock, begin(self._connects[host]), no_answer)
            except DeliveryFailed as error:
                errors[host] = error
                self._log_failure(host, error)
                self._failure_times[host] = self._clock.seconds()
            else:
                self._note_success(host)
                return host, result
        raise self._common_error(errors)

    def shun(self, host: str) -> None:
        """Try a host after the others for a while, but before hosts that failed."""
        self._shun_times[host] = self._clock.seconds()

    def _rank(self, host: str) -> tuple[float, float, bool]:
        """Return the sort key of a host: working hosts first, recent failures last."""
        failure_time = self._recent(self._failure_times.get(host, _LONG_AGO))
        shun_time = self._recent(self._shun_times.get(host, _LONG_AGO))
        return failure_time, shun_time, host != self._current_host

    def _recent(self, time: float) -> float:
        """Return this time, or `_LONG_AGO` if it is more than `SHUNNED_SECONDS` ago."""
        # A clock that was set back must not keep a host from use for hours.
        return time if 0 <= self._clock.seconds() - time < SHUNNED_SECONDS else _LONG_AGO

    def _note_success(self, host: str) -> None:
        for times in (self._failure_times, self._shun_times, self._logged_failures):
            times.pop(host, None)
        if host != self._current_host:
            self._current_host = host
            self._log.info("{host} is the host that is used", host=host)

    def _log_failure(self, host: str, error: DeliveryFailed) -> None:
        """Log a failure that a working host hides; a single host's failure is raised instead."""
        text = _reason(error)
        logged_text, time = self._logged_failures.get(host, ("", _LONG_AGO))
        if len(self._connects) > 1 and (text != logged_text or self._recent(time) == _LONG_AGO):
            self._logged_failures[host] = text, self._clock.seconds()
            self._log.warn("{host} cannot be used: {text}", host=host, text=text)

    def _common_error(self, errors: Mapping[str, DeliveryFailed]) -> DeliveryFailed:
        """Return one error for all hosts.

        Its text is that of an error that an admin must fix, if there is one: it tells more than
        that a host does not answer.
        """
        if len(self._connects) == 1:
            (error,) = errors.values()
            return error
        host_errors = [(host, errors[host]) for host in self._connects if host in errors]
        reasons = [f"{host}: {_reason(error)}" for host, error in host_errors]
        untried_hosts = [host for host in self._connects if host not in errors]
        if untried_hosts:
            reasons.append(f"no time was left for {', '.join(untried_hosts)}")
        first_error = host_errors[0][1]
        main_error = next(
            (e for _, e in host_errors if not isinstance(e, SystemUnavailable)), first_error
        )
        may_recover = untried_hosts or any(
            isinstance(error, SystemUnavailable) for _, error in host_errors
        )
        error_class = SystemUnavailable if may_recover else DeliveryFailed
        return error_class(main_error.what, remedy=main_error.remedy, detail="; ".join(reasons))


def _reason(error: DeliveryFailed) -> str:
    return " ".join(filter(None, [error.what, printable(error.detail)]))
