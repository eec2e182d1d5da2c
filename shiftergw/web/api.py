"""Map each request to a call of the gateway by its route, authenticate it, and log it.

Each request has an id: that of its `X-Request-Id` if it is well-formed, else a new one. It is in
the answer's `X-Request-Id`, the log line of the request, and the record of a pull that the request
has started.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from shiftergw.errors import GatewayError, NotFound, printable
from shiftergw.model.metrics import REQUEST_SECONDS
from shiftergw.model.requests import ANONYMOUS, Session
from shiftergw.ports import NO_METRICS, Authenticator, Metrics, ReplayUnchecked
from shiftergw.service.gateway import Gateway
from shiftergw.web import parameters, render, uploads
from shiftergw.web.bodies import BodyReceiver
from shiftergw.web.connections import ConnectionLimits
from shiftergw.web.event_stream import EventStreams
from shiftergw.web.journal import Audit, Journal, RequestLog, audit_nothing
from shiftergw.web.lists import ListLimits, Lists
from shiftergw.web.page.browsers import check_confidential
from shiftergw.web.page.user_page import UserPage
from shiftergw.web.pages import PAGES
from shiftergw.web.parameters import RequestPath
from shiftergw.web.render import Answer
from shiftergw.web.routes import ROUTES, MethodNotAllowed, Route, RoutedRequest
from shiftergw.web.site import Call, Site
from shiftergw.web.spool import InThread

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


MOST_NEAR = 3
"""Names of systems that the error about an unknown one has."""

Handler = Callable[[Gateway, RoutedRequest], Awaitable[Answer]]


@dataclass(slots=True)
class OpenRequest:
    """A request that is being answered: its call, its log line, and when it began."""

    call: Call
    line: RequestLog
    start: float


class Api:
    """Answers calls from the table of routes and the pages of `web.pages`."""

    _log = Logger()

    def __init__(
        self,
        gateway: Gateway,
        authenticators: Mapping[str, Authenticator],
        clock: IReactorTime,
        lists: Lists,
        streams: EventStreams,
        limits: ConnectionLimits,
        metrics: Metrics = NO_METRICS,
        audit: Audit = audit_nothing,
    ) -> None:
        """Authenticate users by `authenticators`, one for each system; tell changes to `audit`."""
        self._metrics = metrics
        self._gateway = gateway
        self._authenticators = authenticators
        self._clock = clock
        self._lists = lists
        self._streams = streams
        self._limits = limits
        self._user_page = UserPage(gateway, authenticators, lists, streams, limits)
        self._journal = Journal(clock, audit)

    async def __call__(self, call: Call) -> Answer:
        """Return the answer to a call; every error becomes an answer, except a cancellation."""
        request = self._begin(call)
        try:
            answer = await self._route(call, request.line)
        except CancelledError:
            self._end(request, None)
            raise
        except Exception as error:  # noqa: BLE001 - the client must get an answer also after a bug
            if UserPage.has(call.path):
                answer = await UserPage.refusal(self._reason(request, error))
            else:
                answer = self._refusal(request, error)
        return self._end(request, answer)

    def only_reads(self, call: Call) -> bool:
        """Return whether a call changes nothing."""
        route = _route_of(call)
        return route is None or not route.changes

    def takes_long_body(self, call: Call) -> bool:
        """Return whether the body of a call is received by `open_body`."""
        route = _route_of(call)
        return route is not None and route.takes_long_body and _method(call) in route.methods

    async def open_body(self, call: Call, size: int) -> BodyReceiver | Answer:
        """Authenticate the sender of a long body, and return what receives it, or a refusal."""
        request = self._begin(call)
        try:
            _, _, routed_request = await self._prepare(call, request.line)
            chunk = await uploads.open_chunk(self._gateway, routed_request, size)
        except CancelledError:
            self._end(request, None)
            raise
        except Exception as error:  # noqa: BLE001 - as in `__call__`
            return self._end(request, self._refusal(request, error))
        return uploads.ChunkReceiver(
            chunk,
            self._gateway,
            lambda error: self._end(request, self._refusal(request, error)),
            lambda answer: self._end(request, answer),
        )

    def close(self) -> None:
        """End the streams of events; log the counts that have not been logged yet."""
        self._streams.close()
        self._journal.close()

    def _begin(self, call: Call) -> OpenRequest:
        return OpenRequest(call, RequestLog(_request_id(call)), self._clock.seconds())

    def _end(self, request: OpenRequest, answer: Answer | None) -> Answer:
        """Log the end of a request, without an `answer` if the client hung up."""
        line = request.line
        if answer is not None and answer.status == HTTPStatus.OK:
            line.quiet, line.word = line.quiet or answer.quiet, answer.word
            line.image_id = answer.image_id or line.image_id
        seconds = self._clock.seconds() - request.start
        self._journal.write(request.call, line, None if answer is None else answer.status, seconds)
        status = "hung up" if answer is None else f"{answer.status // 100}xx"
        self._metrics.observe(REQUEST_SECONDS, max(0.0, seconds), line.route or "none", status)
        answer = answer or Answer(HTTPStatus.OK, b"")
        return replace(answer, headers={**answer.headers, "X-Request-Id": line.request_id})

    def _refusal(self, request: OpenRequest, error: Exception) -> Answer:
        """Return the answer that an error means."""
        headers = {"Allow": error.methods} if isinstance(error, MethodNotAllowed) else {}
        reason = self._reason(request, error)
        return render.refusal(reason, printable(request.call.path), **headers)

    def _reason(self, request: OpenRequest, error: Exception) -> GatewayError:
        """Return the error as the client may know it; log the traceback of an unexpected one."""
        if isinstance(error, GatewayError):
            request.line.why = printable(f"{error.what} {error.detail}".strip(), 600)
            return error
        request_id = request.line.request_id
        self._log.failure(
            "request {request} failed", request=request_id, fields={"request": request_id}
        )
        return GatewayError(
            "Something went wrong in the gateway.",
            remedy=f"Tell the site's support, and name the request {request_id}.",
        )

    async def _route(self, call: Call, line: RequestLog) -> Answer:
        if UserPage.has(call.path):
            return await self._user_page.answer(call, line)
        page = PAGES.get(RequestPath.parse(call.path).page)
        if page is not None:
            line.quiet = True
            _check_method(call, ["GET", "HEAD"])
            return await page(self._gateway)
        route, handler, request = await self._prepare(call, line)
        answer = await handler(self._gateway, request)
        return replace(answer, quiet=answer.quiet or not route.changes)

    async def _prepare(self, call: Call, line: RequestLog) -> tuple[Route, Handler, RoutedRequest]:
        """Find the route of a call and authenticate its user."""
        address = RequestPath.parse(call.path)
        routes = ROUTES.get(address.page)
        route = None if routes is None else routes.choose(address, _method(call))
        if routes is None or route is None:
            raise parameters.path_not_found(call.path)
        _check_method(call, routes.methods_at(address))
        self._check_system(address)
        line.system, line.route = address.system, address.page
        line.is_audited = route.is_audited
        line.image = f"{address.itype}:{address.image}" if address.itype else ""
        line.image_id = "" if address.itype else address.image
        handler = route.answer
        try:
            session = (
                self._worker_session(call, address.system)
                if route.for_workers
                else await self._session(call, address.system)
            )
        except ReplayUnchecked as error:
            if route.unproved_answer is None:
                raise
            session, handler = error.session, route.unproved_answer
            line.why = printable(error.detail, 600)
        line.session = session
        line.user = f"{session.user}({session.uid})"
        request = RoutedRequest(
            session,
            address.itype,
            address.image,
            call.query,
            call.body,
            line.request_id,
            self._lists,
            self._streams,
            self._journal,
            partial(check_confidential, call, self._limits),
        )
        return route, handler, request

    def _check_system(self, address: RequestPath) -> None:
        if address.system not in self._gateway.systems:
            # The names of systems are on every machine of theirs, so similar ones are no secret.
            names = get_close_matches(address.system[:60], self._gateway.systems, MOST_NEAR)
            question = f" Do you mean {' or '.join(names)}?" if names else ""
            raise NotFound(
                f"There is no system {printable(address.system, 60)!r}.{question}",
                remedy="Check `system` in the client's configuration.",
            )

    def _worker_session(self, call: Call, system: str) -> Session:
        """Return the session of a worker that has signed the request with the site's key."""
        credential = parameters.credential(call.credentials)
        target = call.path + (b"?" + call.query if call.query else b"")
        self._gateway.files.downloads.check(credential, _method(call), target.decode("latin-1"))
        return Session(system, WORKER, ANONYMOUS, WORKER, ANONYMOUS)

    async def _session(self, call: Call, system: str) -> Session:
        if self._gateway.allows_anonymous and not any(call.credentials):
            return Session(system, "anonymous", ANONYMOUS, "anonymous", ANONYMOUS)
        credential = parameters.credential(call.credentials)
        return await self._authenticators[system].authenticate(credential, system)


WORKER = "worker"
"""The name of the site's own workers in the log."""


_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{7,39}")
"""The form of ids that are taken from clients: they are words of log lines and of records."""


def _request_id(call: Call) -> str:
    """Return the client's own id of a request, or a new one."""
    if len(call.request_ids) == 1 and _REQUEST_ID.fullmatch(call.request_ids[0]):
        return call.request_ids[0].decode("ascii")
    return secrets.token_hex(4)


def _method(call: Call) -> str:
    return call.method.decode("ascii", "replace")


def _route_of(call: Call) -> Route | None:
    """Return the route that a call is meant for, or None if its path names nothing."""
    try:
        address = RequestPath.parse(call.path)
    except GatewayError:
        return None
    routes = ROUTES.get(address.page)
    return None if routes is None else routes.choose(address, _method(call))


def _check_method(call: Call, methods: list[str]) -> None:
    """Raise `MethodNotAllowed` unless the call uses one of these methods."""
    if _method(call) not in methods:
        raise MethodNotAllowed(call.method, ", ".join(methods))


def make_site(
    gateway: Gateway,
    authenticators: Mapping[str, Authenticator],
    clock: IReactorTime,
    in_thread: InThread,
    list_limits: ListLimits | None = None,
    limits: ConnectionLimits | None = None,
    metrics: Metrics = NO_METRICS,
    audit: Audit = audit_nothing,
) -> Site:
    """Return the web site of a gateway; `authenticators` has one for each of its systems.

    `audit` receives the requests that change something, including refused ones.
    """
    limits = limits or ConnectionLimits()
    lists = Lists(in_thread, list_limits or ListLimits(), clock)
    streams = EventStreams(gateway.work, clock, limits.streams)
    api = Api(gateway, authenticators, clock, lists, streams, limits, metrics, audit)
    return Site(api, clock, limits)
