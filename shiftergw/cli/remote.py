"""The gateway's HTTP interface, seen from the command line.

As the existing client does it: the gateways are tried in random order until one answers with
success, and the one that did is kept. Each request carries a credential of its own.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from treq.client import HTTPClient
from twisted.internet import error as internet_error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.web.client import Agent, HTTPConnectionPool, ProxyAgent, ResponseFailed
from twisted.web.http_headers import Headers

from shiftergw.cli import answers
from shiftergw.cli.credentials import Credentials, warned
from shiftergw.cli.exits import Misused, NoGateway, Refused, Stop
from shiftergw.cli.proxy import proxy_for
from shiftergw.cli.settings import Settings
from shiftergw.errors import printable

CONNECT_LIMIT = 10.0
ANSWER_LIMIT = 60.0
"""Seconds for a whole request and its answer."""

ERROR_TEXT_LIMIT = 1000
_OK = 200

T = TypeVar("T")


def _silent(url: str, why: str) -> NoGateway:
    host = urlsplit(url).netloc.rpartition("@")[2]
    return NoGateway(f"The gateway {printable(host)} {why}")


def shuffled(urls: Sequence[str]) -> Sequence[str]:
    """Return the gateways in an order of chance."""
    return random.sample(urls, len(urls))


class Remote:
    """The gateways of one system, for one user."""

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        warn: Callable[[str], None] = warned,
        urls: Sequence[str] = (),
    ) -> None:
        """Ask nothing yet; raise `Stop` if something needed is not known.

        `urls` are the gateways in the order in which to try them, where that is decided.
        """
        self._reactor = reactor
        self._system = settings.found_system()
        self._credentials = Credentials(reactor, settings, warn)
        self._limit = settings.answer_limit() or ANSWER_LIMIT
        self._urls = urls or shuffled(settings.found_gateways())

    async def images(self) -> list[dict[str, Any]]:
        """Return the records of the system's images."""
        return await self._first("GET", ["list"], answers.listed)

    async def queue(self) -> list[dict[str, Any]]:
        """Return what waits, works or has failed."""
        return await self._first("GET", ["queue"], answers.listed)

    async def lookup(self, itype: str, image: str) -> str:
        """Return the id of a READY image."""
        return await self._first("GET", ["lookup", itype, image], answers.looked_up)

    async def pull(self, itype: str, image: str, acl: Mapping[str, str]) -> dict[str, Any]:
        """Ask for an image; return how far it is."""
        body = json.dumps(acl) if acl else ""
        return await self._first("POST", ["pull", itype, image], answers.pulled, body=body)

    async def expire(self, itype: str, image: str) -> None:
        """Take a tag away."""
        answer = await self._ask("GET", "expire", itype, image)
        _check_done(answer.get("status"))

    async def autoexpire(self) -> list[str]:
        """Expire what is due; return the ids."""
        ids = (await self._ask("GET", "autoexpire")).get("status")
        _check_done(isinstance(ids, list))
        return _texts(ids)

    async def take_down(self, image_id: str) -> list[str]:
        """Remove and block an image; return what it was called, as `type:tag`."""
        answer = await self._ask("POST", "takedown", image_id)
        _check_done(answer.get("status"))
        return _texts(answer.get("removed"))

    async def allow(self, image_id: str) -> None:
        """Take the block of an image back."""
        _check_done((await self._ask("POST", "allow", image_id)).get("status"))

    async def metrics(self, limit: int) -> list[dict[str, Any]]:
        """Return the last `limit` look-ups, oldest first."""
        return await self._first("GET", ["metrics"], answers.rows, query=f"?limit={limit}")

    async def workers(self) -> list[dict[str, Any]]:
        """Return the machines that work for the system, by name."""
        return await self._first("GET", ["workers"], answers.listed)

    async def _ask(self, method: str, *path: str) -> dict[str, Any]:
        return await self._first(method, path, answers.document)

    async def _first(
        self,
        method: str,
        path: Sequence[str],
        read: Callable[[Any], T],
        *,
        body: str = "",
        query: str = "",
    ) -> T:
        """Return what `read` makes of the first answer of success that it understands."""
        route, *image = path
        segments = ["api", route, self._system, *image]
        tail = "".join(f"/{quote(segment, safe='')}" for segment in segments)
        refusals: list[Stop] = []
        for url in self._urls:
            # Gateways may share a munge daemon, to which each credential counts once.
            credential = await self._credentials.fresh()
            asking = Deferred.fromCoroutine(
                self._one(method, url, f"{tail}/{query}", credential, body)
            )
            try:
                found = read(await self._limited(url, asking))
            except answers.NotUnderstood:
                why = "sent an answer that is not understood: is it a gateway?"
                refusals.append(_silent(url, why))
                continue
            except Stop as refusal:
                refusals.append(refusal)
                continue
            self._urls = [url]
            return found
        # What a gateway said is worth more than that another one was silent.
        raise min(refusals, key=lambda refusal: isinstance(refusal, NoGateway))

    async def _one(self, method: str, url: str, tail: str, credential: str, body: str) -> Any:
        """Return the JSON of one answer, None if it is none; raise `Stop` for a refusal."""
        http, headers = self._way_to(url)
        headers.addRawHeader("authentication", credential)
        headers.addRawHeader("Content-Type", "application/json")
        response = await http.request(
            method,
            url + tail,
            headers=headers,
            data=body.encode() if method == "POST" else None,
            allow_redirects=False,
        )
        content = await response.content()
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if response.code != _OK:
            raise _refused(url, response.code, answer)
        return answer

    def _way_to(self, url: str) -> tuple[HTTPClient, Headers]:
        """Return who carries requests there, and what the proxy, if any, wants to read."""
        pool = HTTPConnectionPool(self._reactor, persistent=False)
        proxy = proxy_for(url, os.environ)
        if proxy is None:
            agent = Agent(self._reactor, connectTimeout=CONNECT_LIMIT, pool=pool)
            return HTTPClient(agent), Headers()
        endpoint = HostnameEndpoint(
            self._reactor, proxy.host.encode("idna"), proxy.port, timeout=CONNECT_LIMIT
        )
        headers = Headers()
        if proxy.authorization:
            headers.addRawHeader("Proxy-Authorization", proxy.authorization)
        return HTTPClient(ProxyAgent(endpoint, self._reactor, pool)), headers

    async def _limited(self, url: str, asking: Deferred[Any]) -> Any:
        """Return what `asking` returns; turn what treq raises into `NoGateway`.

        What a request raises that is cancelled depends on how far it was: `DNSLookupError` too.
        """
        late = cancelled = False

        def expire() -> None:
            nonlocal late
            late = True
            asking.cancel()

        def cancel(_: Deferred[Any]) -> None:
            nonlocal cancelled
            cancelled = True
            asking.cancel()

        answer: Deferred[Any] = Deferred(cancel)
        asking.addBoth(lambda result: None if answer.called else answer.callback(result))
        limit = self._reactor.callLater(self._limit, expire)
        try:
            return await answer
        except Exception as error:
            if cancelled:
                raise CancelledError from error
            if isinstance(error, Stop):
                raise
            if late:
                raise _silent(url, f"did not answer within {self._limit:.0f} s.") from error
            raise _silent(url, f"cannot be reached: {_why(error)}") from error
        finally:
            if limit.active():
                limit.cancel()


def _why(error: Exception) -> str:
    if isinstance(error, internet_error.ConnectionRefusedError):
        return "nothing listens there."
    if isinstance(error, ResponseFailed):
        return "the connection broke."
    return printable(str(error) or type(error).__name__)


def _refused(url: str, status: int, answer: Any) -> Stop:
    text = answer.get("error") if isinstance(answer, dict) else None
    if not text:
        return _silent(url, f"answers with HTTP status {status}: is it a gateway?")
    said = printable(str(text), ERROR_TEXT_LIMIT)
    if status in {401, 403, 404}:
        return Refused(said)
    if 400 <= status < 500 and status != 429:  # noqa: PLR2004
        return Misused(said)
    return _silent(url, f"cannot do this now: {said}")


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _check_done(done: object) -> None:
    """Raise `Refused` where the original gateway refuses: with 200, and `false` or `null`."""
    if done is not True:
        raise Refused("The gateway has not done it: you may not, or there is no such image.")
