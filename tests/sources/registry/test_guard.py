"""Addresses that a registry may not redirect to are recognized in every notation."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from shiftergw.errors import RegistryUntrusted
from shiftergw.sources.registry.guard import READ_SIZE, GuardedEndpoint, kind_of, kind_of_name

real: Any = reactor


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
        ("2002:808:808::1", "global"),
        # Networks that look global, or hide an address.
        ("fec0::1", "private"),
        ("feff:ffff::1", "private"),
        ("fc00::1", "private"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("64:ff9b::a00:1", "private"),
        ("64:ff9b:1::808:808", "private"),
        ("64:ff9b:1::a9fe:a9fe", "private"),
        ("2002:a9fe:a9fe::1", "link-local"),
        ("2002:a00:1::1", "private"),
        ("2002:c058:6301::1", "private"),
        ("2001:0:808:808::", "private"),
        ("2001:0:808:808:0:0:5601:5601", "private"),
        ("2001:2::1", "private"),
        ("2001:10::1", "private"),
        ("2001:20::1", "private"),
        ("2001:db8::1", "private"),
        ("3fff::1", "private"),
        ("3fff:fff::1", "private"),
        ("3ffe::1", "global"),
        ("5f00::1", "private"),
        ("100::1", "private"),
        ("4000::1", "private"),
        ("1000::1", "private"),
        ("::10.0.0.1", "private"),
        ("::8.8.8.8", "private"),
        ("::ffff:0:127.0.0.1", "private"),
        ("0.1.2.3", "private"),
        ("192.0.0.1", "private"),
        ("192.0.2.1", "private"),
        ("192.88.99.1", "private"),
        ("198.18.0.1", "private"),
        ("198.51.100.1", "private"),
        ("203.0.113.1", "private"),
        ("100.127.255.255", "private"),
        ("100.128.0.1", "global"),
        ("172.32.0.1", "global"),
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
    """Local names, and addresses in the notations of resolvers, are recognized by their text."""
    assert kind_of_name(host) == kind


@pytest_twisted.ensureDeferred
async def test_much_is_read_at_once() -> None:
    """What has arrived comes in pieces of more than the 64 KiB of Twisted."""
    sizes: list[int] = []
    end: Deferred[None] = Deferred()

    class Sender(Protocol):
        def connectionMade(self) -> None:
            assert self.transport is not None
            self.transport.write(bytes(8 * READ_SIZE))
            self.transport.loseConnection()

    class Receiver(Protocol):
        def dataReceived(self, data: bytes) -> None:
            sizes.append(len(data))

        def connectionLost(self, *_: object) -> None:
            end.callback(None)

    listening = real.listenTCP(0, Factory.forProtocol(Sender), interface="127.0.0.1")
    try:
        endpoint = GuardedEndpoint(
            real,
            "127.0.0.1",
            listening.getHost().port,
            30,
            lambda _: True,
            lambda: RegistryUntrusted("No."),
        )
        protocol = await endpoint.connect(Factory.forProtocol(Receiver))
        assert protocol.transport.bufferSize == READ_SIZE
        await end
    finally:
        await listening.stopListening()
    assert sum(sizes) == 8 * READ_SIZE
    assert max(sizes) <= READ_SIZE
