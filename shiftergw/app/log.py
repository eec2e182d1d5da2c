"""Filter the log, and write every event as one line: text, or a JSON object (`LogFormat`).

The options of `twistd` choose where the log goes; this module puts its filters before the observers
of `twistd`. A worker writes lines to its standard error, and the gateway relays them.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TextIO

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogFilterPredicate,
    ILogObserver,
    LogBeginner,
    LogEvent,
    Logger,
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
from shiftergw.plumbing.log_lines import write_line

_log = Logger()

LINE_LIMIT = 8000
"""Characters of one event, or of one line of a traceback."""


_ADDRESS = re.compile(r"(?: object)? at 0x[0-9a-f]+(?=>)")
"""The memory address in the default text of a Python object: it helps no reader."""


@dataclass(slots=True)
class LogOptions:
    """How a process logs; `is_debug` is switched by a signal while it runs.

    `context` returns the fields of the job in work, which every line of the process has in JSON.
    """

    level: str = "info"
    form: Literal["text", "json"] = "text"
    process: str = "gateway"
    is_debug: bool = False
    context: Callable[[], Mapping[str, object]] = dict
    on_switch: Callable[[bool], object] = bool

    def switch_debug(self, is_on: bool) -> None:
        """Log debug messages from now on, or those of `level` again; tell `on_switch`."""
        if is_on is self.is_debug:
            return
        text = "LogLevel is debug until the next SIGUSR2" if is_on else "LogLevel is {name} again"
        self.is_debug = True  # so that the line is seen at any level
        _log.info(text, name=self.level)
        self.is_debug = is_on
        self.on_switch(is_on)

    def handle_signal(self, call_reactor: Callable[..., object]) -> None:
        """Let SIGUSR2 switch debug messages; `call_reactor` calls a function in the reactor."""

        def switch(*_: object) -> None:
            call_reactor(lambda: self.switch_debug(not self.is_debug))

        signal.signal(signal.SIGUSR2, switch)


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

    def __init__(self, sink: ILogObserver, options: LogOptions) -> None:
        """Pass events on to `sink`, as text or as JSON."""
        self._sink = sink
        self._options = options
        self._process = {
            "process": options.process,
            "pid": os.getpid(),
            "machine": socket.gethostname(),
        }

    def __call__(self, event: LogEvent) -> None:
        names = ("log_time", "log_level", "log_namespace", "log_system")
        plain = {name: event[name] for name in names if name in event}
        line = line_of(event) if self._options.form == "text" else self._object(event)
        self._sink({**plain, "log_format": "{line}", "line": line})

    def _object(self, event: LogEvent) -> str:
        fields = {**self._process, **self._options.context(), **event.get("fields", {})}
        return write_line(
            event.get("log_time", time.time()),
            event.get("log_level", LogLevel.info).name,
            str(event.get("log_namespace", "-")),
            line_of(event),
            fields,
        )


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


def _levels(level: str, chatty: Sequence[str]) -> LogLevelFilterPredicate:
    """Return a filter that passes `level` and above; of `chatty` namespaces, warnings and up."""
    lowest = LogLevel.levelWithName(level)
    levels = LogLevelFilterPredicate(defaultLogLevel=lowest)
    for namespace in chatty:
        levels.setLogLevelForNamespace(namespace, max(lowest, LogLevel.warn))
    return levels


def filter_events(
    sink: ILogObserver, options: LogOptions, chatty: Sequence[str] = CHATTY
) -> ILogObserver:
    """Return an observer that passes events of the level and above to `sink`, one line each.

    From the `chatty` namespaces, only warnings and errors pass.
    """
    normal_levels, debug_levels = _levels(options.level, chatty), _levels("debug", chatty)

    @implementer(ILogFilterPredicate)
    def of_level(event: LogEvent) -> Any:
        return (debug_levels if options.is_debug else normal_levels)(event)

    return FilteringLogObserver(OneLine(sink, options), [_not_of_factories, of_level])


def start_logging(options: LogOptions, publisher: LogPublisher = globalLogPublisher) -> None:
    """Put the filter before the observers that `twistd` or `twist` has set up."""
    # The launcher does not publish its observers; the publisher's private list has them.
    for observer in list(publisher._observers):  # noqa: SLF001
        publisher.removeObserver(observer)
        publisher.addObserver(filter_events(observer, options))
        if options.form == "json" and isinstance(observer, FileLogObserver):
            # Time and level are in the object.
            observer.formatEvent = lambda event: f"{event['line']}\n"


def worker_observer(file: TextIO, options: LogOptions) -> ILogObserver:
    """Return an observer that writes `level namespace: text`; the gateway's log adds the time.

    A line in JSON has all of it, since on a worker machine it goes into the machine's own log.
    """

    def write(event: LogEvent) -> str:
        if options.form == "json":
            return f"{event['line']}\n"
        return f"{event['log_level'].name} {event['log_namespace']}: {formatEvent(event)}\n"

    return filter_events(FileLogObserver(file, write), options, (*CHATTY, *_CHATTY_WORKER))


def start_worker_logging(options: LogOptions, beginner: LogBeginner = globalLogBeginner) -> None:
    """Log to standard error: standard output carries the worker's answers."""
    beginner.beginLoggingTo([worker_observer(sys.stderr, options)], redirectStandardIO=False)
