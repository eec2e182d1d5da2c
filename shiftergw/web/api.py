"""The routes: what each path asks of the gateway, for whom, and what goes into the log about it.

One request has one id: it stands in the answer's `X-Request-Id`, in its line of the log, and in
the record of a pull that it started.
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
from shiftergw.ports import Authenticator, Unproved
from shiftergw.service.gateway import Gateway
from shiftergw.web import parameters, render
from shiftergw.web.connections import ConnectionLimits
from shiftergw.web.journal import Journal, Line
from shiftergw.web.lists import ListLimits, Lists
from shiftergw.web.pages import PAGES
from shiftergw.web.parameters import Address
from shiftergw.web.render import Answer
from shiftergw.web.site import Call, Site
from shiftergw.web.spool import InThread

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


class MethodNotAllowed(GatewayError):
    """The path exists, for another method."""

    http_status = 405
    code = "method-not-allowed"

    def __init__(self, method: bytes, allowed: str) -> None:
        """`allowed` names the methods that are."""
        super().__init__(f"{printable(method, 20)} is not possible here.", remedy=f"Use {allowed}.")
        self.allowed = allowed


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was understood: who asks for what."""

    session: Session
    itype: str
    image: str
    query: bytes
    body: bytes
    request_id: str
    lists: Lists
    journal: Journal


async def _list(gateway: Gateway, asked: Asked) -> Answer:
    pages = gateway.list(asked.session)
    return await asked.lists.images(asked.session.uid, pages, labels=gateway.shows_labels)


async def _lookup(gateway: Gateway, asked: Asked) -> Answer:
    image = await gateway.lookup(asked.session, asked.itype, asked.image)
    return render.answer(render.record(image, labels=gateway.shows_labels))


async def _pull(gateway: Gateway, asked: Asked) -> Answer:
    members = parameters.members(asked.body)
    image = await gateway.pull(
        asked.session,
        asked.itype,
        asked.image,
        parameters.acl(members, "allowed_uids"),
        parameters.acl(members, "allowed_gids"),
        asked.request_id,
    )
    news = asked.journal.is_news(asked.session, asked.itype, asked.image, image)
    answer = render.answer(render.pulled(image, labels=gateway.shows_labels))
    word = image.status.value
    if image.request_id and image.request_id != asked.request_id:
        word += f" by request {printable(image.request_id, 40)}"
    return replace(answer, quiet=not news, word=word)


async def _told(gateway: Gateway, asked: Asked) -> Answer:
    image = gateway.told(asked.session, asked.itype, asked.image, asked.request_id)
    answer = render.answer(render.pulled(image, labels=gateway.shows_labels))
    return replace(answer, quiet=True)


async def _queue(gateway: Gateway, asked: Asked) -> Answer:
    return await asked.lists.build(
        asked.session.uid,
        gateway.queue(asked.session),
        lambda image, _: render.to_json(render.queued(image)),
    )


async def _import(_: Gateway, __: Asked) -> Answer:
    raise NotAllowed("Imports are not enabled.", remedy="Push the image to a registry, and pull.")


async def _expire(gateway: Gateway, asked: Asked) -> Answer:
    await gateway.expire(asked.session, asked.itype, asked.image)
    return render.answer({"status": True})


async def _autoexpire(gateway: Gateway, asked: Asked) -> Answer:
    return render.answer({"status": list(await gateway.autoexpire(asked.session))})


async def _metrics(gateway: Gateway, asked: Asked) -> Answer:
    return render.rows(await gateway.metrics(asked.session, parameters.limit(asked.query)))


async def _workers(gateway: Gateway, asked: Asked) -> Answer:
    found = await gateway.workers(asked.session)
    return render.listing(render.machine(machine, jobs) for machine, jobs in found)


async def _take_down(gateway: Gateway, asked: Asked) -> Answer:
    image_id = parameters.image_id(asked.image)
    removed = await gateway.take_down(asked.session, image_id)
    return render.answer({"status": True, "removed": list(removed)})


async def _allow(gateway: Gateway, asked: Asked) -> Answer:
    await gateway.allow(asked.session, parameters.image_id(asked.image))
    return render.answer({"status": True})


class Names(Enum):
    """What follows the system in a route's path."""

    NOTHING = auto()
    IMAGE = auto()  # type and reference
    ID = auto()


@dataclass(frozen=True, slots=True)
class Route:
    """One name under `/api`, the method it is asked with, and what its path names.

    The clients of old ask for some changes by GET. `unproved` answers requests whose credential
    may have been used before: they must learn nothing new by it, and change nothing.
    """

    method: str
    answer: Callable[[Gateway, Asked], Awaitable[Answer]]
    names: Names = Names.NOTHING
    changes: bool = False
    unproved: Callable[[Gateway, Asked], Awaitable[Answer]] | None = None

    def fits(self, address: Address) -> bool:
        """Say whether a path names what this route needs."""
        return {
            Names.NOTHING: not address.image,
            Names.IMAGE: bool(address.itype),
            Names.ID: bool(address.image) and not address.itype,
        }[self.names]


ROUTES = {
    "list": Route("GET", _list),
    "lookup": Route("GET", _lookup, Names.IMAGE),
    "pull": Route("POST", _pull, Names.IMAGE, changes=True, unproved=_told),
    "doimport": Route("POST", _import, Names.IMAGE, changes=True),
    "expire": Route("GET", _expire, Names.IMAGE, changes=True),
    "autoexpire": Route("GET", _autoexpire, changes=True),
    "queue": Route("GET", _queue),
    "metrics": Route("GET", _metrics),
    "workers": Route("GET", _workers),
    "takedown": Route("POST", _take_down, Names.ID, changes=True),
    "allow": Route("POST", _allow, Names.ID, changes=True),
}


class Api:
    """Answers calls by the two tables above."""

    _log = Logger()

    def __init__(
        self,
        gateway: Gateway,
        authenticators: Mapping[str, Authenticator],
        clock: IReactorTime,
        lists: Lists,
    ) -> None:
        """Know users by `authenticators`, one for each system."""
        self._gateway = gateway
        self._authenticators = authenticators
        self._clock = clock
        self._lists = lists
        self._journal = Journal(clock)

    async def __call__(self, call: Call) -> Answer:
        """Return the answer to a call, whatever it is; raises nothing but a cancellation."""
        started = self._clock.seconds()
        line = Line(secrets.token_hex(4))
        outcome = None
        try:
            answer = await self._answer(call, line)
            outcome = answer.status
        finally:
            self._journal.write(call, line, outcome, self._clock.seconds() - started)
        return replace(answer, headers={**answer.headers, "X-Request-Id": line.request_id})

    def only_reads(self, call: Call) -> bool:
        """Say whether a call changes nothing."""
        try:
            route = ROUTES.get(Address.parse(call.path).page)
        except GatewayError:
            return True
        return route is None or not route.changes

    def closed(self) -> None:
        """Tell the log what it has not heard yet."""
        self._journal.close()

    async def _answer(self, call: Call, line: Line) -> Answer:
        try:
            return await self._routed(call, line)
        except CancelledError:
            raise
        except GatewayError as error:
            line.why = printable(f"{error.what} {error.detail}".strip(), 600)
            headers = {"Allow": error.allowed} if isinstance(error, MethodNotAllowed) else {}
            return render.refusal(error, printable(call.path), **headers)
        except Exception:  # noqa: BLE001 - a fault of ours must not be silence for the requester
            self._log.failure("request {request} failed", request=line.request_id)
            fault = GatewayError(
                "Something went wrong in the gateway.",
                remedy=f"Tell the site's support, and name the request {line.request_id}.",
            )
            return render.refusal(fault, printable(call.path))

    async def _routed(self, call: Call, line: Line) -> Answer:
        address = Address.parse(call.path)
        page = PAGES.get(address.page)
        if page is not None:
            line.quiet = True
            _check_method(call, "GET")
            return await page(self._gateway)
        route = ROUTES.get(address.page)
        if route is None or not route.fits(address):
            raise parameters.nowhere(call.path)
        _check_method(call, route.method, changes=route.changes)
        self._check_system(address)
        line.system, line.route = address.system, address.page
        work = route.answer
        try:
            session = await self._session(call, address.system)
        except Unproved as error:
            if route.unproved is None:
                raise
            session, work = error.session, route.unproved
            line.why = printable(error.detail, 600)
        line.user = f"{session.user}({session.uid})"
        asked = Asked(
            session,
            address.itype,
            address.image,
            call.query,
            call.body,
            line.request_id,
            self._lists,
            self._journal,
        )
        answer = await work(self._gateway, asked)
        line.quiet, line.word = answer.quiet or not route.changes, answer.word
        return answer

    def _check_system(self, address: Address) -> None:
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
    """Raise `MethodNotAllowed` for another method; HEAD works where GET only reads."""
    allowed = ["GET", "HEAD"] if method == "GET" and not changes else [method]
    if call.method.decode("ascii", "replace") not in allowed:
        raise MethodNotAllowed(call.method, ", ".join(allowed))


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
