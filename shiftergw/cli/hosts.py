"""Check the names and addresses of hosts in URLs that users write."""

from __future__ import annotations

import ipaddress
import re

_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*\.?", re.IGNORECASE)
"""A host name by RFC 1123, section 2.1; Twisted connects to no others."""


def is_host(text: str) -> bool:
    """Return whether a text is a host name or an IP address, without brackets and port.

    A name may have letters beyond ASCII (IDNA), an IPv6 address may have a zone (`fe80::1%eth0`).
    """
    if ":" in text:
        address, _, zone = text.partition("%")
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            return False
        return "%" not in text or re.fullmatch("[A-Za-z0-9._~-]+", zone) is not None
    try:
        name = text.encode("idna").decode("ascii")
    except UnicodeError:
        return False
    return _NAME.fullmatch(name) is not None
