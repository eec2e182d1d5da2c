"""The page of users, below `/page/`: entry, queue, images, events, and the end of a session.

It only reads, apart from the sessions of browsers themselves, and its cookie opens nothing outside:
requests below `/api` need a munge credential. So a request that another site makes a browser send
can change nothing, and `SameSite=Strict` keeps even the cookie from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from twisted.web.template import Element

from shiftergw.errors import GatewayError, NotAuthenticated, NotFound, printable
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.ports import Authenticator
from shiftergw.service.gateway import Gateway
from shiftergw.service.page_sessions import SESSION_SECONDS, PageSession
from shiftergw.web import render
from shiftergw.web.connections import ConnectionLimits
from shiftergw.web.event_stream import EventStreams
from shiftergw.web.journal import RequestLog
from shiftergw.web.lists import Lists
from shiftergw.web.page import documents
from shiftergw.web.page.browsers import check_confidential, cookie, query_value, token_of
from shiftergw.web.page.documents import FILES, Notice
from shiftergw.web.page.elements import Navigation
from shiftergw.web.page.image_list import ImageTable, search
from shiftergw.web.page.work import FailureList, Health, QueueList
from shiftergw.web.render import Answer
from shiftergw.web.routes import MethodNotAllowed

if TYPE_CHECKING:
    from shiftergw.web.site import Call

PREFIX = b"/page"
"""The page is at this path with a slash, and below it."""

MOST_ENTRY = 2000
"""Characters of an entry."""

_DOCUMENTS = {"": "Queue", "images": "Images", "events": "Events"}
"""What needs a session, by the rest of the path; the titles of documents."""


class UserPage:
    """Answers the calls of browsers below `PREFIX`."""

    def __init__(
        self,
        gateway: Gateway,
        authenticators: Mapping[str, Authenticator],
        lists: Lists,
        streams: EventStreams,
        limits: ConnectionLimits,
    ) -> None:
        """Show what `gateway` answers to users, whose rights `authenticators` know by system."""
        self._gateway = gateway
        self._authenticators = authenticators
        self._lists = lists
        self._streams = streams
        self._limits = limits

    @staticmethod
    def has(path: bytes) -> bool:
        """Return whether a path is one of the page."""
        return path == PREFIX or path.startswith(PREFIX + b"/")

    async def answer(self, call: Call, line: RequestLog) -> Answer:
        """Answer a call; raise `GatewayError` for what `refusal` shows."""
        name = call.path.removeprefix(PREFIX).removeprefix(b"/").decode("latin-1")
        line.route = "page"
        _check_method(call, "POST" if name == "leave" else "GET")
        if name in FILES:
            return FILES[name]
        if name not in {*_DOCUMENTS, "enter", "leave"}:
            raise NotFound(f"There is no page {printable(call.path, 60)}.", remedy="")
        check_confidential(call, self._limits)
        if name == "enter":
            return await self._enter(call, line)
        page_session = self._gateway.page_sessions.find(token_of(call))
        session = await self._session_of(page_session)
        line.user, line.system = f"{session.user}({session.uid})", session.system
        if name == "leave":
            self._gateway.page_sessions.end(page_session)
            return await _say_goodbye(call)
        if call.path == PREFIX:  # addresses in the documents are relative
            return await _go_on("page/", "Queue")
        if name == "events":
            return render.events(self._streams.open(session, None))
        content = await (self._images(session, call) if name == "images" else self._queue(session))
        return await documents.document(
            _DOCUMENTS[name], content, Navigation(session, name or "./")
        )

    @staticmethod
    async def refusal(error: GatewayError) -> Answer:
        """Return an error as a document."""
        headers = {"Allow": error.methods} if isinstance(error, MethodNotAllowed) else {}
        if isinstance(error, NotAuthenticated):
            headers["WWW-Authenticate"] = 'munge realm="shiftergw"'
        return await documents.refusal(error, headers)

    async def _enter(self, call: Call, line: RequestLog) -> Answer:
        """Open a session by an entry, and have the browser go on to the queue.

        The browser goes on by itself instead of by a redirection: after one from another site's
        link it would not send a strict cookie. The address with the entry leaves its history.
        """
        if call.method == b"HEAD":  # programs that look at links use no entry up
            return await _go_on("./", "Queue")
        token, page_session = await self._gateway.page_sessions.enter(
            query_value(call, "entry", MOST_ENTRY)
        )
        session = await self._session_of(page_session)
        line.user, line.system = f"{session.user}({session.uid})", session.system
        answer = await _go_on("./", "Queue", cookie(call, token, SESSION_SECONDS))
        return replace(answer, quiet=False)

    async def _session_of(self, page_session: PageSession) -> Session:
        """Return the session of a browser with the present groups and rights of its user."""
        authenticator = self._authenticators.get(page_session.user.system)
        if authenticator is None:
            raise NotAuthenticated("The system of this session is no longer here.", remedy="")
        return await authenticator.renew(page_session.user)

    async def _queue(self, session: Session) -> Sequence[Element]:
        records: list[ImageRecord] = []
        async with self._lists.turn(session.uid):
            async for page in self._gateway.queue(session):
                records += page

        def mark_of(record: ImageRecord) -> str:
            return "yours" if record.requested_by == session.uid else ""

        return (
            Health(session, records, self._gateway.trouble(session)),
            QueueList(records, mark_of, events="events"),
            FailureList(records, mark_of),
        )

    async def _images(self, session: Session, call: Call) -> Sequence[Element]:
        text = query_value(call, "search")
        async with self._lists.turn(session.uid):
            result = await search(session.uid, self._gateway.list(session), text)
        return (ImageTable(f"Images on {session.system}", session.uid, result),)


async def _go_on(address: str, label: str, set_cookie: str = "") -> Answer:
    """Return a document that leads to another one."""
    notice = Notice("One moment", "Your browser goes on to the page.", link=(address, label))
    headers = {"Set-Cookie": set_cookie} if set_cookie else {}
    return await documents.document("One moment", [notice], next_address=address, headers=headers)


async def _say_goodbye(call: Call) -> Answer:
    """Return a document after which the browser has no cookie any more."""
    notice = Notice("Signed out", "This browser no longer shows the gateway's page.")
    headers = {"Set-Cookie": cookie(call, "", 0)}
    answer = await documents.document("Signed out", [notice], headers=headers)
    return replace(answer, quiet=False)


def _check_method(call: Call, method: str) -> None:
    methods = {"GET": ("GET", "HEAD")}.get(method, (method,))
    if call.method.decode("latin-1") not in methods:
        raise MethodNotAllowed(call.method, ", ".join(methods))
