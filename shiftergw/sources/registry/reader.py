"""Read the bodies of responses of one location: streams, documents, explanations of errors.

Each body has a bound in bytes and limits on its time, which `Limits` lists.
"""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError

from shiftergw.errors import RegistryUnavailable
from shiftergw.sources.registry.body import Body, Pace
from shiftergw.sources.registry.failures import error_text
from shiftergw.sources.registry.retry import Interruption, UnprovenEnd

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.web.iweb import IResponse

    from shiftergw.model.requests import RegistryLogin
    from shiftergw.sources.registry.admission import Admission

ERROR_LIMIT = 64 << 10
"""Bytes that are read of an answer whose body only explains its status."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on what a registry may take, in seconds; `rate` in bytes per second.

    `connect` for a connection attempt, `header` until a response head, `redirects` until the head
    at the end of all redirects, `idle` between two bytes of a body, `document` for a body that
    fits into memory (manifest, configuration, token), `documents` for all manifests and the
    configuration of one image, `explanation` for a body that explains a status.
    In each `window` at least `rate` bytes per second of a body must arrive, in each
    `document_window` of one that fits into memory, and in each `probe_window` where bodies of this
    kind were too slow a moment ago; a rate of 0 is no limit.
    """

    connect: float = 30.0
    header: float = 60.0
    redirects: float = 120.0
    idle: float = 60.0
    document: float = 120.0
    documents: float = 600.0
    explanation: float = 10.0
    rate: float = 10_000.0
    window: float = 60.0
    document_window: float = 3.0
    probe_window: float = 1.5


def needs_length(_: bytes) -> bool:
    """Accept no body whose end HTTP does not vouch for: nothing proves that it is whole."""
    return False


def is_json(content: bytes) -> bool:
    """Return whether a body parses as a JSON object or array, which no beginning of one does."""
    try:
        return isinstance(json.loads(content), dict | list)
    except (ValueError, RecursionError):
        return False


class _EnoughError(Exception):
    """The body is longer than we read."""


class BodyReader:
    """Reads the bodies of the responses of one location, at the pace that it admits."""

    def __init__(
        self, subject: str, clock: IReactorTime, limits: Limits, admission: Admission | None
    ) -> None:
        """Begin the sentences of errors with `subject`.

        `admission` holds bodies back that were too slow lately.
        """
        self.subject = subject
        self.clock = clock
        self.limits = limits
        self._admission = admission

    async def stream(
        self, response: IResponse, take: Callable[[bytes], object], sink: Any = None
    ) -> None:
        """Give a response's body to `take`; `sink` is registered as the one that may pause it.

        Raises `Interruption` unless the body is known to be whole, `RetryLater`, and what `take`
        raises.
        """
        limits = self.limits
        pace = Pace(limits.idle, limits.rate, limits.window)
        body = Body(take, self.clock, pace, self.subject)
        if sink is not None:
            sink.registerProducer(body, True)
        try:
            async with self._admit_body(response, "layers", limits.window) as body.first_window:
                body.read(response)
                await body.proven.wait()
                if body.end.called:
                    await body.end
                    return
            await body.end
        finally:
            if not body.end.called:
                body.end.addErrback(lambda failure: failure.trap(CancelledError))
                body.end.cancel()
            if sink is not None:
                sink.unregisterProducer()

    @asynccontextmanager
    async def _admit_body(
        self, response: IResponse, kind: str, window: float
    ) -> AsyncIterator[float]:
        """Admit the reading of a body, as `Admission.pace`; close it if it is not admitted.

        Yields the first window of the body: a probe occupies a worker, so it has little time.
        """
        if self._admission is None:
            yield window
            return
        is_admitted = False
        try:
            async with self._admission.pace(kind) as probes:
                is_admitted = True
                yield min(window, self.limits.probe_window) if probes else window
        finally:
            if not is_admitted:
                self.discard(response)

    async def read(
        self, response: IResponse, limit: int, is_whole: Callable[[bytes], bool] = needs_length
    ) -> bytes:
        """Return the body of a document, of a longer one the first `limit` + 1 bytes.

        If the body ends with its connection, without a length, `is_whole` decides by the bytes
        whether anything is missing: see `needs_length` and `is_json`. Raises `Interruption` if the
        connection breaks or brings too little, `RetryLater`, and `RegistryUnavailable` if the body
        takes too long.
        """
        limits = self.limits
        pace = Pace(limits.idle, limits.rate, limits.document_window, limits.document)
        async with self._admit_body(response, "documents", limits.document_window) as window:
            return await self._content(response, limit, pace, is_whole, window)

    async def _content(
        self,
        response: IResponse,
        limit: int,
        pace: Pace,
        is_whole: Callable[[bytes], bool],
        first_window: float | None = None,
    ) -> bytes:
        content = io.BytesIO()

        def keep(data: bytes) -> None:
            content.write(data)
            if content.tell() > limit:
                raise _EnoughError

        with suppress(_EnoughError):
            body = Body(keep, self.clock, pace, self.subject)
            body.first_window = first_window
            try:
                await body.read(response)
            except UnprovenEnd:
                if not is_whole(content.getvalue()):
                    raise
        return content.getvalue()[: limit + 1]

    async def explanation(self, response: IResponse, login: RegistryLogin | None = None) -> str:
        """Return the messages in the body of an error; "" if there are none, or it is slow.

        The secrets of `login` are left out, and the token that the request had.
        """
        try:
            pace = Pace(self.limits.idle, total=self.limits.explanation)
            body = await self._content(response, ERROR_LIMIT, pace, lambda _: True)
        except RegistryUnavailable:  # the status alone has to do
            return ""
        values = response.request.headers.getRawHeaders("Authorization", [])
        return error_text(body, login, "".join(values).removeprefix("Bearer "))

    def discard(self, response: IResponse) -> None:
        """Close a response whose body nobody wants."""
        body = Body(len, self.clock, Pace(self.limits.idle), self.subject)
        body.end.addErrback(lambda failure: failure.trap(CancelledError, Interruption))
        body.stopProducing()
        body.read(response)
