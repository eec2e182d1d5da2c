"""Children that the kernel keeps: no signal ends them."""

from __future__ import annotations

import signal
from typing import Any

from twisted.internet.error import ProcessTerminated
from twisted.python.failure import Failure


class StuckTransport:
    """A child whose process the kernel keeps; `signals` are the names of those that it got."""

    def __init__(self, pid: int) -> None:
        """Create a child with a process id."""
        self.pid = pid
        self.pipes: dict[int, Any] = {}
        self.signals: list[str] = []
        self.is_closed = False

    def signalProcess(self, name: str) -> None:
        """Record a signal."""
        self.signals.append(name)

    def loseConnection(self) -> None:
        """Record that the pipes are closed."""
        self.is_closed = True


class StuckReactor:
    """Starts children of `StuckTransport`; `protocols` are those of all children."""

    def __init__(self) -> None:
        """Start without children."""
        self.protocols: list[Any] = []

    def spawnProcess(self, protocol: Any, *_: Any, **__: Any) -> None:
        """Start a child."""
        self.protocols.append(protocol)
        protocol.makeConnection(StuckTransport(len(self.protocols)))

    def end(self, number: int) -> None:
        """Let a child end at last."""
        reason = Failure(ProcessTerminated(None, signal.SIGKILL))
        self.protocols[number].processExited(reason)
        self.protocols[number].processEnded(reason)
