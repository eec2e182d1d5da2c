"""Reports reach the service manager in the form of sd_notify(3), and wait for nothing."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from shiftergw.plumbing.service_manager import ServiceManager
from tests.notify_socket import NotifySocket


def fill_queue(address: str) -> None:
    """Send datagrams until the queue of the socket is full.

    A sender's own buffer may be full earlier, so there are several senders.
    """
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            count = 0
            with suppress(BlockingIOError):
                while True:
                    sender.sendto(b"WATCHDOG=1", address)
                    count += 1
            if count == 0:
                return


def test_an_abstract_socket() -> None:
    """Fields are sent as lines of one datagram, and foreign text cannot add a line."""
    with NotifySocket() as manager_socket:
        manager = ServiceManager(manager_socket.name)
        manager.report(READY="1", STATUS="bad\nSTOPPING=1")
        assert manager_socket.next_report() == {"READY": "1", "STATUS": "bad\\x0aSTOPPING=1"}


def test_a_socket_with_a_path(tmp_path: Path) -> None:
    """An address with a slash is a path; without a listener the report raises an error."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        ServiceManager(str(path)).report(WATCHDOG="1")
        assert server.recv(100) == b"WATCHDOG=1"
    with pytest.raises(ConnectionRefusedError):
        ServiceManager(str(path)).report(WATCHDOG="1")


def test_a_busy_manager() -> None:
    """What a full queue does not take is sent with the next report, each field once."""
    with NotifySocket() as manager_socket:
        fill_queue(f"\0{manager_socket.name[1:]}")
        manager = ServiceManager(manager_socket.name)
        manager.report(READY="1", STATUS="old")
        assert all(report == {"WATCHDOG": "1"} for report in manager_socket.reports())
        manager.report(STATUS="new")
        assert manager_socket.next_report() == {"READY": "1", "STATUS": "new"}
        manager.report(WATCHDOG="1")
        assert manager_socket.next_report() == {"WATCHDOG": "1"}


@pytest.mark.parametrize("address", [None, "", "notify", "vsock:2:1234"])
def test_no_manager(address: str | None) -> None:
    """Without an address of a UNIX socket there is no manager to report to."""
    environ = {} if address is None else {"NOTIFY_SOCKET": address}
    assert ServiceManager.from_environment(environ) is None


@pytest.mark.parametrize(
    ("watchdog", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "{pid}"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "³"}, None),
    ],
)
def test_the_interval_of_the_watchdog(watchdog: dict[str, str], seconds: float | None) -> None:
    """Signs of life are due at half of the watchdog's limit, if it is set for this process."""
    # A test may run in a fork of the process that has collected it.
    environ = {name: value.format(pid=os.getpid()) for name, value in watchdog.items()}
    manager = ServiceManager.from_environment({"NOTIFY_SOCKET": "/run/notify", **environ})
    assert manager is not None
    assert manager.beat_seconds == seconds
