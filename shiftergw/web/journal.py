"""What the log says of requests.

A line for each that changed something, was refused, or took long. A client that waits asks twice a
second, and every container that starts looks its image up: of requests that brought nothing new the
log has the numbers, once a minute. So it has of refused requests once a user has had many in that
minute.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger, LogLevel

from shiftergw.errors import printable
from shiftergw.model import ImageRecord, Session
from shiftergw.states import POLLED
from shiftergw.web.site import Call

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

PERIOD = 60.0
"""Seconds between two lines about requests that brought nothing new."""

SLOW = 1.0
"""Seconds from which on every answer has its line: something keeps the gateway."""

MOST_KEPT = 10_000
"""Pulls whose last answer is remembered; the oldest go first."""

MOST_REFUSALS = 1000
"""Lines about refused requests of one user, or of all without a credential, in one period."""

KEPT_SECONDS = 600.0
"""How long after the last one a further request for the same image is no news."""

Pull = tuple[int, str, str, str]
"""Whose it is (uid), and system, type and name of the image."""


@dataclass(slots=True)
class Line:
    """What there is to say about one request; `quiet`: as long as it ends well, nothing.

    `word` is what its answer says: the state of a pull, and the request that began the pull.
    """

    request_id: str
    route: str = ""
    user: str = "-"
    system: str = "-"
    why: str = ""
    quiet: bool = False
    word: str = ""


class Journal:
    """Writes the lines, and counts what needs none."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        """Have nothing to tell yet."""
        self._clock = clock
        self._told: OrderedDict[Pull, tuple[float, str]] = OrderedDict()
        self._quiet: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        """By user, how many requests were refused in this period."""
        self._slowest = 0.0
        self._since = 0.0
        self._later: Any = None

    def is_news(self, session: Session, itype: str, image: str, record: ImageRecord) -> bool:
        """Say whether the answer to a pull is another one than its asker got last.

        Work in flight is one answer whatever its stage: the workers tell of that.
        """
        pull = session.uid, session.system, itype, image
        now = self._clock.seconds()
        said = "in flight" if record.status in POLLED else f"{record.status.value} {record.id}"
        at, before = self._told.pop(pull, (0.0, ""))
        self._told[pull] = now, said
        if len(self._told) > MOST_KEPT:
            self._told.popitem(last=False)
        return said != before or at + KEPT_SECONDS < now

    def write(self, call: Call, line: Line, outcome: int | None, seconds: float) -> None:
        """Put one request into the log; `outcome` is the answer's status, None if he hung up."""
        quiet = line.quiet and outcome == HTTPStatus.OK and seconds < SLOW
        if quiet and line.route:
            self._count(line.route, seconds)
        if outcome != HTTPStatus.OK and self._is_beyond_limit(line.user, seconds):
            quiet = True
        # Put together here: the logger's own formatting costs a look-up as much as its store.
        text = " ".join(
            (
                line.request_id,
                call.peer,
                printable(line.user, 40),
                printable(call.method, 20),
                printable(call.path, 600),
                line.system,
                str(outcome or "hung up"),
                *([line.word] if line.word else ()),
                f"(answered in {seconds:.3f} s)",
            )
        )
        level = LogLevel.debug if quiet else LogLevel.info
        why = line.why and f": {line.why}"
        self._log.emit(level, "{text}{why}", text=text, why=why, request=line.request_id)

    def close(self) -> None:
        """Tell at once what was counted."""
        if self._later is not None:
            self._later.cancel()
            self._sum_up()

    def _is_beyond_limit(self, user: str, seconds: float) -> bool:
        """Count a refused request, and return whether the log has enough of this user's.

        A client in a loop would fill the disk of the log.
        """
        self._begin_period()
        self._refusals[user] += 1
        if self._refusals[user] <= MOST_REFUSALS:
            return False
        self._count(f"refused to {'anybody' if user == '-' else user}", seconds)
        return True

    def _begin_period(self) -> None:
        if self._later is None:
            self._since = self._clock.seconds()
            self._later = self._clock.callLater(PERIOD, self._sum_up)

    def _count(self, route: str, seconds: float) -> None:
        self._begin_period()
        self._quiet[route] += 1
        self._slowest = max(self._slowest, seconds)

    def _sum_up(self) -> None:
        if self._quiet:
            self._log.info(
                "requests of the last {period:.0f} s that brought nothing new: {numbers};"
                " the slowest took {slowest:.3f} s",
                period=self._clock.seconds() - self._since,
                numbers=", ".join(f"{route} {n}" for route, n in self._quiet.most_common()),
                slowest=self._slowest,
            )
        self._later = None
        self._quiet.clear()
        self._refusals.clear()
        self._slowest = 0.0
