"""The gateway's HTTP interface, seen from the command line.

As the existing client does it: the gateways are tried in random order until one answers with
success, and the one that did is asked first from then on. Each request carries a credential of its
own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from shiftergw.cli import answers
from shiftergw.cli.credentials import Credentials, warned
from shiftergw.cli.exchange import Exchange
from shiftergw.cli.exits import Busy, NoGateway, Refused, Stop
from shiftergw.cli.gateway_errors import host_of, silent
from shiftergw.cli.settings import Settings

ANSWER_LIMIT = 60.0
"""Seconds for a whole request and its answer."""

HEAD_LIMIT = 10.0
"""Seconds for the head of an answer while another gateway is left to ask."""

POLL_LIMIT = 10.0
"""Seconds for the answer to a poll while another gateway is left to ask."""

BUSY_LIMIT = 10.0
"""Seconds for which a gateway may say that it cannot do it now before others are asked."""

T = TypeVar("T")


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
        self._exchange = Exchange(reactor)
        self._busy_since: float | None = None

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

    async def poll(
        self, itype: str, image: str, acl: Mapping[str, str], notify: Callable[[str], None]
    ) -> dict[str, Any]:
        """Ask again for an image whose pull has begun, first the gateway that answered last.

        If that one is silent the next is asked at once, and `notify` gets a line about it. A
        gateway that says that it cannot do it now is alive: the others are asked only after
        `BUSY_LIMIT` seconds of it. Raises the `NoGateway` of the first one if none answers, and
        its refusal; a refusal by another counts as silence, for it may not have the system.
        """
        body = json.dumps(acl) if acl else ""
        tail = self._tail(["pull", itype, image])
        failure: NoGateway | None = None
        last = self._urls[-1]
        for base in self._urls:
            credential = await self._credentials.fresh()
            limit = self._limit if base == last else min(self._limit, POLL_LIMIT)
            try:
                answer = await self._exchange.ask(
                    "POST", base, tail, credential=credential, body=body, limit=limit
                )
                record = self._understood(base, answers.pulled, answer)
            except NoGateway as error:
                if failure is None and self._may_recover(error):
                    raise
                failure = failure or error
            except Stop:
                if failure is None:
                    raise
            else:
                self._busy_since = None
                if failure is not None:
                    notify(f"{failure.message} Going on with the gateway {host_of(base)}.")
                return record
        assert failure is not None  # there is at least one gateway
        raise failure

    def _may_recover(self, error: NoGateway) -> bool:
        """Return whether a gateway is alive, and busy for less than `BUSY_LIMIT` seconds."""
        if not isinstance(error, Busy):
            return False
        now = self._reactor.seconds()
        if self._busy_since is None:
            self._busy_since = now
        return bool(now < self._busy_since + BUSY_LIMIT)

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
        """Return what `read` makes of the first answer of success that it understands.

        If there is none, raises what a gateway has refused with; if all are silent, one error with
        a line for each.
        """
        refusals: list[Stop] = []
        tail = self._tail(path, query)
        last = self._urls[-1]
        for base in self._urls:
            # Gateways may share a munge daemon, to which each credential counts once.
            credential = await self._credentials.fresh()
            try:
                answer = await self._exchange.ask(
                    method,
                    base,
                    tail,
                    credential=credential,
                    body=body,
                    limit=self._limit,
                    head_limit=None if base == last else HEAD_LIMIT,
                )
                return self._understood(base, read, answer)
            except Stop as refusal:
                refusals.append(refusal)
        answered = [error for error in refusals if not isinstance(error, NoGateway)]
        if answered:
            raise answered[0]
        raise NoGateway("\n".join(dict.fromkeys(error.message for error in refusals)))

    def _tail(self, path: Sequence[str], query: str = "") -> str:
        route, *image = path
        segments = ["api", route, self._system, *image]
        return "".join(f"/{quote(segment, safe='')}" for segment in segments) + f"/{query}"

    def _understood(self, base: str, read: Callable[[Any], T], answer: Any) -> T:
        """Return what `read` makes of an answer, and ask this gateway first from now on.

        The order is turned, not sorted: pulls for several systems stay together at one gateway.
        """
        try:
            value = read(answer)
        except answers.NotUnderstood:
            why = "sent an answer that is not understood: is it a gateway?"
            raise silent(base, why) from None
        index = self._urls.index(base)
        self._urls = [*self._urls[index:], *self._urls[:index]]
        return value


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _check_done(done: object) -> None:
    """Raise `Refused` where the original gateway refuses: with 200, and `false` or `null`."""
    if done is not True:
        raise Refused("The gateway has not done it: you may not, or there is no such image.")
