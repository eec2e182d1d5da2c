"""The reactor of this test run, with the types of all that tests use of it.

Twisted declares less of it than every POSIX reactor has, see `shiftergw.plumbing.reactor`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from twisted.internet import reactor as installed_reactor

if TYPE_CHECKING:
    from twisted.internet import _IReactorCommon
    from twisted.internet.interfaces import (
        IReactorPluggableNameResolver,
        IReactorThreads,
        IReactorUNIX,
    )
    from twisted.internet.protocol import Factory
    from twisted.internet.ssl import CertificateOptions
    from twisted.internet.tcp import Port

    class PosixReactor(
        _IReactorCommon, IReactorPluggableNameResolver, IReactorThreads, IReactorUNIX
    ):
        """What every POSIX reactor provides."""

        def listenTCP(
            port: int,  # noqa: N805 - methods of interfaces have no self
            factory: Factory[Any],
            backlog: int = 50,
            interface: str = "",
        ) -> Port:
            """Return the port, whose factory need not be a `ServerFactory`."""

        def listenSSL(
            port: int,  # noqa: N805 - as above
            factory: Factory[Any],
            options: CertificateOptions,
            backlog: int = 50,
            interface: str = "",
        ) -> Port:
            """Return the port, which speaks TLS."""


reactor = cast("PosixReactor", installed_reactor)
