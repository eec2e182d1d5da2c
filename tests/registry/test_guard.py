"""Addresses that no registry may send us to are known in every disguise."""

from __future__ import annotations

import pytest

from shiftergw.registry.guard import kind_of, kind_of_name


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("8.8.8.8", "global"),
        ("2001:4860:4860::8888", "global"),
        ("127.0.0.1", "loopback"),
        ("127.8.8.8", "loopback"),
        ("0.0.0.0", "loopback"),
        ("::", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("2002:7f00:1::", "loopback"),
        ("64:ff9b::7f00:1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("::ffff:169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("10.1.2.3", "private"),
        ("172.16.0.1", "private"),
        ("192.168.0.1", "private"),
        ("100.64.0.1", "private"),
        ("::ffff:10.1.2.3", "private"),
        ("fd00::1", "private"),
        ("224.0.0.1", "private"),
        ("ff02::1", "private"),
        ("240.0.0.1", "private"),
        ("255.255.255.255", "private"),
        ("::ffff:8.8.8.8", "global"),
        ("64:ff9b::808:808", "global"),
    ],
)
def test_kinds_of_addresses(address: str, kind: str) -> None:
    """Only unicast addresses of the public Internet are global."""
    assert kind_of(address) == kind


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("registry.example", None),
        ("8.8.8.8", "global"),
        ("127.1", "loopback"),
        ("0x7f000001", "loopback"),
        ("2130706433", "loopback"),
        ("017700000001", "loopback"),
        ("10.1", "private"),
        ("localhost", "loopback"),
        ("LOCALHOST.", "loopback"),
        ("x.localhost", "loopback"),
        ("metadata.google.internal", "private"),
        ("printer.local", "private"),
        ("notlocalhost", None),
    ],
)
def test_kinds_of_names(host: str, kind: str | None) -> None:
    """Local names, and addresses in the notations that resolvers take, are known by their text."""
    assert kind_of_name(host) == kind
