"""Logging: what is left out, and that every event is one line whatever it quotes.

`twistd` chooses where the log goes (its options say); what stands before its observers is ours. A
worker writes plain lines to its standard error, and the gateway relays them.
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
"""Characters of one event, of one line of a traceback."""


_ADDRESS = re.compile(r"(?: object)? at 0x[0-9a-f]+(?=>)")
"""The address in the default text of a Python object: it tells nobody anything."""


def line_of(event: LogEvent) -> str:
    """Return an event as one printable line; a traceback follows its message, joined by ` | `."""
    lines = [_ADDRESS.sub("", formatEvent(event))]
    failure = event.get("log_failure")
    if failure is not None:
        lines += failure.getTraceback().splitlines()
    return " | ".join(printable(line.strip(), LINE_LIMIT) for line in lines)


@implementer(ILogObserver)
class OneLine:
    """Passes events on with their text made printable and nothing left to format."""

    def __init__(self, sink: ILogObserver) -> None:
        """Pass on to `sink`."""
        self._sink = sink

    def __call__(self, event: LogEvent) -> None:
        kept = ("log_time", "log_level", "log_namespace", "log_system")
        plain = {name: event[name] for name in kept if name in event}
        self._sink({**plain, "log_format": "{line}", "line": line_of(event)})


CHATTY = (
    "twisted.conch",  # every packet of SFTP
    "twisted.web",  # every connection to a registry
    "shiftergw.web.site",  # what Twisted's server says of connections, by classes of ours
    "log_legacy",  # what listens, and what does not any more: the service itself says that
)
"""Where events below a warning help no operator, whatever their level is."""

_CHATTY_WORKER = ("twisted.internet.base",)
"""The same for a worker: of its start and its end the gateway tells."""


_FACTORIES = ("Starting factory {factory!r}", "Stopping factory {factory!r}")
"""What Twisted says of each connection and listener, in the name of whoever made the factory."""


@implementer(ILogFilterPredicate)
def _not_of_factories(event: LogEvent) -> Any:
    """Drop what Twisted says of its factories."""
    return PredicateResult.no if event.get("log_format") in _FACTORIES else PredicateResult.maybe


def filtered(sink: ILogObserver, level: str, chatty: Sequence[str] = CHATTY) -> ILogObserver:
    """Return an observer that gives `sink` events of `level` and above, one line each.

    Of the namespaces that are `chatty` only warnings and worse get through.
    """
    lowest = LogLevel.levelWithName(level)
    levels = LogLevelFilterPredicate(defaultLogLevel=lowest)
    for namespace in chatty:
        levels.setLogLevelForNamespace(namespace, max(lowest, LogLevel.warn))
    return FilteringLogObserver(OneLine(sink), [_not_of_factories, levels])


def start_logging(level: str, publisher: LogPublisher = globalLogPublisher) -> None:
    """Put our filter before the observers that `twistd` or `twist` has set up."""
    # The launcher keeps its observers to itself: the publisher's own list is the only way to them.
    for observer in list(publisher._observers):  # noqa: SLF001
        publisher.removeObserver(observer)
        publisher.addObserver(filtered(observer, level))


def worker_observer(file: TextIO, level: str) -> ILogObserver:
    """Return an observer that writes `level namespace: text`; the gateway's log adds the time."""

    def write(event: LogEvent) -> str:
        return f"{event['log_level'].name} {event['log_namespace']}: {formatEvent(event)}\n"

    return filtered(FileLogObserver(file, write), level, (*CHATTY, *_CHATTY_WORKER))


def start_worker_logging(level: str, beginner: LogBeginner = globalLogBeginner) -> None:
    """Log to standard error; standard output stays what the worker answers on."""
    beginner.beginLoggingTo([worker_observer(sys.stderr, level)], redirectStandardIO=False)
