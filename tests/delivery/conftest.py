"""Fixtures of the tests of deliveries."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from shiftergw.plumbing.threads import Threads
from tests.delivery.contract import CONTENT
from tests.delivery.ssh_systems import System
from tests.installed_reactor import reactor
from tests.sshd import Sshd


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Give a pool of threads that runs during the test."""
    pool = Threads(reactor, 4, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give an empty image directory."""
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Give a converted file."""
    path = tmp_path / "converted"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def pair() -> Iterator[tuple[Sshd, Sshd]]:
    """Run two hosts with different host keys."""
    with Sshd() as first, Sshd() as second:
        yield first, second


@pytest.fixture(params=["conch", "openssh"])
def system(request: pytest.FixtureRequest, threads: Threads) -> Iterator[System]:
    """Give a system for each transport; check that none of its connections is left."""
    hosts = System(request.param, threads)
    yield hosts
    for directory in hosts.directories:
        pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))
    assert hosts.alive() == 0


@pytest.fixture
def black_hole() -> Iterator[int]:
    """Give a port of the loopback that accepts connections and never sends a byte."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Give the log lines about hosts, each with its level."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_namespace", "").startswith("shiftergw.delivery.hosts"):
            lines.append(f"{event['log_level'].name}: {formatEvent(event)}")

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)
