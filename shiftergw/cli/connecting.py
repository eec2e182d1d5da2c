"""Connect to a host whose addresses may not all answer ("happy eyeballs", RFC 8305)."""

from __future__ import annotations

import errno
import os
import select
import socket
from time import monotonic

ATTEMPT_DELAY = 0.3
"""Seconds after which the next address is tried beside the ones before, as Twisted does."""


def connect(host: str, port: int, limit: float) -> socket.socket:
    """Return a socket that is connected to the first address of a host that answers.

    `limit` is in seconds, for all addresses together. Raises `socket.gaierror` if the host has no
    address, `TimeoutError` after `limit`, and the `OSError` of the last address that fails.
    """
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    deadline = monotonic() + limit
    error: OSError | None = None
    pending: dict[int, socket.socket] = {}
    try:
        for number, (family, kind, protocol, _, address) in enumerate(addresses, 1):
            try:
                attempt = socket.socket(family, kind, protocol)
            except OSError as failure:  # a family that this machine lacks
                error = failure
                continue
            attempt.setblocking(False)
            code = attempt.connect_ex(address)
            if code not in {0, errno.EINPROGRESS}:
                attempt.close()
                error = OSError(code, os.strerror(code))
                continue
            pending[attempt.fileno()] = attempt
            is_last = number == len(addresses)
            end = deadline if is_last else min(deadline, monotonic() + ATTEMPT_DELAY)
            while pending and monotonic() < end:
                for ready in _ready(pending, end):
                    code = ready.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not code:
                        ready.setblocking(True)
                        return ready
                    ready.close()
                    error = OSError(code, os.strerror(code))
        if pending or error is None:
            raise TimeoutError(errno.ETIMEDOUT, f"it did not answer within {limit:.0f} s")
        raise error
    finally:
        for attempt in pending.values():
            attempt.close()


def _ready(pending: dict[int, socket.socket], end: float) -> list[socket.socket]:
    """Wait for attempts to end, and remove them from `pending`."""
    poll = select.poll()
    for descriptor in pending:
        poll.register(descriptor, select.POLLOUT)
    events = poll.poll(1000 * max(0.0, end - monotonic()))
    return [pending.pop(descriptor) for descriptor, _ in events]
