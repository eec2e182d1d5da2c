"""Routes: map each request to a call of the gateway, authenticate it, and log it.

Each request has an id. The answer's `X-Request-Id`, the log line of the request, and the record of
a pull that the request started all contain it.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from shiftergw.errors import GatewayError, NotAllowed, NotFound, printable
from shiftergw.model import ANONYMOUS, Session
from shiftergw.ports import Authenticator, ReplayUnchecked
from shiftergw.service.gateway import Gateway
from shiftergw.web import parameters, render
from shiftergw.web.connections import ConnectionLimits
from shiftergw.web.journal import Journal, RequestLog
from shiftergw.web.lists import ListLimits, Lists
from shiftergw.web.pages import PAGES
from shiftergw.web.parameters import RequestPath
from shiftergw.web.render import Answer
from shiftergw.web.site import Call, Site
from shiftergw.web.spool import InThread

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


class MethodNotAllowed(GatewayError):
    """The path exists, for another method."""

    http_status = 405
    code = "method-not-allowed"

    def __init__(self, method: bytes, methods: str) -> None:
        """Refuse `method`; `methods` names those that the path has."""
        super().__init__(f"{printable(method, 20)} is not possible here.", remedy=f"Use {methods}.")
        self.methods = methods


@dataclass(frozen=True, slots=True)
class RoutedRequest:
    """A request whose path, credential and route are known."""

    session: Session
    itype: str
    image: str
    query: bytes
    body: bytes
    request_id: str
    lists: Lists
    journal: Journal


async def _list(gateway: Gateway, request: RoutedRequest) -> Answer:
    pages = gateway.list(request.session)
    return await request.lists.images(request.session.uid, pages, labels=gateway.shows_labels)


async def _lookup(gateway: Gateway, request: RoutedRequest) -> Answer:
    image = await gateway.lookup(request.session, request.itype, request.image)
    return render.answer(render.record(image, labels=gateway.shows_labels))


async def _pull(gateway: Gateway, request: RoutedRequest) -> Answer:
    members = parameters.members(request.body)
    image = await gateway.pull(
        request.session,
        request.itype,
        request.image,
        parameters.acl(members, "allowed_uids"),
        parameters.acl(members, "allowed_gids"),
        request.request_id,
    )
    news = request.journal.is_news(request.session, request.itype, request.image, image)
    answer = render.answer(render.pull_answer(image, labels=gateway.shows_labels))
    word = image.status.value
    if image.request_id and image.request_id != request.request_id:
        word += f" by request {printable(image.request_id, 40)}"
    return replace(answer, quiet=not news, word=word)


async def _last_answer(gateway: Gateway, request: RoutedRequest) -> Answer:
    image = gateway.last_answer(request.session, request.itype, request.image, request.request_id)
    answer = render.answer(render.pull_answer(image, labels=gateway.shows_labels))
    return replace(answer, quiet=True)


async def _queue(gateway: Gateway, request: RoutedRequest) -> Answer:
    return await request.lists.build(
        request.session.uid,
        gateway.queue(request.session),
        lambda image, _: render.to_json(render.queue_row(image)),
    )


async def _import(_: Gateway, __: RoutedRequest) -> Answer:
    raise NotAllowed("Imports are not enabled.", remedy="Push the image to a registry, and pull.")


async def _expire(gateway: Gateway, request: RoutedRequest) -> Answer:
    await gateway.expire(request.session, request.itype, request.image)
    return render.answer({"status": True})


async def _autoexpire(gateway: Gateway, request: RoutedRequest) -> Answer:
    return render.answer({"status": list(await gateway.autoexpire(request.session))})


async def _metrics(gateway: Gateway, request: RoutedRequest) -> Answer:
    return render.rows(await gateway.metrics(request.session, parameters.limit(request.query)))


async def _workers(gateway: Gateway, request: RoutedRequest) -> Answer:
    machines = await gateway.workers(request.session)
    return render.listing(render.machine_row(machine, jobs) for machine, jobs in machines)


async def _registries(gateway: Gateway, request: RoutedRequest) -> Answer:
    registries = gateway.registries(request.session).items()
    return render.listing({"location": name, "host": host} for name, host in registries)


async def _take_down(gateway: Gateway, request: RoutedRequest) -> Answer:
    image_id = parameters.image_id(request.image)
    names = await gateway.take_down(request.session, image_id)
    return render.answer({"status": True, "removed": list(names)})


async def _allow(gateway: Gateway, request: RoutedRequest) -> Answer:
    await gateway.allow(request.session, parameters.image_id(request.image))
    return render.answer({"status": True})


class Names(Enum):
    """What follows the system in the path of a route."""

    SYSTEM = auto()  # nothing
    IMAGE = auto()  # type and reference
    ID = auto()


@dataclass(frozen=True, slots=True)
class Route:
    """A name below `/api`: its HTTP method, its handler, and what its path names.

    Existing clients request some `changes` by GET. `unproved_answer` handles requests whose
    credential may have been used before: they must change nothing and reveal nothing new.
    """

    method: str
    answer: Callable[[Gateway, RoutedRequest], Awaitable[Answer]]
    names: Names = Names.SYSTEM
    changes: bool = False
    unproved_answer: Callable[[Gateway, RoutedRequest], Awaitable[Answer]] | None = None

    def fits(self, address: RequestPath) -> bool:
        """Return whether a path names what this route needs."""
        return {
            Names.SYSTEM: not address.image,
            Names.IMAGE: bool(address.itype),
            Names.ID: bool(address.image) and not address.itype,
        }[self.names]


ROUTES = {
    "list": Route("GET", _list),
    "lookup": Route("GET", _lookup, Names.IMAGE),
    "pull": Route("POST", _pull, Names.IMAGE, changes=True, unproved_answer=_last_answer),
    "doimport": Route("POST", _import, Names.IMAGE, changes=True),
    "expire": Route("GET", _expire, Names.IMAGE, changes=True),
    "autoexpire": Route("GET", _autoexpire, changes=True),
    "queue": Route("GET", _queue),
    "metrics": Route("GET", _metrics),
    "workers": Route("GET", _workers),
    "registries": Route("GET", _registries),
    "takedown": Route("POST", _take_down, Names.ID, changes=True),
    "allow": Route("POST", _allow, Names.ID, changes=True),
}


class Api:
    """Answers calls from the routes of this module and the pages of `web.pages`."""

    _log = Logger()

    def __init__(
        self,
        gateway: Gateway,
        authenticators: Mapping[str, Authenticator],
        clock: IReactorTime,
        lists: Lists,
    ) -> None:
        """Authenticate users by `authenticators`, one for each system."""
        self._gateway = gateway
        self._authenticators = authenticators
        self._clock = clock
        self._lists = lists
        self._journal = Journal(clock)

    async def __call__(self, call: Call) -> Answer:
        """Return the answer to a call; every error becomes an answer, except a cancellation."""
        start = self._clock.seconds()
        line = RequestLog(secrets.token_hex(4))
        outcome = None
        try:
            answer = await self._answer(call, line)
            outcome = answer.status
        finally:
            self._journal.write(call, line, outcome, self._clock.seconds() - start)
        return replace(answer, headers={**answer.headers, "X-Request-Id": line.request_id})

    def only_reads(self, call: Call) -> bool:
        """Return whether a call changes nothing."""
        try:
            route = ROUTES.get(RequestPath.parse(call.path).page)
        except GatewayError:
            return True
        return route is None or not route.changes

    def close(self) -> None:
        """Log the counts that have not been logged yet."""
        self._journal.close()

    async def _answer(self, call: Call, line: RequestLog) -> Answer:
        try:
            return await self._route(call, line)
        except CancelledError:
            raise
        except GatewayError as error:
            line.why = printable(f"{error.what} {error.detail}".strip(), 600)
            headers = {"Allow": error.methods} if isinstance(error, MethodNotAllowed) else {}
            return render.refusal(error, printable(call.path), **headers)
        except Exception:  # noqa: BLE001 - the client must get an answer also after a bug
            self._log.failure("request {request} failed", request=line.request_id)
            fault = GatewayError(
                "Something went wrong in the gateway.",
                remedy=f"Tell the site's support, and name the request {line.request_id}.",
            )
            return render.refusal(fault, printable(call.path))

    async def _route(self, call: Call, line: RequestLog) -> Answer:
        address = RequestPath.parse(call.path)
        page = PAGES.get(address.page)
        if page is not None:
            line.quiet = True
            _check_method(call, "GET")
            return await page(self._gateway)
        route = ROUTES.get(address.page)
        if route is None or not route.fits(address):
            raise parameters.path_not_found(call.path)
        _check_method(call, route.method, changes=route.changes)
        self._check_system(address)
        line.system, line.route = address.system, address.page
        handler = route.answer
        try:
            session = await self._session(call, address.system)
        except ReplayUnchecked as error:
            if route.unproved_answer is None:
                raise
            session, handler = error.session, route.unproved_answer
            line.why = printable(error.detail, 600)
        line.user = f"{session.user}({session.uid})"
        request = RoutedRequest(
            session,
            address.itype,
            address.image,
            call.query,
            call.body,
            line.request_id,
            self._lists,
            self._journal,
        )
        answer = await handler(self._gateway, request)
        line.quiet, line.word = answer.quiet or not route.changes, answer.word
        return answer

    def _check_system(self, address: RequestPath) -> None:
        if address.system not in self._gateway.systems:
            raise NotFound(
                f"There is no system {printable(address.system, 60)!r}.",
                remedy="Check `system` in the client's configuration.",
            )

    async def _session(self, call: Call, system: str) -> Session:
        if self._gateway.allows_anonymous and not any(call.credentials):
            return Session(system, "anonymous", ANONYMOUS, "anonymous", ANONYMOUS)
        credential = parameters.credential(call.credentials)
        return await self._authenticators[system].authenticate(credential, system)


def _check_method(call: Call, method: str, *, changes: bool = False) -> None:
    """Raise `MethodNotAllowed` unless the call uses `method`; HEAD works where GET only reads."""
    methods = ["GET", "HEAD"] if method == "GET" and not changes else [method]
    if call.method.decode("ascii", "replace") not in methods:
        raise MethodNotAllowed(call.method, ", ".join(methods))


def make_site(
    gateway: Gateway,
    authenticators: Mapping[str, Authenticator],
    clock: IReactorTime,
    in_thread: InThread,
    list_limits: ListLimits | None = None,
    limits: ConnectionLimits | None = None,
) -> Site:
    """Return the web site of a gateway; `authenticators` has one for each of its systems."""
    lists = Lists(in_thread, list_limits or ListLimits(), clock)
    return Site(Api(gateway, authenticators, clock, lists), clock, limits)
