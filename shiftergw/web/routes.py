"""The table of routes: what each name below `/api` does, by which method, for which path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from enum import Enum, auto

from shiftergw.errors import GatewayError, printable
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.service.gateway import Gateway
from shiftergw.service.page_sessions import ENTRY_SECONDS
from shiftergw.web import parameters, render, uploads
from shiftergw.web.event_stream import EventStreams
from shiftergw.web.inspection import inspected_image
from shiftergw.web.journal import Journal
from shiftergw.web.lists import Lists
from shiftergw.web.parameters import RequestPath
from shiftergw.web.render import Answer
from shiftergw.web.request_bodies import ImportBody, LoginBody, PullBody


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
    """A request whose path, credential and route are known.

    `check_confidential` raises `NotAllowed` if others may have read it on its way.
    """

    session: Session
    itype: str
    image: str
    query: bytes
    body: bytes
    request_id: str
    lists: Lists
    streams: EventStreams
    journal: Journal
    check_confidential: Callable[[], None]


async def _list(gateway: Gateway, request: RoutedRequest) -> Answer:
    pages = gateway.list(request.session)
    return await request.lists.images(request.session.uid, pages, labels=gateway.shows_labels)


async def _lookup(gateway: Gateway, request: RoutedRequest) -> Answer:
    image = await gateway.lookup(request.session, request.itype, request.image)
    return render.answer(render.record(image, labels=gateway.shows_labels))


async def _inspect(gateway: Gateway, request: RoutedRequest) -> Answer:
    image = await gateway.inspections.inspect(request.session, request.itype, request.image)
    labels = gateway.shows_labels
    return render.answer(inspected_image(image.record, image.systems, labels=labels))


async def _pull(gateway: Gateway, request: RoutedRequest) -> Answer:
    body = PullBody.parse(parameters.members(request.body))
    image = await gateway.pull(
        request.session,
        request.itype,
        request.image,
        body.allowed_uids,
        body.allowed_gids,
        request.request_id,
        body.choice(),
    )
    return _pull_answer(gateway, request, image)


def _pull_answer(gateway: Gateway, request: RoutedRequest, image: ImageRecord) -> Answer:
    news = request.journal.is_news(request.session, request.itype, request.image, image)
    answer = render.answer(render.pull_answer(image, labels=gateway.shows_labels))
    word = image.status.value
    if image.request_id and image.request_id != request.request_id:
        word += f" by request {printable(image.request_id, 40)}"
    return replace(answer, quiet=not news, word=word, image_id=image.id or "")


async def _last_answer(gateway: Gateway, request: RoutedRequest) -> Answer:
    image = gateway.last_answer(request.session, request.itype, request.image, request.request_id)
    answer = render.answer(render.pull_answer(image, labels=gateway.shows_labels))
    return replace(answer, quiet=True)


async def _names(gateway: Gateway, request: RoutedRequest) -> Answer:
    return await request.lists.build(
        request.session.uid,
        gateway.list(request.session),
        lambda image, _: render.to_json(render.name_row(image)),
    )


async def _systems(gateway: Gateway, _: RoutedRequest) -> Answer:
    return render.listing({"system": name} for name in sorted(gateway.systems))


async def _queue(gateway: Gateway, request: RoutedRequest) -> Answer:
    return await request.lists.build(
        request.session.uid,
        gateway.queue(request.session),
        lambda image, _: render.to_json(render.queue_row(image) | render.requester(image)),
    )


async def _events(gateway: Gateway, request: RoutedRequest) -> Answer:
    name = None
    if request.image:
        name = request.itype, gateway.tag_of(request.session, request.itype, request.image)
    return render.events(request.streams.open(request.session, name))


async def _import(gateway: Gateway, request: RoutedRequest) -> Answer:
    body = ImportBody.parse(parameters.members(request.body))
    image = await gateway.import_file(
        request.session,
        request.itype,
        request.image,
        body.allowed_uids,
        body.allowed_gids,
        request.request_id,
        body.choice(),
    )
    return _pull_answer(gateway, request, image)


async def _expire(gateway: Gateway, request: RoutedRequest) -> Answer:
    await gateway.owner.expire(request.session, request.itype, request.image)
    return render.answer({"status": True})


async def _remove(gateway: Gateway, request: RoutedRequest) -> Answer:
    record = await gateway.owner.remove(request.session, request.itype, request.image)
    return _change_answer(record, removed=[f"{record.itype}:{tag}" for tag in record.tags])


async def _pin(gateway: Gateway, request: RoutedRequest) -> Answer:
    return _change_answer(
        await gateway.owner.pin(request.session, request.itype, request.image), pinned=True
    )


async def _unpin(gateway: Gateway, request: RoutedRequest) -> Answer:
    return _change_answer(
        await gateway.owner.unpin(request.session, request.itype, request.image), pinned=False
    )


def _change_answer(record: ImageRecord, **members: object) -> Answer:
    """Return the answer to a request that has changed an image, which may be named by its id."""
    answer = render.answer({"status": True, "id": record.id, **members})
    return replace(answer, image_id=record.id or "")


async def _autoexpire(gateway: Gateway, request: RoutedRequest) -> Answer:
    return render.answer({"status": list(await gateway.admin.autoexpire(request.session))})


async def _metrics(gateway: Gateway, request: RoutedRequest) -> Answer:
    return render.rows(
        await gateway.admin.metrics(request.session, parameters.limit(request.query))
    )


async def _workers(gateway: Gateway, request: RoutedRequest) -> Answer:
    machines = await gateway.admin.workers(request.session)
    return render.listing(render.machine_row(machine, jobs) for machine, jobs in machines)


async def _registries(gateway: Gateway, request: RoutedRequest) -> Answer:
    registries = gateway.registries(request.session).items()
    return render.listing({"location": name, "host": host} for name, host in registries)


async def _page(gateway: Gateway, request: RoutedRequest) -> Answer:
    request.check_confidential()
    entry = gateway.page_sessions.make_entry(request.session)
    return render.answer({"path": f"page/enter?entry={entry}", "seconds": ENTRY_SECONDS})


async def _check_login(gateway: Gateway, request: RoutedRequest) -> Answer:
    body = LoginBody.parse(parameters.members(request.body))
    verdict = await gateway.logins.check(request.session, body.location)
    answer = render.answer(
        {"result": verdict.result, "cause": verdict.cause, "remedy": verdict.remedy}
    )
    return replace(answer, word=verdict.result)


async def _explain(gateway: Gateway, request: RoutedRequest) -> Answer:
    return render.answer(gateway.explanations.begin(request.session, request.itype, request.image))


async def _explanation(gateway: Gateway, request: RoutedRequest) -> Answer:
    return render.answer(gateway.explanations.find(request.session, request.image))


async def _take_down(gateway: Gateway, request: RoutedRequest) -> Answer:
    image_id, names = await gateway.admin.take_down(request.session, request.image)
    answer = render.answer({"status": True, "removed": list(names), "id": image_id})
    return replace(answer, image_id=image_id)


async def _allow(gateway: Gateway, request: RoutedRequest) -> Answer:
    image_id = await gateway.admin.allow(request.session, request.image)
    return replace(render.answer({"status": True, "id": image_id}), image_id=image_id)


class Names(Enum):
    """What follows the system in the path of a route."""

    SYSTEM = auto()  # nothing
    IMAGE = auto()  # type and reference
    ID = auto()


@dataclass(frozen=True, slots=True)
class Route:
    """A name below `/api`: its HTTP method, its handler, and what its path names.

    Existing clients request some `changes` by GET. `unproved_answer` handles requests whose
    credential may have been used before: they must change nothing and reveal nothing new. A route
    with `takes_long_body` receives the body while it arrives (`web.bodies`). Routes `for_workers`
    answer the site's own workers and nobody else. Requests of a route that
    `is_audited` are in the audit log. `siblings` are further routes of the same name, with other
    methods.
    """

    method: str
    answer: Callable[[Gateway, RoutedRequest], Awaitable[Answer]]
    names: Names = Names.SYSTEM
    changes: bool = False
    unproved_answer: Callable[[Gateway, RoutedRequest], Awaitable[Answer]] | None = None
    takes_long_body: bool = False
    for_workers: bool = False
    is_audited: bool = False
    siblings: tuple[Route, ...] = ()

    def choose(self, address: RequestPath, method: str) -> Route | None:
        """Return the route of this name that fits a path, with this method if there is one."""
        routes = [route for route in (self, *self.siblings) if route.fits(address)]
        of_method = (route for route in routes if method in route.methods)
        return next(of_method, routes[0] if routes else None)

    def methods_at(self, address: RequestPath) -> list[str]:
        """Return the methods of all routes of this name that fit a path."""
        routes = [route for route in (self, *self.siblings) if route.fits(address)]
        return [method for route in routes for method in route.methods]

    @property
    def methods(self) -> list[str]:
        """Return the methods of this route; HEAD works where GET only reads."""
        return ["GET", "HEAD"] if self.method == "GET" and not self.changes else [self.method]

    def fits(self, address: RequestPath) -> bool:
        """Return whether a path names what this route needs."""
        return {
            Names.SYSTEM: not address.image,
            Names.IMAGE: bool(address.itype),
            Names.ID: bool(address.image) and not address.itype,
        }[self.names]


ROUTES: dict[str, Route] = {
    "list": Route("GET", _list),
    "names": Route("GET", _names),
    "systems": Route("GET", _systems),
    "lookup": Route("GET", _lookup, Names.IMAGE),
    "inspect": Route("GET", _inspect, Names.IMAGE),
    "pull": Route(
        "POST",
        _pull,
        Names.IMAGE,
        changes=True,
        unproved_answer=_last_answer,
        is_audited=True,
    ),
    "upload": Route(
        "POST",
        uploads.declare,
        changes=True,
        is_audited=True,
        siblings=(
            Route("GET", uploads.list_own),
            Route("GET", uploads.show, Names.ID),
            Route("PUT", uploads.refuse_short, Names.ID, changes=True, takes_long_body=True),
            Route("DELETE", uploads.remove, Names.ID, changes=True, is_audited=True),
        ),
    ),
    "spool": Route(
        "GET",
        uploads.read_piece,
        Names.ID,
        for_workers=True,
        siblings=(Route("DELETE", uploads.discard, Names.ID, changes=True, for_workers=True),),
    ),
    "doimport": Route(
        "POST",
        _import,
        Names.IMAGE,
        changes=True,
        unproved_answer=_last_answer,
        is_audited=True,
    ),
    "explain": Route(
        "POST",
        _explain,
        Names.IMAGE,
        changes=True,
        siblings=(Route("GET", _explanation, Names.ID),),
    ),
    "expire": Route("GET", _expire, Names.IMAGE, changes=True, is_audited=True),
    "remove": Route("POST", _remove, Names.IMAGE, changes=True, is_audited=True),
    "pin": Route("POST", _pin, Names.IMAGE, changes=True, is_audited=True),
    "unpin": Route("POST", _unpin, Names.IMAGE, changes=True, is_audited=True),
    "autoexpire": Route("GET", _autoexpire, changes=True, is_audited=True),
    "page": Route("POST", _page, changes=True, is_audited=True),
    "queue": Route("GET", _queue),
    "events": Route("GET", _events, siblings=(Route("GET", _events, Names.IMAGE),)),
    "metrics": Route("GET", _metrics),
    "workers": Route("GET", _workers),
    "registries": Route("GET", _registries),
    "login": Route("POST", _check_login, changes=True, is_audited=True),
    "takedown": Route("POST", _take_down, Names.ID, changes=True, is_audited=True),
    "allow": Route("POST", _allow, Names.ID, changes=True, is_audited=True),
}
