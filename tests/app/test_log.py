"""Tests of the log: levels, and one line for each event whatever it quotes."""

from __future__ import annotations

import io
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
class Kept:
    """Keeps the events that reach it."""

    def __init__(self) -> None:
        """Keep none yet."""
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        """Keep one more."""
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
    """Events below the configured level are left out."""
    kept = Kept()
    log = logger_into(filter_events(kept, level))
    for name in ("debug", "info", "warn", "error", "critical"):
        log.emit(LogLevel.levelWithName(name), name)
    assert kept.texts == expected


@pytest.mark.parametrize(("level", "expected"), [("debug", 1), ("warn", 1), ("error", 0)])
@pytest.mark.parametrize(
    "namespace",
    ["twisted.conch.ssh.filetransfer", "twisted.web.client._HTTP11ClientFactory",
     "shiftergw.web.site.Channel", "log_legacy"],
)  # fmt: skip
def test_who_is_quiet(level: str, expected: int, namespace: str) -> None:
    """Packets and connections stay out of the log at every level, warnings follow the level."""
    kept = Kept()
    log = logger_into(filter_events(kept, level), namespace)
    log.debug("packet")
    log.info("packet")
    log.emit(LogLevel.warn, "trouble")
    assert kept.texts == ["trouble"] * expected


@pytest.mark.parametrize("level", ["debug", "info"])
def test_factories_are_quiet(level: str) -> None:
    """What Twisted says of each of its factories is left out; no object shows its address."""

    class Loud(Factory):
        """Says that it starts and stops."""

    kept = Kept()
    observer = filter_events(kept, level)
    globalLogPublisher.addObserver(observer)
    try:
        factory = Loud()
        factory.doStart()
        factory.doStop()
    finally:
        globalLogPublisher.removeObserver(observer)
    assert kept.texts == []
    logger_into(observer).info("lost {what}, at 0x10", what=object())
    assert kept.texts == ["lost <object>, at 0x10"]


def test_one_line() -> None:
    """Control characters and line separators of foreign text are shown, not obeyed."""
    file = io.StringIO()
    log = logger_into(filter_events(textFileLogObserver(file), "info"))
    log.info("the registry says {text}", text=HOSTILE)
    (line,) = file.getvalue().splitlines()
    assert line.isprintable()
    assert line.endswith(r"the registry says a\x0ab\x0d\x1b[2J\x00\x2028c\x85d\xd800")
    assert "[shiftergw.test#info]" in line


def test_braces_are_not_formatted_again() -> None:
    """Text that looks like a format field stays text."""
    file = io.StringIO()
    logger_into(filter_events(textFileLogObserver(file), "info")).info("{text}", text="{log_level}")
    assert file.getvalue().endswith("{log_level}\n")


def test_traceback_on_one_line() -> None:
    """A failure keeps its traceback, joined into the event's line."""
    file = io.StringIO()
    log = logger_into(filter_events(textFileLogObserver(file), "info"))
    log.failure("cannot {what}", what="go\non", failure=Failure(ValueError(HOSTILE)))
    (line,) = file.getvalue().splitlines()
    assert r"cannot go\x0aon | Traceback" in line
    assert "ValueError: a | b" in line
    assert line.isprintable()


def test_long_events_are_cut() -> None:
    """An event that quotes megabytes does not fill the log."""
    assert len(line_of({"log_format": "{text}", "text": "x" * 10**6})) < 10_000


def test_sink_sees_time_and_origin() -> None:
    """What an observer shows beside the text is kept: time, level, namespace, system."""
    kept = Kept()
    event = {
        "log_time": 5.0,
        "log_level": LogLevel.info,
        "log_namespace": "a.b",
        "log_system": "HTTPChannel,1",
        "log_format": "{password} is not in it",
        "password": "hidden",
    }
    filter_events(kept, "info")(event)
    (seen,) = kept.events
    names = ("log_time", "log_level", "log_namespace", "log_system")
    assert {name: seen[name] for name in names} == {name: event[name] for name in names}
    assert "password" not in seen


def test_start_logging_wraps_the_launchers_observers() -> None:
    """The log goes on where the launcher sends it, filter_events and in single lines."""
    first, second = Kept(), Kept()
    publisher = LogPublisher(first, second)
    start_logging("warn", publisher)
    log = logger_into(publisher)
    log.info("left out")
    log.emit(LogLevel.warn, "two\nlines")
    for kept in (first, second):
        assert kept.texts == [r"two\x0alines"]


def test_worker_lines() -> None:
    """A worker's line says level and origin, and leaves the time to the gateway's log."""
    file = io.StringIO()
    log = logger_into(worker_observer(file, "info"), "shiftergw.worker")
    log.debug("left out")
    log.error("no\nspace")
    assert file.getvalue() == "error shiftergw.worker: no\\x0aspace\n"


def test_a_worker_says_nothing_of_its_reactor() -> None:
    """That a worker's loop has ended is no news to an operator; in the gateway a signal is."""
    file, kept = io.StringIO(), Kept()
    for observer in (worker_observer(file, "info"), filter_events(kept, "info")):
        logger_into(observer, "twisted.internet.base").info("Received SIGTERM, shutting down.")
    assert (file.getvalue(), len(kept.texts)) == ("", 1)


def test_a_site_starts_and_ends_in_silence() -> None:
    """What Twisted says when somebody listens, or has been silent for too long, is not logged."""
    kept = Kept()
    observer = filter_events(kept, "debug")
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
    assert kept.texts == []


def test_start_worker_logging_leaves_stdout_alone() -> None:
    """What a worker answers on standard output is not mixed with its log, nor redirected."""
    program = (
        "import sys\n"
        "from shiftergw.app.log import start_worker_logging\n"
        "from twisted.logger import Logger\n"
        "start_worker_logging('info')\n"
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


def test_start_worker_logging_begins(capsys: pytest.CaptureFixture[str]) -> None:
    """What was logged before the worker's log begins is not lost."""
    publisher = LogPublisher()
    beginner = LogBeginner(publisher, io.StringIO(), sys, warnings)
    logger_into(publisher, "early").warn("before")
    start_worker_logging("info", beginner)
    logger_into(publisher, "late").warn("after")
    assert capsys.readouterr().err == "warn early: before\nwarn late: after\n"


def test_classic_text_without_us() -> None:
    """The hostile text is hostile: without our filter it breaks out of its line."""
    file = io.StringIO()
    observer = FileLogObserver(file, formatEventAsClassicLogText)
    logger_into(observer).info("{text}", text=HOSTILE)
    assert len(file.getvalue().splitlines()) > 1
