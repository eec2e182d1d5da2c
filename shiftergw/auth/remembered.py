"""Answers that may be slow to get, kept for a while."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from shiftergw.errors import Unavailable

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """Asks each question once in so many seconds; all who ask it meanwhile share the answer.

    The asking must end by itself in a bounded time: it outlives the cancellation of its callers.
    """

    def __init__(
        self,
        ask: Callable[[K], Coroutine[Deferred[Any], Any, V]],
        seconds: float,
        clock: IReactorTime,
        seconds_if_unavailable: float = 0.0,
    ) -> None:
        """Use an answer of `ask` for `seconds`; do not keep errors.

        While `ask` raises `Unavailable`, use an answer for `seconds_if_unavailable` if that is
        longer.
        """
        self._ask = ask
        self._seconds = seconds
        self._longest = max(seconds, seconds_if_unavailable)
        self._clock = clock
        self._known: dict[K, tuple[float, V]] = {}
        self._waiting: dict[K, list[Deferred[V]]] = {}
        self._sweep_at = 0.0

    async def get(self, question: K) -> V:
        """Return the answer, or raise what the asking raised."""
        known = self._answer(question, self._seconds)
        if known is not None:
            return known[0]
        answer: Deferred[V] = Deferred()
        waiting = self._waiting.setdefault(question, [])
        waiting.append(answer)
        if len(waiting) == 1:
            Deferred.fromCoroutine(self._ask(question)).addBoth(self._tell, question)
        return await answer

    def _answer(self, question: K, seconds: float) -> tuple[V] | None:
        """Return the last answer to a question in a tuple, if it is younger than `seconds`."""
        known = self._known.get(question)
        if known is None or known[0] + seconds <= self._clock.seconds():
            return None
        return known[1:]

    def _tell(self, result: V | Failure, question: K) -> None:
        waiting = self._waiting.pop(question)
        if not isinstance(result, Failure):
            now = self._clock.seconds()
            if now >= self._sweep_at:
                oldest = now - self._longest
                self._known = {
                    key: known for key, known in self._known.items() if known[0] > oldest
                }
                self._sweep_at = now + self._longest
            self._known[question] = now, result
        elif result.check(Unavailable):
            old = self._answer(question, self._longest)
            result = result if old is None else old[0]
        for answer in waiting:
            answer.callback(result)
