"""Fixtures of the tests of deliveries."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.plumbing.threads import Threads
from shiftergw.ssh.openssh import OpensshAccount
from tests.delivery.contract import CONTENT
from tests.delivery.far import Opens, far_directory
from tests.delivery.ssh_systems import System
from tests.sshd import Sshd


@pytest.fixture
def directories() -> Iterator[list[RemoteDirectory]]:
    """Return a list of image directories, which are closed after the test."""
    directories: list[RemoteDirectory] = []
    yield directories
    for directory in directories:
        pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))


@pytest.fixture
def opens(threads: Threads, directories: list[RemoteDirectory]) -> Opens:
    """Return a function that opens image directories by the account and the path there."""

    def open_directory(account: OpensshAccount, root: Path, **changes: Any) -> RemoteDirectory:
        directories.append(far_directory(account, PurePosixPath(root), threads, **changes))
        return directories[-1]

    return open_directory


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
