"""The gateway's HTTP interface, seen from the command line.

As the existing client does it: the gateways are tried in random order until one answers with
success, and the one that did is kept.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from treq.client import HTTPClient
from twisted.internet import error as internet_error
from twisted.internet.defer import CancelledError, Deferred
from twisted.web.client import Agent, HTTPConnectionPool, ResponseFailed
from twisted.web.http_headers import Headers

from shiftergw.cli.exits import Misused, NoGateway, Refused, Stop
from shiftergw.cli.settings import Settings
from shiftergw.errors import printable

CONNECT_LIMIT = 10.0
ANSWER_LIMIT = 60.0
"""Seconds for a whole request and its answer."""

ERROR_TEXT_LIMIT = 1000
_OK = 200


def _silent(url: str, why: str) -> NoGateway:
    return NoGateway(f"The gateway {printable(urlsplit(url).netloc)} {why}")


class Remote:
    """The gateways of one system, for one user."""

    def __init__(self, reactor: Any, settings: Settings) -> None:
        """Ask nothing yet; raise `Stop` if something needed is not known."""
        self._reactor = reactor
        self._system = settings.found_system()
        self._credential = settings.found_credential()
        found = settings.found_gateways()
        self._urls: Sequence[str] = random.sample(found, len(found))
        pool = HTTPConnectionPool(reactor, persistent=False)
        self._http = HTTPClient(Agent(reactor, connectTimeout=CONNECT_LIMIT, pool=pool))

    async def images(self) -> list[dict[str, Any]]:
        """Return the records of the system's images."""
        return _rows(await self._ask("GET", "list"))

    async def queue(self) -> list[dict[str, Any]]:
        """Return what waits, works or has failed."""
        return _rows(await self._ask("GET", "queue"))

    async def lookup(self, itype: str, image: str) -> dict[str, Any]:
        """Return the record of a READY image."""
        return await self._ask("GET", "lookup", itype, image)

    async def pull(self, itype: str, image: str, acl: Mapping[str, str]) -> dict[str, Any]:
        """Ask for an image; return how far it is."""
        return await self._ask("POST", "pull", itype, image, body=json.dumps(acl) if acl else "")

    async def _ask(self, method: str, *path: str, body: str = "") -> dict[str, Any]:
        route, *image = path
        segments = ["api", route, self._system, *image]
        tail = "".join(f"/{quote(segment, safe='')}" for segment in segments)
        refusals: list[Stop] = []
        for url in self._urls:
            asking = Deferred.fromCoroutine(self._one(method, url, f"{tail}/", body))
            try:
                answer = await self._limited(url, asking)
            except Stop as refusal:
                refusals.append(refusal)
                continue
            self._urls = [url]
            return answer
        # What a gateway said is worth more than that another one was silent.
        raise min(refusals, key=lambda refusal: isinstance(refusal, NoGateway))

    async def _one(self, method: str, url: str, tail: str, body: str) -> dict[str, Any]:
        response = await self._http.request(
            method,
            url + tail,
            headers=Headers(
                {"authentication": [self._credential], "Content-Type": ["application/json"]}
            ),
            data=body.encode() if method == "POST" else None,
            allow_redirects=False,
        )
        content = await response.content()
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if response.code != _OK:
            raise _refused(url, response.code, answer)
        if not isinstance(answer, dict):
            raise _silent(url, "sent an answer that is not its own: is it a gateway?")
        return answer

    async def _limited(self, url: str, asking: Deferred[dict[str, Any]]) -> dict[str, Any]:
        """Return what `asking` returns; turn what treq raises into `NoGateway`."""
        late = False

        def expire() -> None:
            nonlocal late
            late = True
            asking.cancel()

        limit = self._reactor.callLater(ANSWER_LIMIT, expire)
        try:
            return await asking
        except Stop:
            raise
        except Exception as error:
            if late:
                raise _silent(url, f"did not answer within {ANSWER_LIMIT:.0f} s.") from error
            if _is_cancellation(error):
                raise CancelledError from error
            raise _silent(url, f"cannot be reached: {_why(error)}") from error
        finally:
            if limit.active():
                limit.cancel()


def _is_cancellation(error: Exception) -> bool:
    """Say whether a request ended because it was cancelled: the Agent wraps that."""
    if isinstance(error, ResponseFailed):
        return any(reason.check(CancelledError) for reason in error.reasons)
    return isinstance(error, CancelledError)


def _why(error: Exception) -> str:
    if isinstance(error, internet_error.ConnectionRefusedError):
        return "nothing listens there."
    if isinstance(error, ResponseFailed):
        return "the connection broke."
    return printable(str(error) or type(error).__name__)


def _refused(url: str, status: int, answer: Any) -> Stop:
    text = answer.get("error") if isinstance(answer, dict) else None
    said = printable(str(text or f"HTTP status {status}"), ERROR_TEXT_LIMIT)
    if status in {401, 403, 404}:
        return Refused(said)
    if 400 <= status < 500 and status != 429:  # noqa: PLR2004
        return Misused(said)
    return _silent(url, f"cannot do this now: {said}")


def _rows(answer: dict[str, Any]) -> list[dict[str, Any]]:
    rows = answer.get("list", [])
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
