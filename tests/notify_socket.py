"""A socket to which services report their state, in the place of systemd's."""

from __future__ import annotations

import select
import socket
from typing import Self
from uuid import uuid4

from tests.patience import patient


class NotifySocket:
    """An abstract datagram socket; `env` names it to a service, with a watchdog if one is set."""

    def __init__(self, watchdog_seconds: float | None = None) -> None:
        """Open the socket; the service has to give a sign of life within `watchdog_seconds`."""
        self.name = f"@shiftergw-test-{uuid4()}"
        self.env = {"NOTIFY_SOCKET": self.name}
        if watchdog_seconds is not None:
            self.env["WATCHDOG_USEC"] = str(int(watchdog_seconds * 1e6))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{self.name[1:]}")

    def __enter__(self) -> Self:
        """Return the open socket."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the socket."""
        self._socket.close()

    def next_report(self, seconds: float = 30) -> dict[str, str]:
        """Return the fields of the next report; fail if none comes in time."""
        ready, _, _ = select.select([self._socket], [], [], patient(seconds))
        assert ready, "the service reports nothing"
        lines = self._socket.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def reports(self) -> list[dict[str, str]]:
        """Return the reports that have arrived."""
        reports = []
        while select.select([self._socket], [], [], 0)[0]:
            reports.append(self.next_report())
        return reports

    def wait_for(self, field: str) -> dict[str, str]:
        """Return the next report with a field; drop the reports before it."""
        while field not in (report := self.next_report()):
            pass
        return report
