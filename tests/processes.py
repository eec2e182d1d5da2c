"""Run tests in several processes, which are forks of the process that has collected them.

pytest-xdist collects the tests in each of its processes: with eight of them, that took 100 s of
processor time, a tenth of the whole run. A fork has the imported modules and the collected tests.
It installs its own reactor, captures its own output, and has its own temporary directory.

The forks ask for groups of tests (see `tests.schedule`) when their last test begins, and send the
reports of pytest, which this process counts and prints. When a fork ends in the midst of a test,
the test fails, and another fork runs the rest of the group.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

from tests import schedule
from tests.children import guard

STANDARD_OUTPUT = 1

TERMINAL_BYTES = 20_000
"""The number of bytes of a dead fork's terminal output that a failure shows."""

Indexes = list[int]


class Fork:
    """A process that runs tests, as the process that has started it sees it."""

    def __init__(self, pid: int, connection: Connection[Any, Any], terminal: Path) -> None:
        """Remember the process, its connection and the file with its terminal output."""
        self.pid = pid
        self.connection = connection
        self._terminal = terminal
        self.remaining: deque[int] = deque()
        """The indexes of the tests that it has received and not ended."""
        self.has_begun = False
        """Whether the first of them has begun."""

    def reap(self) -> str:
        """Wait for the end of the process; return its exit code and the end of its output."""
        self.connection.close()
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        output = self._terminal.read_bytes()[-TERMINAL_BYTES:].decode(errors="replace")
        return f"exit code {code}\n{output}"


class Distributor:
    """Give groups of tests to forks, and take their reports."""

    def __init__(self, session: pytest.Session, groups: Sequence[Indexes]) -> None:
        """Distribute `groups`, in this order; they contain indexes of `session.items`."""
        self._session = session
        self._hook = session.config.hook
        self._groups = deque(groups)
        self._forks: dict[Connection[Any, Any], Fork] = {}
        self._count = 0

    def run(self, processes: int) -> bool:
        """Run all tests; return False in a fork, after its last test."""
        directory = temporary_directory(self._session)
        try:
            for _ in range(processes):
                if not self._start(directory):
                    return False
            while self._forks:
                for connection in wait(list(self._forks)):
                    fork = self._forks[connection]  # type: ignore[index]
                    if not self._receive(fork) and self._groups and not self._start(directory):
                        return False
        except BaseException:
            for fork in self._forks.values():
                os.kill(fork.pid, signal.SIGTERM)
            raise
        return True

    def _start(self, directory: Path) -> bool:
        """Fork; return False in the fork, after it has run its tests."""
        number = self._count
        self._count += 1
        connection, fork_connection = Pipe()
        terminal = directory / f"terminal-{number}"
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            fork_connection.close()
            self._forks[connection] = Fork(pid, connection, terminal)
            return True
        for other_connection in (connection, *self._forks):
            other_connection.close()
        self._forks.clear()  # they are no children of this process
        become_independent(self._session, directory / f"process-{number}", terminal)
        run_tests(self._session, fork_connection)
        return False

    def _receive(self, fork: Fork) -> bool:
        """Handle a message of a fork; return False if the fork has died."""
        try:
            kind, *arguments = fork.connection.recv()
        except (EOFError, ConnectionResetError):
            self._bury(fork)
            return False
        if kind == "next":
            self._send_group(fork)
        elif kind == "start":
            fork.has_begun = True
            self._hook.pytest_runtest_logstart(nodeid=arguments[0], location=arguments[1])
        elif kind == "finish":
            fork.remaining.popleft()
            fork.has_begun = False
            self._hook.pytest_runtest_logfinish(nodeid=arguments[0], location=arguments[1])
        elif kind == "report":
            self._report(arguments[0])
        elif kind == "warning":
            self._warn(*arguments)
        else:
            del self._forks[fork.connection]
            fork.reap()
        if self._session.shouldfail:
            raise self._session.Failed(self._session.shouldfail)
        return True

    def _send_group(self, fork: Fork) -> None:
        group = self._groups.popleft() if self._groups else []
        fork.remaining += group
        with suppress(BrokenPipeError):  # its end is the next event
            fork.connection.send(group)

    def _report(self, content: dict[str, Any]) -> None:
        config = self._session.config
        report = self._hook.pytest_report_from_serializable(config=config, data=content)
        self._hook.pytest_runtest_logreport(report=report)

    def _warn(self, text: str, file: str, line: int, when: str, nodeid: str, location: Any) -> None:
        message = warnings.WarningMessage(text, UserWarning, file, line)
        self._hook.pytest_warning_recorded.call_historic(
            kwargs={
                "warning_message": message,
                "when": when,
                "nodeid": nodeid,
                "location": location,
            }
        )

    def _bury(self, fork: Fork) -> None:
        """Report the test in which a fork has died, and put back the other tests of its group."""
        del self._forks[fork.connection]
        end = fork.reap()
        if not fork.has_begun:
            message = f"process {fork.pid} ended between two tests: {end}"
            raise self._session.Failed(message)
        item = self._session.items[fork.remaining.popleft()]
        report = pytest.TestReport(
            item.nodeid,
            item.location,
            {},
            "failed",
            f"the process ended while it ran this test: {end}",
            "call",
        )
        self._hook.pytest_runtest_logreport(report=report)
        if fork.remaining:
            self._groups.appendleft(list(fork.remaining))


class Reporter:
    """A plugin of a fork that sends the reports of its tests."""

    def __init__(self, config: pytest.Config, connection: Connection[Any, Any]) -> None:
        """Send by `connection`."""
        self._config = config
        self._connection = connection

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        """Send that a test begins."""
        self._connection.send(("start", nodeid, location))

    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
        """Send that a test has ended."""
        self._connection.send(("finish", nodeid, location))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send the report of a phase of a test."""
        content = self._config.hook.pytest_report_to_serializable(
            config=self._config, report=report
        )
        self._connection.send(("report", content))

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: Any
    ) -> None:
        """Send a warning as text, since its class may not be one that can be pickled."""
        text = f"{warning_message.category.__name__}: {warning_message.message}"
        place = warning_message.filename, warning_message.lineno
        self._connection.send(("warning", text, *place, when, nodeid, location))


def run_in_processes(session: pytest.Session, processes: int) -> bool:
    """Run the collected tests in `processes` forks; return False in a fork, after its tests."""
    terminal: Any = session.config.pluginmanager.getplugin("terminalreporter")
    terminal.showfspath = False  # tests of several files end in turn, so each has but a letter
    indexes = {item: index for index, item in enumerate(session.items)}
    groups = [[indexes[item] for item in group] for group in schedule.form_groups(session.items)]
    return Distributor(session, groups).run(min(processes, len(groups)))


def run_tests(session: pytest.Session, connection: Connection[Any, Any]) -> None:
    """Run the tests that arrive by a connection, until none arrive.

    A test must know the following test, whose fixtures remain. So the next group is asked for
    before the last test of a group begins.
    """
    session.config.pluginmanager.register(Reporter(session.config, connection), "reporter")
    items: deque[pytest.Item] = deque()
    while items or not session.shouldstop:
        if len(items) < 2:
            connection.send(("next",))
            items += [session.items[index] for index in connection.recv()]
        if not items:
            break
        item = items.popleft()
        following = items[0] if items else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    connection.send(("end",))


def become_independent(session: pytest.Session, directory: Path, terminal: Path) -> None:
    """Give a fork what it must not share: reactor, output, random numbers, temporary files."""
    # The reactor waits by a descriptor of epoll, which forks share, and wakes up by a pipe.
    from twisted.internet import reactor  # noqa: PLC0415 - pytest-twisted installs it

    reactor.__init__()  # type: ignore[misc]
    random.seed()
    guard()
    capture: Any = session.config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()  # restores the standard output of this process
    descriptor = os.open(terminal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, STANDARD_OUTPUT)
    os.close(descriptor)
    capture.start_global_capturing()
    capture.suspend_global_capture()
    factory = temporary_path_factory(session)
    factory._given_basetemp = directory
    factory._basetemp = None


def temporary_path_factory(session: pytest.Session) -> Any:
    """Return the factory of temporary directories, for which pytest has no public name."""
    return session.config._tmp_path_factory  # type: ignore[attr-defined]


def temporary_directory(session: pytest.Session) -> Path:
    """Return the directory of the temporary files of this run."""
    return Path(temporary_path_factory(session).getbasetemp())
