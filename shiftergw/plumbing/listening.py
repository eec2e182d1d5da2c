"""Why nobody can listen somewhere, and what to do about it."""

from __future__ import annotations

import errno

from twisted.internet.error import CannotListenError

PRIVILEGED = 1024
"""Ports below need a privilege, unless the machine's `ip_unprivileged_port_start` says less."""


def remedy(error: CannotListenError) -> str:
    """Return what whoever set the key `Listen` can do."""
    number = getattr(error.socketError, "errno", None)
    if number == errno.EADDRINUSE:
        return "End what listens there, or change Listen."
    if number == errno.EADDRNOTAVAIL:
        return "This machine has no such address: change the interface in Listen."
    if number in {errno.EACCES, errno.EPERM}:
        if isinstance(error.port, int) and error.port < PRIVILEGED:
            return (
                f"Ports below {PRIVILEGED} are not for every user. Set Listen to another port; or"
                " have a proxy listen there, and pass on to the gateway; or give the gateway's unit"
                " AmbientCapabilities=CAP_NET_BIND_SERVICE, and the same in CapabilityBoundingSet=."
            )
        return "Let the gateway's user listen there, or change Listen."
    return "Change Listen."
