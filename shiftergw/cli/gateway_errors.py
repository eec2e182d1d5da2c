"""Errors of the command line for gateways that cannot be reached, or whose answer is of no use.

Each message names the server at fault: the gateway, a proxy of the environment, or a server in
front of the gateway.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from twisted.internet import error as internet_error
from twisted.web._newclient import ParseError
from twisted.web.client import ResponseFailed

from shiftergw.cli.exits import Busy, Misused, NoGateway, Refused, Stop
from shiftergw.cli.proxy import Proxy
from shiftergw.errors import amount, printable
from shiftergw.plumbing.head_limits import HeadTooLong
from shiftergw.plumbing.tls import CertificateRefused

ERROR_TEXT_LIMIT = 1000

_IS_IT = "is it a gateway?"

_FROM_THE_FRONT = {
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
"""What a server in front of a gateway answers while the gateway is away."""


class AnswerTooLong(Exception):
    """An answer is longer than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        """Say what the limit is."""
        super().__init__(f"its answer is longer than {amount(limit)}: {_IS_IT}")


def silent(base: str, why: str) -> NoGateway:
    """Return the error for a gateway that gives no answer of a gateway."""
    return NoGateway(f"The gateway {host_of(base)} {why}")


def late(base: str, proxy: Proxy | None, limit: float) -> NoGateway:
    """Return the error for an answer that does not come within `limit` seconds."""
    return silent(base, f"did not answer within {limit:.0f} s{_through(proxy)}.")


def unreachable(base: str, proxy: Proxy | None, error: Exception) -> NoGateway:
    """Return the error for a request that has failed with `error`."""
    return silent(base, f"cannot be reached{_through(proxy)}: {_reason(error)}")


def refused(base: str, proxy: Proxy | None, status: int, location: str, answer: Any) -> Stop:
    """Return the error for an HTTP status that is not 200.

    `location` is the field `Location` of the answer, and `answer` the JSON in it.
    """
    text = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(text, str) or not text:
        return _of_another_server(base, proxy, status, location)
    message = printable(text, ERROR_TEXT_LIMIT)
    if status in {401, 403, 404}:
        return Refused(message)
    if 400 <= status < 500 and status != HTTPStatus.TOO_MANY_REQUESTS:  # noqa: PLR2004 - its range
        return Misused(message)
    return Busy(f"The gateway {host_of(base)} cannot do this now: {message}")


def host_of(base: str) -> str:
    """Return host and port of a gateway's URL, for a message."""
    return printable(urlsplit(base).netloc.rpartition("@")[2])


def _of_another_server(base: str, proxy: Proxy | None, status: int, location: str) -> NoGateway:
    """Return the error for a status without the words of a gateway."""
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
    return silent(base, f"{answers}: {_IS_IT}")


def _through(proxy: Proxy | None) -> str:
    return "" if proxy is None else f" through the proxy {_place(proxy)} (http_proxy)"


def _place(proxy: Proxy) -> str:
    return printable(f"{proxy.host}:{proxy.port}")


def _reason(error: Exception) -> str:
    if isinstance(error, ResponseFailed):
        return _reason_of_broken(error)
    if isinstance(error, internet_error.ConnectionRefusedError):
        return "nothing listens there."
    if isinstance(error, internet_error.DNSLookupError):
        return "the name of the host is not known here."
    if isinstance(error, HeadTooLong):
        return f"it sent {error}: {_IS_IT}"
    return printable(str(error) or type(error).__name__)


def _reason_of_broken(error: ResponseFailed) -> str:
    """Return why the connection of a request has ended early."""
    for reason in error.reasons:
        if isinstance(reason.value, CertificateRefused):
            return f"{reason.value}. {reason.value.remedy}"
        if isinstance(reason.value, ParseError):
            return f"what it sent is not HTTP. {_IS_IT.capitalize()} Or does it want https://?"
    return "the connection broke."
