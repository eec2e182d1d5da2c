"""One request to a gateway and its answer: what the client with a reactor and the other share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NoReturn, ParamSpec, Protocol, TypeVar
from urllib.parse import quote, urlsplit

from shiftergw.cli.gateway_errors import refusal
from shiftergw.cli.proxy import GatewayProxy

P = ParamSpec("P")
T = TypeVar("T")

CONNECT_LIMIT = 10.0
"""Seconds to connect to one address."""

ANSWER_BYTES = 256_000_000
"""Bytes of an answer: no list of images is as long."""

_URI = "%:/?#[]@!$&'()*+,;="
"""ASCII punctuation of a URI, besides what is always unreserved (RFC 3986, section 2)."""


class TlsUnproven(Exception):
    """The standard library cannot prove a server's identity; Twisted's client is to decide."""


class Exchange(Protocol):
    """Sends requests to gateways, each over a connection of its own."""

    async def ask(
        self,
        method: str,
        base: str,
        tail: str,
        *,
        credential: str,
        body: str | bytes,
        limit: float,
        head_limit: float | None = None,
    ) -> Any:
        """Return the JSON of the answer of the gateway at `base`, None if it is not JSON.

        `tail` is the path below `base`, with its query. A body of bytes is sent as it is, a text as
        JSON. Raises `NoGateway` if no answer is complete
        within `limit` seconds, or no head has arrived within `head_limit` (None: no such limit);
        `GatewayBusy` if the gateway says that it cannot do this now; `RequestRefused` or `Misuse`
        if it refuses.
        """
        ...

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of a function that blocks, or raise its exception."""
        ...

    def seconds(self) -> float:
        """Return the time of a clock that is never set."""
        ...


def headers_of(
    credential: str, proxy: GatewayProxy | None, body: str | bytes = ""
) -> dict[str, str]:
    """Return the headers of a request, besides those of HTTP itself."""
    kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
    headers = {"authentication": credential, "Content-Type": kind}
    if proxy is not None and proxy.authorization:
        headers["Proxy-Authorization"] = proxy.authorization
    return headers


def uri_of(base: str, tail: str) -> bytes:
    """Return the URI of `tail` below a gateway's base URL, in ASCII as HTTP has it (RFC 3987)."""
    parts = urlsplit(base)
    host = parts.netloc.encode("ascii" if parts.netloc.isascii() else "idna")
    path = base.partition("://")[2][len(parts.netloc) :] + tail
    return b"%b://%b%b" % (parts.scheme.encode(), host, quote(path, safe=_URI).encode())


def host_in(netloc_host: str) -> str:
    """Return the host of a URI as it is connected to.

    The zone of an IPv6 address is written `%25eth0` in a URL (RFC 6874), or as it is.
    """
    return netloc_host.strip("[]").replace("%25", "%")


def document_of(
    base: str, proxy: GatewayProxy | None, status: int, location: str, content: bytes
) -> Any:
    """Return the JSON in the body of an answer, None if there is none.

    Raises the error for a status that is not 200; `location` is the header of that name.
    """
    try:
        document = json.loads(content, parse_constant=_refuse_constant, parse_float=_finite_float)
    except (ValueError, RecursionError):
        document = None
    if status != HTTPStatus.OK:
        raise refusal(base, proxy, status, location, document)
    return document


def _refuse_constant(word: str) -> NoReturn:
    """Refuse `NaN` and `Infinity`, which Python reads and JSON does not have (RFC 8259, 6)."""
    raise ValueError(f"{word} is not a JSON number")


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("the number is too large")
    return number
