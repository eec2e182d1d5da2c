"""Errors of the command line for gateways that cannot be reached, or whose answer is of no use.

Each message names the server at fault: the gateway, a proxy of the environment, or a server in
front of the gateway.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from shiftergw.cli.exits import (
    GatewayBusy,
    InvalidRequest,
    Misuse,
    NoGateway,
    RequestRefused,
    Stop,
    UnknownName,
    WrongOffset,
)
from shiftergw.cli.proxy import GatewayProxy
from shiftergw.errors import amount, printable
from shiftergw.model.names import is_count
from shiftergw.plumbing.head_limits import HeadTooLong

ERROR_TEXT_LIMIT = 1000

_QUESTION = "is it a gateway?"

CONNECTION_BROKE = "the connection broke."
NOTHING_LISTENS = "nothing listens there."
NOT_HTTP = f"what it sent is not HTTP. {_QUESTION.capitalize()} Or does it want https://?"
UNKNOWN_HOST = "the name of the host is not known here."

_FROM_THE_FRONT = {
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
"""The statuses of a server in front of a gateway while the gateway is away."""


def answer_too_long(limit: int) -> str:
    """Return the reason of a request whose answer is longer than `limit` bytes."""
    return f"its answer is longer than {amount(limit)}: {_QUESTION}"


def head_too_long(error: HeadTooLong) -> str:
    """Return the reason of a request whose answer has too long a head."""
    return f"it sent {error}: {_QUESTION}"


def silent(base: str, why: str) -> NoGateway:
    """Return the error for a server that does not answer as a gateway does."""
    return NoGateway(f"The gateway {host_of(base)} {why}")


def late(base: str, proxy: GatewayProxy | None, limit: float) -> NoGateway:
    """Return the error for an answer that does not come within `limit` seconds."""
    return silent(base, f"did not answer within {limit:.0f} s{_through(proxy)}.")


def unreachable(base: str, proxy: GatewayProxy | None, reason: str) -> NoGateway:
    """Return the error for a request that has failed for a reason."""
    return silent(base, f"cannot be reached{_through(proxy)}: {reason}")


def refusal(base: str, proxy: GatewayProxy | None, status: int, location: str, answer: Any) -> Stop:
    """Return the error for an HTTP status that is not 200.

    `location` is the header `Location` of the answer, and `answer` the JSON in its body.
    """
    text = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(text, str) or not text:
        return _of_another_server(base, proxy, status, location)
    message = printable(text, ERROR_TEXT_LIMIT)
    offset = answer.get("offset")
    if status == HTTPStatus.CONFLICT and is_count(offset):
        return WrongOffset(message, offset)
    if status in {401, 403, 404}:
        return (UnknownName if status == HTTPStatus.NOT_FOUND else RequestRefused)(message)
    if status == HTTPStatus.BAD_REQUEST:
        return InvalidRequest(message)
    if 400 <= status < 500 and status != HTTPStatus.TOO_MANY_REQUESTS:  # noqa: PLR2004 - its range
        return Misuse(message)
    return GatewayBusy(f"The gateway {host_of(base)} cannot do this now: {message}")


def host_of(base: str) -> str:
    """Return host and port of a gateway's URL, for a message."""
    return printable(urlsplit(base).netloc.rpartition("@")[2])


def _of_another_server(
    base: str, proxy: GatewayProxy | None, status: int, location: str
) -> NoGateway:
    """Return the error for a status whose answer is not a gateway's."""
    answers = f"answers with HTTP status {status}"
    if proxy is not None:
        return NoGateway(
            f"The proxy {_place(proxy)} (http_proxy) {answers} for the gateway {host_of(base)}."
            " A gateway of your own network needs no proxy: name its host in no_proxy."
        )
    if location:
        place = printable(location, 200)
        return silent(base, f"{answers} and names {place}: is that the gateway's address?")
    if status in _FROM_THE_FRONT:
        return silent(
            base,
            f"{answers}: a server in front of it cannot reach it. Try again in a moment; if that"
            " does not help, tell the gateway's admins.",
        )
    return silent(base, f"{answers}: {_QUESTION}")


def _through(proxy: GatewayProxy | None) -> str:
    return "" if proxy is None else f" through the proxy {_place(proxy)} (http_proxy)"


def _place(proxy: GatewayProxy) -> str:
    return printable(f"{proxy.host}:{proxy.port}")
