"""The hosts of a system: one is as good as another, and some may be down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.channel import Away, no_answer
from shiftergw.plumbing.timing import within

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.channel import Connection

Connect = Callable[[], Awaitable["Connection"]]
"""Makes a connection to one host; raises `DeliveryFailed`, and can be cancelled."""

HOST_SECONDS = 60.0
"""Limit on all until the files of a host can be used; connecting has a limit of its own."""

ALL_SECONDS = 180.0
"""Limit on finding a host whose files can be used."""

SHUNNED_SECONDS = 300.0
"""Time for which a host that failed comes after the others, and the log does not say so again.

Longer than the search: what it had no time for is tried first by the next one.
"""

_NEVER = float("-inf")

T = TypeVar("T")


class Hosts:
    """Finds a host that works: first the one that did last, then the others as they are listed."""

    _log = Logger()

    def __init__(
        self,
        ways: Mapping[str, Connect],
        clock: IReactorTime,
        host_seconds: float = HOST_SECONDS,
        all_seconds: float = ALL_SECONDS,
    ) -> None:
        """Reach each host by its own way; nothing is opened yet."""
        self._ways = ways
        self._clock = clock
        self._host_seconds = host_seconds
        self._all_seconds = all_seconds
        self._current: str | None = None
        self._failed: dict[str, float] = {}
        self._shunned: dict[str, float] = {}
        self._said: dict[str, tuple[str, float]] = {}

    @property
    def count(self) -> int:
        """Return how many hosts there are."""
        return len(self._ways)

    async def first(
        self, begin: Callable[[Connect], Coroutine[Deferred[Any], Any, T]]
    ) -> tuple[str, T]:
        """Return the first host with which `begin` works, and what it returns.

        Raises `DeliveryFailed` with every host's reason in its `detail`; `Away` if another time may
        do.
        """
        errors: dict[str, DeliveryFailed] = {}
        until = self._clock.seconds() + self._all_seconds
        for host in sorted(self._ways, key=self._place):
            left = until - self._clock.seconds()
            if errors and left <= 0:
                break
            seconds = min(self._host_seconds, left)
            try:
                begun = await within(seconds, self._clock, begin(self._ways[host]), no_answer)
            except DeliveryFailed as error:
                errors[host] = error
                self._complain(host, error)
                self._failed[host] = self._clock.seconds()
            else:
                self._use(host)
                return host, begun
        raise self._none(errors)

    def shun(self, host: str) -> None:
        """Let a host come after the others for a while, but before those that do not work."""
        self._shunned[host] = self._clock.seconds()

    def _place(self, host: str) -> tuple[float, float, bool]:
        """Return by what to sort a host: of those that failed the one that did so long ago."""
        failed = self._recent(self._failed.get(host, _NEVER))
        shunned = self._recent(self._shunned.get(host, _NEVER))
        return failed, shunned, host != self._current

    def _recent(self, then: float) -> float:
        # A clock that was set back must not keep a host away for hours.
        return then if 0 <= self._clock.seconds() - then < SHUNNED_SECONDS else _NEVER

    def _use(self, host: str) -> None:
        for notes in (self._failed, self._shunned, self._said):
            notes.pop(host, None)
        if host != self._current:
            self._current = host
            self._log.info("{host} is the host that is used", host=host)

    def _complain(self, host: str, error: DeliveryFailed) -> None:
        """Log what the others may hide; of a host without others, whoever asked is told."""
        text = _reason(error)
        said, when = self._said.get(host, ("", _NEVER))
        if len(self._ways) > 1 and (text != said or self._recent(when) == _NEVER):
            self._said[host] = text, self._clock.seconds()
            self._log.warn("{host} cannot be used: {text}", host=host, text=text)

    def _none(self, errors: Mapping[str, DeliveryFailed]) -> DeliveryFailed:
        """Return the error of all: what an admin must mend tells more than that a host is away."""
        if len(self._ways) == 1:
            (error,) = errors.values()
            return error
        listed = [(host, errors[host]) for host in self._ways if host in errors]
        reasons = [f"{host}: {_reason(error)}" for host, error in listed]
        untried = [host for host in self._ways if host not in errors]
        if untried:
            reasons.append(f"no time was left for {', '.join(untried)}")
        found = [error for _, error in listed]
        telling = next((error for error in found if not isinstance(error, Away)), found[0])
        hopeful = untried or any(isinstance(error, Away) for error in found)
        kind = Away if hopeful else DeliveryFailed
        return kind(telling.what, remedy=telling.remedy, detail="; ".join(reasons))


def _reason(error: DeliveryFailed) -> str:
    return " ".join(filter(None, [error.what, printable(error.detail)]))
