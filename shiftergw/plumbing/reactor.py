"""The type of the reactor, for parts that need more of it than its clock.

Twisted declares the type of `twisted.internet.reactor` for type checkers only. It lacks what some
reactors may lack: threads, name resolvers, UNIX sockets. Every reactor that runs this program has
all three.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from twisted.internet import _IReactorCommon
    from twisted.internet.interfaces import (
        IReactorPluggableNameResolver,
        IReactorThreads,
        IReactorUNIX,
    )

    Reactor = _IReactorCommon


def with_threads(reactor: Reactor) -> IReactorThreads:
    """Return the reactor, for calls from and into threads."""
    return cast("IReactorThreads", reactor)


def with_name_resolver(reactor: Reactor) -> IReactorPluggableNameResolver:
    """Return the reactor, for look-ups of host names."""
    return cast("IReactorPluggableNameResolver", reactor)


def with_unix_sockets(reactor: Reactor) -> IReactorUNIX:
    """Return the reactor, for listening at UNIX sockets."""
    return cast("IReactorUNIX", reactor)
