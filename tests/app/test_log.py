"""The log filters events by level, and writes each as one line whatever it quotes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import warnings

import pytest
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogBeginner,
    LogEvent,
    Logger,
    LogLevel,
    LogPublisher,
    formatEvent,
    formatEventAsClassicLogText,
    globalLogPublisher,
    textFileLogObserver,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from shiftergw.app.log import (
    LogOptions,
    filter_events,
    line_of,
    start_logging,
    start_worker_logging,
    worker_observer,
)
from shiftergw.web.channel import IDLE_LIMIT
from tests.patience import patient
from tests.web.fakes import FakeGateway, Wire, site_of

HOSTILE = "a\nb\r\x1b[2J\x00\u2028c\x85d\ud800"


@implementer(ILogObserver)
class EventList:
    """Records the events that reach it."""

    def __init__(self) -> None:
        """Start without events."""
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        """Record an event."""
        self.events.append(event)

    @property
    def texts(self) -> list[str]:
        """Return the texts of the events."""
        return [formatEvent(event) for event in self.events]


def logger_into(observer: ILogObserver, namespace: str = "shiftergw.test") -> Logger:
    """Return a logger whose events go to one observer."""
    return Logger(namespace=namespace, observer=observer)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warn", "error", "critical"]),
        ("info", ["info", "warn", "error", "critical"]),
        ("warn", ["warn", "error", "critical"]),
        ("error", ["error", "critical"]),
        ("critical", ["critical"]),
    ],
)
def test_levels(level: str, expected: list[str]) -> None:
    """Events below the configured level are dropped."""
    sink = EventList()
    log = logger_into(filter_events(sink, LogOptions(level)))
    for name in ("debug", "info", "warn", "error", "critical"):
        log.emit(LogLevel.levelWithName(name), name)
    assert sink.texts == expected


@pytest.mark.parametrize(("level", "expected"), [("debug", 1), ("warn", 1), ("error", 0)])
@pytest.mark.parametrize(
    "namespace",
    ["twisted.conch.ssh.filetransfer", "twisted.web.client._HTTP11ClientFactory",
     "shiftergw.web.site.Channel", "log_legacy"],
)  # fmt: skip
def test_quiet_namespaces(level: str, expected: int, namespace: str) -> None:
    """Packets and connections stay out of the log at every level; warnings follow the level."""
    sink = EventList()
    log = logger_into(filter_events(sink, LogOptions(level)), namespace)
    log.debug("packet")
    log.info("packet")
    log.emit(LogLevel.warn, "trouble")
    assert sink.texts == ["trouble"] * expected


@pytest.mark.parametrize("level", ["debug", "info"])
def test_factories_are_quiet(level: str) -> None:
    """Twisted's messages about its factories are dropped; no object shows its address."""

    class Loud(Factory):
        """Says that it starts and stops."""

    sink = EventList()
    observer = filter_events(sink, LogOptions(level))
    globalLogPublisher.addObserver(observer)
    try:
        factory = Loud()
        factory.doStart()
        factory.doStop()
    finally:
        globalLogPublisher.removeObserver(observer)
    assert sink.texts == []
    logger_into(observer).info("lost {what}, at 0x10", what=object())
    assert sink.texts == ["lost <object>, at 0x10"]


def test_one_line() -> None:
    """Control characters and line separators of foreign text are escaped."""
    file = io.StringIO()
    log = logger_into(filter_events(textFileLogObserver(file), LogOptions("info")))
    log.info("the registry says {text}", text=HOSTILE)
    (line,) = file.getvalue().splitlines()
    assert line.isprintable()
    assert line.endswith(r"the registry says a\x0ab\x0d\x1b[2J\x00\x2028c\x85d\xd800")
    assert "[shiftergw.test#info]" in line


def test_braces_are_not_formatted_again() -> None:
    """Text that looks like a format field stays text."""
    file = io.StringIO()
    logger_into(filter_events(textFileLogObserver(file), LogOptions("info"))).info(
        "{text}", text="{log_level}"
    )
    assert file.getvalue().endswith("{log_level}\n")


def test_traceback_on_one_line() -> None:
    """A failure keeps its traceback, joined into the event's line."""
    file = io.StringIO()
    log = logger_into(filter_events(textFileLogObserver(file), LogOptions("info")))
    log.failure("cannot {what}", what="go\non", failure=Failure(ValueError(HOSTILE)))
    (line,) = file.getvalue().splitlines()
    assert r"cannot go\x0aon | Traceback" in line
    assert "ValueError: a | b" in line
    assert line.isprintable()


def test_long_events_are_cut() -> None:
    """An event that quotes megabytes does not fill the log."""
    assert len(line_of({"log_format": "{text}", "text": "x" * 10**6})) < 10_000


def test_sink_sees_time_and_origin() -> None:
    """The sink gets time, level, namespace and system of the event beside its text."""
    sink = EventList()
    event = {
        "log_time": 5.0,
        "log_level": LogLevel.info,
        "log_namespace": "a.b",
        "log_system": "HTTPChannel,1",
        "log_format": "{password} is not in it",
        "password": "hidden",
    }
    filter_events(sink, LogOptions("info"))(event)
    (event_at_sink,) = sink.events
    names = ("log_time", "log_level", "log_namespace", "log_system")
    assert {name: event_at_sink[name] for name in names} == {name: event[name] for name in names}
    assert "password" not in event_at_sink


def test_start_logging_wraps_the_launchers_observers() -> None:
    """The launcher's observers get the events, filtered and as single lines."""
    first, second = EventList(), EventList()
    publisher = LogPublisher(first, second)
    start_logging(LogOptions("warn"), publisher)
    log = logger_into(publisher)
    log.info("left out")
    log.emit(LogLevel.warn, "two\nlines")
    for sink in (first, second):
        assert sink.texts == [r"two\x0alines"]


def test_json() -> None:
    """Every line has its process and the fields of the event, and nothing else of the event."""
    file, job = io.StringIO(), {"request": "1a", "job": "k", "attempt": 1}
    publisher = LogPublisher(textFileLogObserver(file))
    options = LogOptions(form="json", context=lambda: job)
    start_logging(options, publisher)
    log = logger_into(publisher)
    log.info("{what} of {secret}", what=HOSTILE, secret="-", fields={"uid": 7, "attempt": 2})
    log.failure("broken", Failure(ValueError("why")))
    first, second = map(json.loads, file.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "info",
        "logger": "shiftergw.test",
        "message": r"a\x0ab\x0d\x1b[2J\x00\x2028c\x85d\xd800 of -",
        "process": "gateway",
        "pid": os.getpid(),
        "machine": socket.gethostname(),
        **job,
        "uid": 7,
        "attempt": 2,
    }
    assert (second["level"], second["request"]) == ("critical", "1a")
    assert "ValueError: why" in second["message"]


def test_json_for_another_observer() -> None:
    """An observer that is not of a file, such as that of syslog, gets the object as the text."""
    sink = EventList()
    publisher = LogPublisher(sink)
    start_logging(LogOptions(form="json"), publisher)
    logger_into(publisher).info("text")
    assert json.loads(sink.texts[0])["message"] == "text"


def test_json_of_a_worker() -> None:
    """A worker's line is complete, since a worker machine writes it into its own log."""
    file = io.StringIO()
    observer = worker_observer(file, LogOptions("info", "json", "worker"))
    logger_into(observer, "shiftergw.worker").error("text")
    line = json.loads(file.getvalue())
    assert (line["process"], line["level"], line["message"]) == ("worker", "error", "text")
    assert line["time"]


def test_debug_messages_by_signal() -> None:
    """SIGUSR2 switches debug messages on and off again; the log and the workers are told."""
    sink = EventList()
    switches: list[bool] = []
    options = LogOptions("error", on_switch=switches.append)
    observer = filter_events(sink, options)
    globalLogPublisher.addObserver(observer)
    old_handler = signal.getsignal(signal.SIGUSR2)
    try:
        options.handle_signal(lambda function: function())
        log = logger_into(observer)
        for text in ("before", "meanwhile", "after"):
            log.debug(text)
            os.kill(os.getpid(), signal.SIGUSR2)
        options.switch_debug(True)
    finally:
        signal.signal(signal.SIGUSR2, old_handler)
        globalLogPublisher.removeObserver(observer)
    on, off = "LogLevel is debug until the next SIGUSR2", "LogLevel is error again"
    assert sink.texts == [on, "meanwhile", off, on]
    assert switches == [True, False, True]


def test_worker_lines() -> None:
    """A worker's line has level and namespace; the gateway's log adds the time."""
    file = io.StringIO()
    log = logger_into(worker_observer(file, LogOptions()), "shiftergw.worker")
    log.debug("left out")
    log.error("no\nspace")
    assert file.getvalue() == "error shiftergw.worker: no\\x0aspace\n"


def test_a_worker_does_not_log_its_reactor() -> None:
    """A signal is worth a line in the gateway's log, but not in that of each worker."""
    file, sink = io.StringIO(), EventList()
    for observer in (worker_observer(file, LogOptions()), filter_events(sink, LogOptions("info"))):
        logger_into(observer, "twisted.internet.base").info("Received SIGTERM, shutting down.")
    assert (file.getvalue(), len(sink.texts)) == ("", 1)


def test_a_site_logs_no_start_and_end() -> None:
    """Twisted's messages about listening and idle connections are dropped."""
    sink = EventList()
    observer = filter_events(sink, LogOptions("debug"))
    globalLogPublisher.addObserver(observer)
    try:
        clock = Clock()
        site = site_of(FakeGateway(), clock)
        wire = Wire(site)
        site.doStart()
        wire.send(b"GET /")
        clock.advance(IDLE_LIMIT)
        site.doStop()
    finally:
        globalLogPublisher.removeObserver(observer)
    assert sink.texts == []


def test_start_worker_logging_leaves_stdout_alone() -> None:
    """The worker's answers on standard output are neither redirected nor mixed with its log."""
    program = (
        "import sys\n"
        "from shiftergw.app.log import LogOptions, start_worker_logging\n"
        "from twisted.logger import Logger\n"
        "start_worker_logging(LogOptions())\n"
        "Logger(namespace='n').info('logged')\n"
        "sys.stdout.write('answered\\n')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=patient(60),
    )
    assert (run.stdout, run.stderr) == ("answered\n", "info n: logged\n")


def test_start_worker_logging_keeps_earlier_events(capsys: pytest.CaptureFixture[str]) -> None:
    """Events from before the start of the worker's log are not lost."""
    publisher = LogPublisher()
    beginner = LogBeginner(publisher, io.StringIO(), sys, warnings)
    logger_into(publisher, "early").warn("before")
    start_worker_logging(LogOptions(), beginner)
    logger_into(publisher, "late").warn("after")
    assert capsys.readouterr().err == "warn early: before\nwarn late: after\n"


def test_hostile_text_without_the_filter() -> None:
    """Without the filter, the hostile text of these tests breaks out of its line."""
    file = io.StringIO()
    observer = FileLogObserver(file, formatEventAsClassicLogText)
    logger_into(observer).info("{text}", text=HOSTILE)
    assert len(file.getvalue().splitlines()) > 1
