"""Where the admin listener is: `AdminListen`, and the keys that only one of its forms has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo

from shiftergw.config.values import HOST, base_directory

NO_LISTENER = "none"
"""The word for no admin listener."""

_MOST_PORT = 65535


@dataclass(frozen=True, slots=True)
class AdminAddress:
    """A UNIX socket at `path`, or a port of a `host`; with neither, there is no listener.

    If listening fails at an address that `is_default`, the gateway works without it.
    """

    path: Path | None = None
    host: str = ""
    port: int = 0
    is_default: bool = field(default=False, compare=False)

    def __bool__(self) -> bool:
        """Return whether there is a listener."""
        return self.path is not None or bool(self.host)

    def __str__(self) -> str:
        """Return the address as the configuration has it."""
        if self.path is not None:
            return str(self.path)
        return f"{self.host}:{self.port}" if self.host else NO_LISTENER


def _admin_address(value: Any, info: ValidationInfo) -> AdminAddress:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError('must be the path of a socket, "HOST:PORT", or "none"')
    if value == NO_LISTENER:
        return AdminAddress()
    if "/" in value:
        return AdminAddress(base_directory(info) / value)
    host, _, port = value.rpartition(":")
    if not HOST.fullmatch(value.lower()) or not host or not re.fullmatch("[0-9]{1,5}", port):
        raise ValueError('must be the path of a socket (with a /), "HOST:PORT", or "none"')
    if not 0 < int(port) <= _MOST_PORT:
        raise ValueError(f"must have a port of 1 to {_MOST_PORT}")
    return AdminAddress(host=host.lower(), port=int(port))


AdminListen = Annotated[AdminAddress, BeforeValidator(_admin_address)]
"""A path, a host and a port, or the word `none`."""


def admin_problems(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a problem for each key that a port lacks, or that only a port has."""
    address = document.get("AdminListen")
    is_port = isinstance(address, str) and "/" not in address and address != NO_LISTENER
    for key in ("AdminCertificate", "AdminTokenFile"):
        if is_port and document.get(key) is None:
            yield f"{key}: is required with a HOST:PORT in AdminListen, also of the loopback"
        if not is_port and document.get(key) is not None:
            yield f"{key}: has no meaning without a HOST:PORT in AdminListen: remove it"
    if document.get("AdminKey") is not None and document.get("AdminCertificate") is None:
        yield "AdminKey: needs AdminCertificate"
    if document.get("AdminGroup") is not None and (is_port or address == NO_LISTENER):
        yield "AdminGroup: has no meaning without a socket in AdminListen: remove it"
