"""Report the state of this process to the service manager that started it, as sd_notify(3) does.

The manager (systemd) names a datagram socket in `$NOTIFY_SOCKET`; a datagram has lines
`NAME=VALUE`. systemd's own library is not used: it may be absent, and the protocol is stable.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Self

from shiftergw.errors import printable


class ServiceManager:
    """The service manager of this process, and what was not reported to it yet."""

    def __init__(self, address: str, beat_seconds: float | None = None) -> None:
        """Report to the socket at `address`; a name that begins with `@` is an abstract one.

        `beat_seconds` is the interval in seconds at which a sign of life is due, or None if the
        manager has no watchdog.
        """
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.beat_seconds = beat_seconds
        self._unsent: dict[str, str] = {}

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self | None:
        """Return the manager that the environment names, or None if it names none.

        The beats are at half of `$WATCHDOG_USEC`, as sd_watchdog_enabled(3) recommends. A watchdog
        that is set for another process (`$WATCHDOG_PID`) does not count.
        """
        address = environ.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return None
        microseconds = environ.get("WATCHDOG_USEC", "")
        has_watchdog = (
            microseconds.isascii()
            and microseconds.isdigit()
            and int(microseconds) > 0
            and environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        )
        return cls(address, int(microseconds) / 2e6 if has_watchdog else None)

    def report(self, **fields: str) -> None:
        """Send fields, such as `READY="1"`, without waiting; raise `OSError` if that is impossible.

        If the manager is busy, the fields are sent with the next report.
        """
        self._unsent |= {name: printable(text) for name, text in fields.items()}
        message = "\n".join(f"{name}={text}" for name, text in self._unsent.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            try:
                client.sendto(message.encode(), self._address)
            except BlockingIOError:
                return
        self._unsent.clear()
