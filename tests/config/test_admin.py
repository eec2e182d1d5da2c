"""Where the admin listener is, and which keys belong to each form of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shiftergw.config.admin import AdminAddress
from shiftergw.errors import ConfigurationError
from tests.configurations import BASE, load_config

TLS = {"AdminCertificate": "admin.pem", "AdminTokenFile": "admin.token"}


@pytest.mark.parametrize(
    ("changes", "address"),
    [
        ({}, AdminAddress(Path("/var/lib/shiftergw/admin.sock"))),
        ({"StateDirectory": "/srv"}, AdminAddress(Path("/srv/admin.sock"))),
        ({"AdminListen": "run/admin"}, AdminAddress(BASE / "run/admin")),
        ({"AdminListen": "none"}, AdminAddress()),
        ({"AdminListen": "127.0.0.1:9190", **TLS}, AdminAddress(host="127.0.0.1", port=9190)),
        ({"AdminListen": "[::1]:65535", **TLS}, AdminAddress(host="[::1]", port=65535)),
    ],
)
def test_addresses(changes: dict[str, Any], address: AdminAddress) -> None:
    """By default the listener is a socket in StateDirectory; it may be elsewhere, or not at all."""
    assert load_config(changes).config.admin_listen == address
    assert bool(address) == (changes.get("AdminListen") != "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AdminListen": "tcp:9190", **TLS}, ""),
        ({"AdminListen": "9190", **TLS}, "AdminListen: must be the path of a socket (with a /)"),
        ({"AdminListen": ":9190", **TLS}, "AdminListen: must be the path of a socket (with a /)"),
        ({"AdminListen": "host", **TLS}, "AdminListen: must be the path of a socket (with a /)"),
        ({"AdminListen": "", **TLS}, 'AdminListen: must be the path of a socket, "HOST:PORT"'),
        ({"AdminListen": "h:0", **TLS}, "AdminListen: must have a port of 1 to 65535"),
        ({"AdminListen": "h:65536", **TLS}, "AdminListen: must have a port of 1 to 65535"),
        ({"AdminListen": "127.0.0.1:9190"}, "AdminTokenFile: is required with a HOST:PORT"),
        ({"AdminListen": "127.0.0.1:9190"}, "AdminCertificate: is required with a HOST:PORT"),
        (TLS, "AdminTokenFile: has no meaning without a HOST:PORT"),
        ({"AdminListen": "h:1", "AdminKey": "k"}, "AdminKey: needs AdminCertificate"),
        ({"AdminListen": "none", "AdminGroup": "g"}, "AdminGroup: has no meaning without"),
    ],
)
def test_problems(changes: dict[str, Any], message: str) -> None:
    """A port needs TLS and a token, also on the loopback; keys without effect are refused."""
    if not message:
        assert load_config(changes).config.admin_listen.host == "tcp"
        return
    with pytest.raises(ConfigurationError) as caught:
        load_config(changes)
    assert message in str(caught.value)


def test_the_text_of_an_address() -> None:
    """An address is shown as the configuration has it."""
    addresses = [AdminAddress(Path("/a")), AdminAddress(host="h", port=1), AdminAddress()]
    assert [*map(str, addresses)] == ["/a", "h:1", "none"]
