"""Filter the log, and write every event as one printable line.

The options of `twistd` choose where the log goes; this module puts its filters before the observers
of `twistd`. A worker writes plain lines to its standard error, and the gateway relays them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogFilterPredicate,
    ILogObserver,
    LogBeginner,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    LogPublisher,
    PredicateResult,
    formatEvent,
    globalLogBeginner,
    globalLogPublisher,
)
from zope.interface import implementer

from shiftergw.errors import printable

LINE_LIMIT = 8000
"""Characters of one event, or of one line of a traceback."""


_ADDRESS = re.compile(r"(?: object)? at 0x[0-9a-f]+(?=>)")
"""The memory address in the default text of a Python object: it helps no reader."""


def line_of(event: LogEvent) -> str:
    """Return an event as one printable line; the lines of a traceback are joined by ` | `."""
    lines = [_ADDRESS.sub("", formatEvent(event))]
    failure = event.get("log_failure")
    if failure is not None:
        lines += failure.getTraceback().splitlines()
    return " | ".join(printable(line.strip(), LINE_LIMIT) for line in lines)


@implementer(ILogObserver)
class OneLine:
    """Formats events as one printable line before it passes them on."""

    def __init__(self, sink: ILogObserver) -> None:
        """Pass events on to `sink`."""
        self._sink = sink

    def __call__(self, event: LogEvent) -> None:
        names = ("log_time", "log_level", "log_namespace", "log_system")
        plain = {name: event[name] for name in names if name in event}
        self._sink({**plain, "log_format": "{line}", "line": line_of(event)})


CHATTY = (
    "twisted.conch",  # every packet of SFTP
    "twisted.web",  # every connection to a registry
    "shiftergw.web.site",  # Twisted's messages about connections, in the name of our classes
    "log_legacy",  # listening ports, which the service itself reports
)
"""Namespaces whose events below a warning do not help operators."""

_CHATTY_WORKER = ("twisted.internet.base",)
"""The same for a worker: the gateway logs its start and its end."""


_FACTORIES = ("Starting factory {factory!r}", "Stopping factory {factory!r}")
"""Twisted's messages about each connection and listener, in the namespace of our classes."""


@implementer(ILogFilterPredicate)
def _not_of_factories(event: LogEvent) -> Any:
    """Drop Twisted's messages about its factories."""
    return PredicateResult.no if event.get("log_format") in _FACTORIES else PredicateResult.maybe


def filter_events(sink: ILogObserver, level: str, chatty: Sequence[str] = CHATTY) -> ILogObserver:
    """Return an observer that passes events of `level` and above to `sink`, one line each.

    From the `chatty` namespaces, only warnings and errors pass.
    """
    lowest = LogLevel.levelWithName(level)
    levels = LogLevelFilterPredicate(defaultLogLevel=lowest)
    for namespace in chatty:
        levels.setLogLevelForNamespace(namespace, max(lowest, LogLevel.warn))
    return FilteringLogObserver(OneLine(sink), [_not_of_factories, levels])


def start_logging(level: str, publisher: LogPublisher = globalLogPublisher) -> None:
    """Put the filter before the observers that `twistd` or `twist` has set up."""
    # The launcher does not publish its observers; the publisher's private list has them.
    for observer in list(publisher._observers):  # noqa: SLF001
        publisher.removeObserver(observer)
        publisher.addObserver(filter_events(observer, level))


def worker_observer(file: TextIO, level: str) -> ILogObserver:
    """Return an observer that writes `level namespace: text`; the gateway's log adds the time."""

    def write(event: LogEvent) -> str:
        return f"{event['log_level'].name} {event['log_namespace']}: {formatEvent(event)}\n"

    return filter_events(FileLogObserver(file, write), level, (*CHATTY, *_CHATTY_WORKER))


def start_worker_logging(level: str, beginner: LogBeginner = globalLogBeginner) -> None:
    """Log to standard error: standard output carries the worker's answers."""
    beginner.beginLoggingTo([worker_observer(sys.stderr, level)], redirectStandardIO=False)
