"""Listen at endpoints, and explain why that fails."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IProtocolFactory

from shiftergw.errors import ConfigurationError, printable

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

USER_PORTS = 1024
"""The first port that needs no privilege, unless the machine's `ip_unprivileged_port_start`
is lower."""

ERRORS = (ValueError, TypeError, LookupError, OverflowError, OSError)
"""What Twisted raises, besides `CannotListenError`, for an unusable endpoint."""


def endpoint_error(text: str, error: Exception, key: str = "Listen") -> ConfigurationError:
    """Return the error for the text of an endpoint, under `key`, that raised one of `ERRORS`."""
    if isinstance(error, OSError) and error.filename is not None:
        file = error.filename2 or error.filename
        name = file.decode(errors="replace") if isinstance(file, bytes) else str(file)
        return ConfigurationError(
            f"{key}: {text!r} cannot be used: {printable(name)}: {error.strerror}.",
            remedy="The gateway's user must be able to read the files that it names, and to make"
            " the socket's.",
        )
    return ConfigurationError(
        f"Listen: {text!r} is no place to listen: {printable(str(error))}.",
        remedy="Write a Twisted endpoint such as tcp:5000:interface=127.0.0.1.",
    )


class Listener(Service):
    """Listens at an endpoint from its start to its stop."""

    def __init__(
        self, text: str, factory: IProtocolFactory, reactor: Reactor, key: str = "Listen"
    ) -> None:
        """Parse the text of a Twisted endpoint; raise `ConfigurationError` if it is not one.

        `key` is that of the configuration, for errors.
        """
        self._text = text
        self._key = key
        self._factory = factory
        self._port: Any = None
        try:
            self._endpoint = serverFromString(reactor, text)
        except ERRORS as error:
            raise endpoint_error(text, error, key) from error

    def startService(self) -> Deferred[None]:
        """Start to listen; the result fails with `CannotListenError` or `ConfigurationError`."""
        super().startService()
        return Deferred.fromCoroutine(self._listen())

    async def _listen(self) -> None:
        try:
            self._port = await self._endpoint.listen(self._factory)
        except CannotListenError:
            raise
        except ERRORS as error:
            raise endpoint_error(self._text, error, self._key) from error

    def stopService(self) -> Deferred[None]:
        """Stop listening; the result fires when that is done."""
        super().stopService()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)


def remedy(error: CannotListenError, key: str = "Listen") -> str:
    """Return the remedy for the admin, who has set a `key` of the configuration."""
    number = getattr(error.socketError, "errno", None)
    if number == errno.EADDRINUSE:
        return f"End what listens there, or change {key}."
    if number == errno.EADDRNOTAVAIL:
        return f"This machine has no such address: change the interface in {key}."
    if number in {errno.EACCES, errno.EPERM}:
        if isinstance(error.port, int) and error.port < USER_PORTS:
            return (
                f"Ports below {USER_PORTS} are not for every user. Set {key} to another port; or"
                " have a proxy listen there, and pass on to the gateway; or give the gateway's unit"
                " AmbientCapabilities=CAP_NET_BIND_SERVICE, and the same in CapabilityBoundingSet=."
            )
        return f"Let the gateway's user listen there, or change {key}."
    return f"Change {key}."
