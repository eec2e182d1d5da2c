"""Log requests, and count those that are not worth a line.

A request that changed something, was refused, or took long gets a line. A waiting client polls
twice a second, and every container that starts looks its image up: requests without news are
counted, and the counts are logged once a minute. So are the refused requests of a user who had many
in that minute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger, LogLevel

from shiftergw.errors import printable
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.plumbing.recent import RecentValues
from shiftergw.web.site import Call

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

PERIOD = 60.0
"""Seconds between two lines with the counts of requests without news."""

SLOW = 1.0
"""Seconds after which an answer is slow and gets a line: something keeps the gateway busy."""

MOST_KEPT = 10_000
"""Pulls whose last answer is remembered; the oldest are dropped first."""

MOST_REFUSALS = 1000
"""Lines about refused requests of one user, or of all without a credential, in one period."""

NEWS_SECONDS = 600.0
"""Seconds after which the same answer to the same pull is news again."""

Pull = tuple[int, str, str, str]
"""The uid of the user; the system, type and name of the image."""


@dataclass(slots=True)
class RequestLog:
    """What the log line of a request says; a `quiet` request is only counted if it succeeds.

    `word` is the content of the answer: the state of a pull, and the request that started the pull.
    The audit log has requests that change something, with the names of the session and the image.
    """

    request_id: str
    route: str = ""
    user: str = "-"
    system: str = "-"
    why: str = ""
    quiet: bool = False
    word: str = ""
    is_audited: bool = False
    session: Session | None = None
    image: str = ""
    image_id: str = ""


Audit = Callable[[Mapping[str, object]], object]
"""Adds an event to the audit log."""


def audit_nothing(_: Mapping[str, object]) -> None:
    """Add no event: the site has no audit log."""


def _audit_fields(call: Call, line: RequestLog, outcome: int | None) -> dict[str, object]:
    """Return the fields of an audit event; those that are unknown are None."""
    session = line.session
    return {
        "request": line.request_id,
        "peer": call.peer,
        "user": None if session is None else session.user,
        "uid": None if session is None else session.uid,
        "is_admin": session is not None and session.admin,
        "system": line.system,
        "action": f"{printable(call.method, 20)} {line.route}",
        "image": line.image or None,
        "id": line.image_id or None,
        "status": outcome,
        **_state_fields(line),
        "cause": line.why or None,
    }


def _state_fields(line: RequestLog) -> dict[str, object]:
    """Return the state of a pull, and the request that has started it if that was another one."""
    state, _, first_request = line.word.partition(" by request ")
    return {"state": state or None, "started_by": first_request or None}


class Journal:
    """Writes log lines about requests, and counts requests that need none."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, audit: Audit = audit_nothing) -> None:
        self._clock = clock
        self._audit = audit
        self._last_answers: RecentValues[Pull, str] = RecentValues(MOST_KEPT, NEWS_SECONDS, clock)
        self._quiet: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        """By user, the number of refused requests in this period."""
        self._slowest = 0.0
        self._period_start = 0.0
        self._summary_call: Any = None

    def is_news(self, session: Session, itype: str, image: str, record: ImageRecord) -> bool:
        """Return whether the answer to a pull differs from the last one that the user got.

        Work in flight is one answer whatever its stage: the workers log stages. New work on the
        same image is another answer: its key is new.
        """
        pull = session.uid, session.system, itype, image
        work = f"in flight {record.key}"
        answer = work if record.is_polled else f"{record.status.value} {record.id}"
        last_answer = self._last_answers.get(pull)
        self._last_answers.set(pull, answer)
        return answer != last_answer

    def write(self, call: Call, line: RequestLog, outcome: int | None, seconds: float) -> None:
        """Log one request; `outcome` is the status of the answer, None if the client hung up."""
        quiet = line.quiet and outcome == HTTPStatus.OK and seconds < SLOW
        if quiet and line.route:
            self._count(line.route, seconds)
        if outcome != HTTPStatus.OK and self._is_beyond_limit(line.user, seconds):
            quiet = True
        if line.is_audited and not quiet:
            self._audit(_audit_fields(call, line, outcome))
        # Formatted here: the logger's own formatting costs as much as the store query of a look-up.
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
        fields = {
            "request": line.request_id,
            "peer": call.peer,
            "user": line.user,
            "method": printable(call.method, 20),
            "path": printable(call.path, 600),
            "system": line.system,
            "status": outcome,
            **_state_fields(line),
            "seconds": round(seconds, 3),
            "cause": line.why or None,
        }
        self._log.emit(level, "{text}{why}", text=text, why=why, fields=fields)

    def close(self) -> None:
        """Log the counts now."""
        if self._summary_call is not None:
            self._summary_call.cancel()
            self._sum_up()

    def _is_beyond_limit(self, user: str, seconds: float) -> bool:
        """Count a refused request; return whether this user already had `MOST_REFUSALS` lines.

        Otherwise a client in a loop would fill the disk of the log.
        """
        self._begin_period()
        self._refusals[user] += 1
        if self._refusals[user] <= MOST_REFUSALS:
            return False
        self._count(f"refused to {'anybody' if user == '-' else user}", seconds)
        return True

    def _begin_period(self) -> None:
        if self._summary_call is None:
            self._period_start = self._clock.seconds()
            self._summary_call = self._clock.callLater(PERIOD, self._sum_up)

    def _count(self, route: str, seconds: float) -> None:
        self._begin_period()
        self._quiet[route] += 1
        self._slowest = max(self._slowest, seconds)

    def _sum_up(self) -> None:
        if self._quiet:
            self._log.info(
                "requests of the last {period:.0f} s that brought nothing new: {numbers};"
                " the slowest took {slowest:.3f} s",
                period=self._clock.seconds() - self._period_start,
                numbers=", ".join(f"{route} {n}" for route, n in self._quiet.most_common()),
                slowest=self._slowest,
            )
        self._summary_call = None
        self._quiet.clear()
        self._refusals.clear()
        self._slowest = 0.0
