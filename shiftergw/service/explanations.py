"""Explain pulls for users: one at a time, outside the slots of pulls, for a few minutes.

The explanations are in the memory of this gateway alone: a client polls the gateway that it asked.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.logger import Logger

from shiftergw.config import Config
from shiftergw.errors import (
    BadRequest,
    GatewayError,
    NotAuthenticated,
    NotFound,
    TooMany,
    printable,
)
from shiftergw.model.explanations import MOST_EXPLANATIONS, ExplainRequest
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import ANONYMOUS, Session
from shiftergw.ports import Explainer
from shiftergw.service.registry_logins import login_for

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

KEEP_SECONDS = 300.0
"""Seconds for which an explanation is kept after its end."""

MOST_OF_USER = 2
"""Explanations of one user that wait or are being made."""

MOST_RESULTS = 100
"""Explanations that are kept; the oldest are dropped."""


@dataclass(eq=False, slots=True)
class _Explanation:
    """The explanation of one pull, from its request until it is dropped."""

    id: str
    uid: int
    request: ExplainRequest
    start: float
    is_running: bool = False
    document: Mapping[str, Any] | None = None
    error: GatewayError | None = None
    end: float | None = None
    job: Deferred[None] | None = field(default=None, repr=False)

    def to_answer(self) -> dict[str, Any]:
        """Return the state as clients get it; `status` is WAITING, RUNNING, READY or FAILURE."""
        answer: dict[str, Any] = {"id": self.id}
        if self.document is not None:
            return {**answer, "status": "READY", "explanation": self.document}
        if self.error is not None:
            texts = {"cause": self.error.what, "remedy": self.error.remedy}
            return {**answer, "status": "FAILURE", **texts}
        return {**answer, "status": "RUNNING" if self.is_running else "WAITING"}


class Explanations(Service):
    """Begins explanations and shows them to the users who asked for them."""

    _log = Logger()

    def __init__(self, config: Config, explainer: Explainer, clock: IReactorTime) -> None:
        """Have `explainer` do the work, for one request at a time."""
        self._config = config
        self._explainer = explainer
        self._clock = clock
        self._lock = DeferredLock()
        self._all: dict[str, _Explanation] = {}

    def begin(self, session: Session, itype: str, text: str) -> dict[str, Any]:
        """Begin to explain the pull of an image, and return the state.

        A request that is the same as one in progress finds that one. Raises `TooMany`, and
        `BadRequest` for what no registry can have.
        """
        if session.uid == ANONYMOUS:
            raise NotAuthenticated("Pulls are explained to known users only.")
        if itype != "docker":
            raise BadRequest("Only images of registries are explained, which have the type docker.")
        reference = ImageReference.parse(text)
        location, _ = self._config.locate(reference)
        self._drop_old()
        in_progress = [entry for entry in self._all.values() if entry.end is None]
        own = [entry for entry in in_progress if entry.uid == session.uid]
        login = login_for(self._config, session, location)
        reader = replace(session, logins={})
        request = ExplainRequest(reference, session.system, login, reader)
        for entry in own:
            if entry.request == request:
                return entry.to_answer()
        if len(own) >= MOST_OF_USER:
            raise TooMany(f"{MOST_OF_USER} of your pulls are being explained.")
        if len(in_progress) >= MOST_EXPLANATIONS:
            raise TooMany("Too many pulls of other users are being explained.")
        start = self._clock.seconds()
        entry = _Explanation(secrets.token_hex(16), session.uid, request, start)
        self._all[entry.id] = entry
        entry.job = Deferred.fromCoroutine(self._run(entry))
        entry.job.addErrback(lambda failure: failure.trap(CancelledError) and None)
        return entry.to_answer()

    def find(self, session: Session, explanation_id: str) -> dict[str, Any]:
        """Return the state of an explanation; raise `NotFound` also for that of another user."""
        self._drop_old()
        entry = self._all.get(explanation_id)
        if entry is None or (entry.uid, entry.request.system) != (session.uid, session.system):
            raise NotFound(
                "There is no such explanation.",
                remedy=f"Ask for it again: it is kept for {KEEP_SECONDS / 60:.0f} minutes.",
            )
        return entry.to_answer()

    async def _run(self, entry: _Explanation) -> None:
        """Make an explanation when its turn has come, and log its end."""
        result = ""
        async with self._lock:
            entry.is_running = True
            try:
                entry.document = await self._explainer.explain(entry.request)
                result = printable(str(entry.document.get("action")))
            except GatewayError as error:
                entry.error, result = error, f"{error.what} {error.detail}"
            except CancelledError:
                entry.error = GatewayError("The gateway has stopped.", remedy="Ask again.")
                raise
            except Exception:  # noqa: BLE001 - a fault must not keep the client waiting
                self._log.failure("explanation {id}", id=entry.id)
                entry.error = GatewayError("The gateway met a fault of its own.")
            finally:
                entry.end = self._clock.seconds()
                entry.request = replace(entry.request, login=None)
        self._log.info(
            "explained {image} on {system} to uid {uid} in {seconds:.1f} s: {result}",
            image=printable(str(entry.request.reference)),
            system=entry.request.system,
            uid=entry.uid,
            seconds=entry.end - entry.start,
            result=result,
        )

    def _drop_old(self) -> None:
        """Drop explanations that ended long ago, and the oldest of too many."""
        oldest = self._clock.seconds() - KEEP_SECONDS
        results = [entry for entry in self._all.values() if entry.end is not None]
        for number, entry in enumerate(reversed(results)):
            if number >= MOST_RESULTS or (entry.end or 0) < oldest:
                del self._all[entry.id]

    def stopService(self) -> Deferred[None]:
        """End all explanations in progress; fire when their processes have ended."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        jobs = [entry.job for entry in self._all.values() if entry.job is not None]
        # Those that wait first: the end of one would begin the next.
        for job in reversed(jobs):
            job.cancel()
        for job in jobs:
            await job
