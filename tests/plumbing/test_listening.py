"""Errors of listening come with a remedy."""

from __future__ import annotations

import errno
import os

import pytest
from twisted.internet.error import CannotListenError

from shiftergw.plumbing.listening import remedy


@pytest.mark.parametrize(
    ("port", "number", "words"),
    [
        (80, errno.EACCES, ("another port", "a proxy", "AmbientCapabilities=CAP_NET_BIND_SERVICE")),
        (443, errno.EPERM, ("CapabilityBoundingSet",)),
        (5000, errno.EACCES, ("gateway's user",)),
        ("/run/gateway.socket", errno.EACCES, ("gateway's user",)),
        (5000, errno.EADDRINUSE, ("End what listens there",)),
        (5000, errno.EADDRNOTAVAIL, ("no such address",)),
        (5000, errno.EAFNOSUPPORT, ("Change Listen",)),
    ],
)
def test_each_reason_has_its_remedy(port: int | str, number: int, words: tuple[str, ...]) -> None:
    """The remedy depends on the reason."""
    text = remedy(CannotListenError("127.0.0.1", port, OSError(number, os.strerror(number))))
    for word in words:
        assert word in text
    assert ("CAP_NET_BIND_SERVICE" in text) == (port in {80, 443})


def test_a_reason_without_a_number() -> None:
    """A reason that is only text has a general remedy."""
    assert remedy(CannotListenError("", 5000, "odd")) == "Change Listen."
