"""Requests to gateways by the HTTP client of the standard library, which loads quickly."""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Callable
from contextlib import closing, suppress
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    IncompleteRead,
    RemoteDisconnected,
)
from time import monotonic
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from shiftergw.cli import exchange
from shiftergw.cli.blocking import ThreadCall
from shiftergw.cli.connecting import connect
from shiftergw.cli.exchange import (
    CONNECT_LIMIT,
    TlsUnproven,
    document_of,
    headers_of,
    host_in,
    uri_of,
)
from shiftergw.cli.gateway_errors import (
    CONNECTION_BROKE,
    NOT_HTTP,
    NOTHING_LISTENS,
    UNKNOWN_HOST,
    answer_too_long,
    head_too_long,
    late,
    unreachable,
)
from shiftergw.cli.proxy import GatewayProxy, proxy_for
from shiftergw.errors import printable
from shiftergw.plumbing.head_limits import MAX_BYTES, MAX_LINE, MAX_LINES, HeadTooLong

if TYPE_CHECKING:
    from ssl import SSLContext

P = ParamSpec("P")
T = TypeVar("T")

_PIECE = 1 << 16
"""Bytes that are read from a body at once."""

_FIELDS = (b"connection:", b"content-encoding:", b"content-length:", b"location:",
           b"transfer-encoding:")  # fmt: skip
"""The header fields that count. The standard library refuses answers with more than 100 fields."""


class BlockingExchange:
    """An `Exchange` whose coroutines never suspend: they block their thread."""

    def __init__(self) -> None:
        """Connect to nothing yet."""
        self._tls: SSLContext | None = None

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
        """Return the answer of a gateway, as `Exchange` says.

        Raises `TlsUnproven` if the standard library does not trust the gateway's certificate.
        """
        proxy = proxy_for(base, os.environ)
        headers = headers_of(credential, proxy, body)
        request = _Request(method, uri_of(base, tail).decode("ascii"), headers, body, proxy)
        if request.is_https and self._tls is None:
            from shiftergw.plumbing.tls_context import blocking_context  # noqa: PLC0415 - seldom

            self._tls = blocking_context()
        request.tls = self._tls
        start = monotonic()

        def current_limit() -> float:
            return limit if request.has_head else min(limit, head_limit or limit)

        try:
            status, location, content = ThreadCall(request.answer).result(
                lambda: start + current_limit()
            )
        except TimeoutError as error:
            raise late(base, proxy, current_limit()) from error
        except _Unreachable as error:
            raise unreachable(base, proxy, str(error)) from error
        finally:
            request.abort()
        return document_of(base, proxy, status, location, content)

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of a function that blocks, as `Exchange` says."""
        return ThreadCall(lambda: function(*args, **kwargs)).result()

    def seconds(self) -> float:
        """Return the monotonic time of the machine."""
        return monotonic()


class _Unreachable(Exception):
    """A request has failed; the text says why."""


class _Request:
    """One request over one connection; `answer` blocks, and `abort` ends it from outside."""

    def __init__(
        self,
        method: str,
        uri: str,
        headers: dict[str, str],
        body: str | bytes,
        proxy: GatewayProxy | None,
    ) -> None:
        parts = urlsplit(uri)
        self.is_https = parts.scheme == "https"
        self.tls: SSLContext | None = None
        self.has_head = False
        """Whether the head of the answer has arrived."""
        self._method = method
        self._host = host_in(parts.hostname or "")
        self._port = parts.port or (443 if self.is_https else 80)
        self._proxy = proxy
        path = uri[len(f"{parts.scheme}://{parts.netloc}") :]
        self._target = path if proxy is None else uri
        self._headers = {
            "Host": parts.netloc.encode(),
            "Connection": b"close",
            "Accept-Encoding": b"gzip",
            # A line break in a value would begin another header.
            **{name: " ".join(value.splitlines()).encode() for name, value in headers.items()},
        }
        self._body = (body.encode() if isinstance(body, str) else body) or None
        self._socket: socket.socket | None = None
        self._is_aborted = False

    def answer(self) -> tuple[int, str, bytes]:
        """Return status, header `Location` and body of the answer; raise `_Unreachable`."""
        connection = HTTPConnection(self._host, self._port)
        connection.response_class = _Response
        try:
            with closing(connection):
                connection.sock = self._connect()
                connection.request(self._method, self._target, self._body, self._headers)
                with connection.getresponse() as response:
                    self.has_head = True
                    location = response.getheader("Location", "")
                    return response.status, location, self._body_of(response)
        except (HTTPException, OSError, HeadTooLong, zlib.error) as error:
            raise _Unreachable(_reason(error)) from error

    def _connect(self) -> socket.socket:
        """Return a socket that is connected to the gateway or the proxy, with TLS for https."""
        host, port = (
            (self._host, self._port)
            if self._proxy is None
            else (self._proxy.host, self._proxy.port)
        )
        self._socket = connect(host, port, CONNECT_LIMIT)
        if self._is_aborted:
            self.abort()
        if self.is_https and self.tls is not None:
            import ssl  # noqa: PLC0415 - seldom

            try:
                self._socket = self.tls.wrap_socket(
                    self._socket, server_hostname=self._host.removesuffix(".")
                )
            except (ssl.SSLError, ValueError) as error:
                raise TlsUnproven from error
        return self._socket

    def _body_of(self, response: HTTPResponse) -> bytes:
        """Return the body of a response; raise `_Unreachable` beyond `ANSWER_BYTES`."""
        decoder = None
        if response.getheader("Content-Encoding", "").strip().lower() == "gzip":
            decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
        pieces, size = [], 0
        while (piece := response.read(_PIECE)) and not self._is_aborted:
            if decoder is not None:
                piece = decoder.decompress(piece, exchange.ANSWER_BYTES + 1 - size)
            pieces.append(piece)
            size += len(piece)
            if size > exchange.ANSWER_BYTES:
                raise _Unreachable(answer_too_long(exchange.ANSWER_BYTES))
        if response.length:  # the standard library takes a body that breaks off for a whole one
            raise IncompleteRead(b"", response.length)
        return b"".join(pieces)

    def abort(self) -> None:
        """End the connection; whatever is waiting for it fails."""
        self._is_aborted = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class _Response(HTTPResponse):
    """A response whose head is bounded, and 1xx responses before it are skipped."""

    def begin(self) -> None:
        stream: Any = self.fp
        fields: Any = _HeadReader(stream)
        self.fp = fields
        super().begin()
        while self.status < 200:  # noqa: PLR2004 - 1xx
            self.headers: Any = None
            super().begin()
        self.fp = stream


class _HeadReader:
    """Reads the lines of a head, without the fields that do not count."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._bytes = 0
        self._lines = 0
        self._is_status_next = True

    def readline(self, _limit: int = -1) -> bytes:
        """Return the next line that counts; raise `HeadTooLong`."""
        while True:
            line: bytes = self._stream.readline(MAX_LINE + 1)
            self._bytes += len(line)
            self._lines += 1
            if self._bytes > MAX_BYTES or self._lines > MAX_LINES or len(line) > MAX_LINE:
                raise HeadTooLong
            is_end = line in {b"\r\n", b"\n", b""}
            if self._is_status_next or is_end or line.lower().startswith(_FIELDS):
                self._is_status_next = is_end
                return line

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def flush(self) -> None:
        """Do nothing: there is nothing to write."""


def _reason(error: Exception) -> str:
    """Return why a request has failed, in words for the user."""
    if isinstance(error, ConnectionRefusedError):
        return NOTHING_LISTENS
    if isinstance(error, socket.gaierror):
        return UNKNOWN_HOST
    if isinstance(error, HeadTooLong):
        return head_too_long(error)
    if isinstance(error, RemoteDisconnected | IncompleteRead | ConnectionError | zlib.error):
        return CONNECTION_BROKE
    if isinstance(error, HTTPException):
        return NOT_HTTP
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(text or type(error).__name__)
