"""The admin site: metrics and health, for the people and programs that watch over the gateway.

It listens apart from the API: at a UNIX socket, whose permissions say who may connect, or at a port
with TLS, where each request needs the site's token.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from shiftergw.errors import GatewayError, NotAuthenticated, NotFound, printable
from shiftergw.service.gateway import Gateway
from shiftergw.web import render
from shiftergw.web.bodies import BodyReceiver
from shiftergw.web.connections import ConnectionLimits
from shiftergw.web.page import documents
from shiftergw.web.page.admin_page import AdminPage
from shiftergw.web.page.browsers import check_own_host
from shiftergw.web.pages import PAGES
from shiftergw.web.render import Answer
from shiftergw.web.routes import MethodNotAllowed
from shiftergw.web.site import Call, Site

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

Page = Callable[[], Awaitable[Answer]]

CONNECTIONS = 32
"""Connections at once; a monitoring system needs one."""

CONNECTIONS_OF_PEER = CONNECTIONS // 4
"""Connections of one host at once: no host may keep all others out."""

CHALLENGES = 'Bearer, Basic realm="shiftergw admin"'
"""How programs (RFC 6750) and browsers (RFC 7617) may send the token."""

REFUSAL_SECONDS = 60.0
"""Seconds between two log lines about requests without the token."""


class AdminApplication:
    """Answers GET and HEAD of its pages; with a token, only to those who send it."""

    _log = Logger()

    def __init__(
        self,
        pages: Mapping[str, Page],
        clock: IReactorTime,
        admin_page: AdminPage | None = None,
    ) -> None:
        """Answer with `pages`, by path, and with those of `admin_page`, whose errors are HTML."""
        self.token: bytes | None = None
        """What each request must have in `Authorization: Bearer`; None if none is needed.

        Browsers send it as the password of `Authorization: Basic`, with any name.
        """
        self._pages = pages
        self._admin_page = admin_page
        self._browser_pages = {} if admin_page is None else admin_page.pages()
        self._clock = clock
        self._quiet_until = 0.0

    async def __call__(self, call: Call) -> Answer:
        """Return the answer to a call; every error becomes an answer, except a cancellation."""
        try:
            self._check_token(call)
            return await self._page_of(call)
        except CancelledError:
            raise
        except GatewayError as error:
            return await self._refusal(call, error)
        except Exception:  # noqa: BLE001 - the client must get an answer also after a bug
            self._log.failure("a request at the admin listener failed")
            return await self._refusal(call, GatewayError("Something went wrong in the gateway."))

    async def _refusal(self, call: Call, error: GatewayError) -> Answer:
        """Return an error as JSON, or as a document for people."""
        headers = {"Allow": error.methods} if isinstance(error, MethodNotAllowed) else {}
        if isinstance(error, NotAuthenticated):
            headers["WWW-Authenticate"] = CHALLENGES
        if call.path.decode("latin-1") in self._browser_pages:
            return await documents.refusal(error, headers)
        answer = render.refusal(error)
        return replace(answer, headers={**answer.headers, **headers})

    def _page_of(self, call: Call) -> Awaitable[Answer]:
        """Return the answer of a page; raise `NotFound`, `MethodNotAllowed` or `NotAllowed`."""
        path = call.path.decode("latin-1")
        browser_page = self._browser_pages.get(path)
        if browser_page is not None and self.token is None:
            check_own_host(call)
        if browser_page is None and path not in self._pages:
            raise NotFound(f"There is no page {printable(call.path, 60)} here.")
        if call.method not in {b"GET", b"HEAD"}:
            raise MethodNotAllowed(call.method, "GET, HEAD")
        return self._pages[path]() if browser_page is None else browser_page(call)

    def _check_token(self, call: Call) -> None:
        """Raise `NotAuthenticated` without the token; the comparison takes constant time."""
        if self.token is None:
            return
        if hmac.compare_digest(_token_in(b"".join(call.authorization[:1])), self.token):
            return
        now = self._clock.seconds()
        if now >= self._quiet_until:
            self._quiet_until = now + REFUSAL_SECONDS
            self._log.warn(
                "a request at the admin listener from {peer} lacks the token; further ones are not"
                " logged for {seconds:.0f} s",
                peer=call.peer,
                seconds=REFUSAL_SECONDS,
            )
        raise NotAuthenticated("The request lacks the token of the admin listener.", remedy="")

    def only_reads(self, call: Call) -> bool:  # noqa: ARG002 - see `Application`
        """Return that no call changes anything."""
        return True

    def takes_long_body(self, call: Call) -> bool:  # noqa: ARG002
        """Return that no call has a long body."""
        return False

    async def open_body(self, call: Call, size: int) -> BodyReceiver | Answer:
        """Refuse a long body."""
        raise NotImplementedError

    def close(self) -> None:
        """End the streams of events."""
        if self._admin_page is not None:
            self._admin_page.close()


def _token_in(authorization: bytes) -> bytes:
    """Return the token in a value of `Authorization`; b"" if there is none."""
    scheme, _, text = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return text.strip()
    if scheme.lower() == b"basic":
        with suppress(ValueError):
            return base64.b64decode(text.strip(), validate=True).partition(b":")[2]
    return b""


def health_pages(gateway: Gateway) -> dict[str, Page]:
    """Return the pages about the gateway's health, which the public site has as well."""
    return {path: partial(PAGES[path], gateway) for path in ("/livez", "/readyz")}


def make_admin_site(application: AdminApplication, clock: IReactorTime) -> Site:
    """Return the site of the admin listener.

    Its peers at a UNIX socket have no address, and only the limit of all connections.
    """
    limits = ConnectionLimits(total=CONNECTIONS, per_peer=CONNECTIONS_OF_PEER)
    return Site(application, clock, limits)
