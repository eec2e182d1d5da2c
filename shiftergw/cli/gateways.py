"""Requests to the gateways of one system, of which any may be away.

As in `shifterimg`, the gateways are tried in random order until one answers with success, and that
gateway is asked first from then on. Each request carries a credential of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from shiftergw.cli import answers
from shiftergw.cli.credentials import Credentials, warn_user
from shiftergw.cli.exchange import Exchange
from shiftergw.cli.exits import GatewayBusy, NoGateway, Stop
from shiftergw.cli.gateway_errors import host_of, silent
from shiftergw.cli.settings import Settings

ANSWER_LIMIT = 60.0
"""Seconds for a whole request and its answer."""

HEAD_LIMIT = 10.0
"""Seconds for the head of an answer while another gateway can still be tried."""

POLL_LIMIT = 10.0
"""Seconds for the answer to a poll while another gateway can still be tried."""

BUSY_LIMIT = 10.0
"""Seconds for which a gateway may answer that it is busy before others are asked."""

T = TypeVar("T")


def shuffle(urls: Sequence[str]) -> Sequence[str]:
    """Return the gateways in random order."""
    return sorted(urls, key=lambda _: os.urandom(8))  # the module `random` takes long to load


class Gateways:
    """The gateways of one system, for one user."""

    def __init__(
        self,
        exchange: Exchange,
        settings: Settings,
        warn: Callable[[str], None] = warn_user,
        urls: Sequence[str] = (),
    ) -> None:
        """Send requests by `exchange`, and none yet.

        `urls` are the gateways in the order in which to try them; without them the order is
        random. Raises `Stop` if the settings name no system or no gateway.
        """
        self._exchange = exchange
        self._system = settings.single_system()
        self._credentials = Credentials(exchange, settings, warn)
        self._limit = settings.answer_limit() or ANSWER_LIMIT
        self._urls = urls or shuffle(settings.gateway_urls())
        self._busy_since: float | None = None

    async def ask_first(
        self,
        method: str,
        path: Sequence[str],
        parse: Callable[[Any], T],
        *,
        body: str = "",
        query: str = "",
        needs_all: bool = False,
    ) -> T:
        """Return the first successful answer of a gateway, parsed by `parse`.

        If no gateway succeeds, raises the first refusal; if all are silent, one `NoGateway` with a
        line for each. With `needs_all` refusals count only if no gateway is silent, since only the
        silent one may have what the request is about.
        """
        errors: list[Stop] = []
        tail = self._tail(path, query)
        last = self._urls[-1]
        for base in self._urls:
            # Gateways may share a munge daemon, which accepts each credential only once.
            credential = await self._credentials.fresh()
            head_limit = None if base == last else HEAD_LIMIT
            try:
                return await self._ask_at(
                    base, method, tail, parse, credential, body=body, head_limit=head_limit
                )
            except Stop as error:
                errors.append(error)
        silences = [error for error in errors if isinstance(error, NoGateway)]
        refusals = [error for error in errors if not isinstance(error, NoGateway)]
        if refusals and not (needs_all and silences):
            raise refusals[0]
        raise NoGateway("\n".join(dict.fromkeys(error.message for error in silences)))

    async def ask_each(
        self, method: str, path: Sequence[str], parse: Callable[[Any], T]
    ) -> tuple[list[T], list[Stop]]:
        """Return the answers of all gateways, and the errors of those that give none."""
        values: list[T] = []
        errors: list[Stop] = []
        tail, urls = self._tail(path), self._urls
        head_limit = None if len(urls) == 1 else HEAD_LIMIT
        for base in urls:
            credential = await self._credentials.fresh()
            try:
                value = await self._ask_at(
                    base, method, tail, parse, credential, head_limit=head_limit
                )
            except Stop as error:
                errors.append(error)
            else:
                values.append(value)
        return values, errors

    async def ask_last(
        self,
        method: str,
        path: Sequence[str],
        parse: Callable[[Any], T],
        *,
        body: str | bytes = "",
        query: str = "",
        limit: float | None = None,
    ) -> T:
        """Return the answer of the gateway that answered last, and of no other.

        `limit` is in seconds; None stands for the limit of all requests. Raises `Stop`.
        """
        tail, credential = self._tail(path, query), await self._credentials.fresh()
        return await self._ask_at(
            self._urls[0], method, tail, parse, credential, body=body, limit=limit
        )

    async def ask_again(
        self,
        method: str,
        path: Sequence[str],
        parse: Callable[[Any], T],
        notify: Callable[[str], None],
        *,
        body: str = "",
    ) -> T:
        """Return an answer about work that has begun, first from the gateway that answered last.

        If that gateway is silent, the next is asked at once, and `notify` gets a line about it. A
        gateway that answers that it is busy is alive: the next is asked only after `BUSY_LIMIT`
        seconds of such answers. Raises the `NoGateway` of the first gateway if none answers, and
        the first gateway's refusal; a refusal by another gateway counts as silence, since that
        gateway may not serve the system.
        """
        tail = self._tail(path)
        failure: NoGateway | None = None
        last = self._urls[-1]
        for base in self._urls:
            credential = await self._credentials.fresh()
            limit = self._limit if base == last else min(self._limit, POLL_LIMIT)
            try:
                value = await self._ask_at(
                    base, method, tail, parse, credential, body=body, limit=limit
                )
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
                return value
        assert failure is not None  # there is at least one gateway
        raise failure

    def _may_recover(self, error: NoGateway) -> bool:
        """Return whether a gateway is alive, and has been busy for less than `BUSY_LIMIT` s."""
        if not isinstance(error, GatewayBusy):
            return False
        now = self._exchange.seconds()
        if self._busy_since is None:
            self._busy_since = now
        return now < self._busy_since + BUSY_LIMIT

    def prefer_by(self, text: str) -> None:
        """Order the gateways by a text: the same gateways and text have the same order.

        The parts of an interrupted upload are at one gateway, which is to be asked again.
        """
        from hashlib import sha256  # noqa: PLC0415 - loads OpenSSL, which no other request needs

        self._urls = sorted(self._urls, key=lambda url: sha256(f"{url} {text}".encode()).digest())

    async def _ask_at(
        self,
        base: str,
        method: str,
        tail: str,
        parse: Callable[[Any], T],
        credential: str,
        *,
        body: str | bytes = "",
        limit: float | None = None,
        head_limit: float | None = None,
    ) -> T:
        """Return the answer of the gateway at `base`; `limit` None is that of all requests."""
        answer = await self._exchange.ask(
            method,
            base,
            tail,
            credential=credential,
            body=body,
            limit=limit or self._limit,
            head_limit=head_limit,
        )
        return self._accept(base, parse, answer)

    def _tail(self, path: Sequence[str], query: str = "") -> str:
        route, *image = path
        segments = ["api", route, self._system, *image]
        return "".join(f"/{quote(segment, safe='')}" for segment in segments) + f"/{query}"

    def _accept(self, base: str, parse: Callable[[Any], T], answer: Any) -> T:
        """Parse the answer of a gateway, and ask this gateway first from now on.

        The order is rotated, so that pulls for several systems stay together at one gateway.
        Raises `NoGateway` for an answer that cannot be parsed.
        """
        try:
            value = parse(answer)
        except answers.InvalidAnswer:
            problem = "sent an answer that is not understood: is it a gateway?"
            raise silent(base, problem) from None
        index = self._urls.index(base)
        self._urls = [*self._urls[index:], *self._urls[:index]]
        return value
