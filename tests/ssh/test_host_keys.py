"""Host keys of a server are proven by signatures and compared with the known hosts."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.conch.ssh.common import NS
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import ServerFactory

from shiftergw.errors import DeliveryFailed
from shiftergw.ssh.ciphers import CIPHERS, MACS
from shiftergw.ssh.host_keys import LONGEST_KEY, Verdict, host_keys, judge
from shiftergw.ssh.known_hosts import KnownHosts, type_of
from tests.installed_reactor import reactor
from tests.parts import free_port, need
from tests.ssh.test_transport import VERSION, ScriptedServer, packet
from tests.sshd import Sshd, make_key, public


def blob(text: str) -> bytes:
    """Return the bytes of `TYPE BASE64`."""
    return base64.b64decode(text.split()[1])


@pytest.mark.parametrize(
    "kinds",
    [
        ["ed25519"],
        ["rsa:2048"],
        ["rsa:2048", "ed25519"],
        ["ecdsa:521", "ecdsa:256"],
        ["rsa:2048", "ecdsa:384", "ed25519"],
    ],
)
@pytest_twisted.ensureDeferred
async def test_every_key_of_a_server(kinds: Sequence[str]) -> None:
    """Each key of a server is found by one connection, without a login."""
    with Sshd(host_keys=kinds) as sshd:
        keys_found = await host_keys("127.0.0.1", sshd.port, reactor)
        assert set(keys_found) == {blob(public(sshd.host_key(kind))) for kind in kinds}
        log = sshd.log.read_text()
    # One connection fails for a server without a key of the best type.
    assert log.count("Connection from") == len(kinds) + ("ed25519" not in kinds)
    assert "user" not in log


@pytest_twisted.ensureDeferred
async def test_server_without_a_key_that_can_be_checked() -> None:
    """A server that signs with SHA-1 only raises an error with its algorithms."""
    with (
        Sshd("HostKeyAlgorithms ssh-rsa", host_keys=["rsa:2048"]) as sshd,
        pytest.raises(DeliveryFailed, match="no host key that can be checked") as excinfo,
    ):
        await host_keys("127.0.0.1", sshd.port, reactor)
    assert "ssh-rsa" in excinfo.value.detail


@pytest_twisted.ensureDeferred
async def test_server_without_a_key_exchange_in_common() -> None:
    """A server without a common key exchange method has an error of its own."""
    with (
        Sshd("KexAlgorithms diffie-hellman-group14-sha1") as sshd,
        pytest.raises(DeliveryFailed, match="no algorithm in common"),
    ):
        await host_keys("127.0.0.1", sshd.port, reactor)


@asynccontextmanager
async def saying(output: bytes) -> AsyncIterator[int]:
    """Serve this output; yield the port."""
    factory = ServerFactory()
    factory.protocol = type("Said", (ScriptedServer,), {"output": output})
    listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
    try:
        yield listening.getHost().port
    finally:
        await listening.stopListening()


async def refusal(output: bytes, seconds: float = 20) -> DeliveryFailed:
    """Return the error for a server with this output."""
    async with saying(output) as port:
        with pytest.raises(DeliveryFailed) as excinfo:
            await host_keys("127.0.0.1", port, reactor, seconds=seconds)
    return excinfo.value


def kexinit(host_keys_offered: bytes = b"ssh-ed25519") -> bytes:
    """Return a server's KEXINIT with these algorithms of host keys."""
    lists = [
        b"curve25519-sha256", host_keys_offered,
        CIPHERS[0], CIPHERS[0], MACS[0], MACS[0], b"none", b"none", b"", b"",
    ]  # fmt: skip
    return packet(20, bytes(16) + b"".join(map(NS, lists)) + bytes(5))


def answer(key: bytes) -> bytes:
    """Return a server's half of the key exchange with an invalid signature."""
    signature = NS(b"ssh-ed25519") + NS(bytes(64))
    return packet(31, NS(key) + NS(bytes(31) + b"\x09") + NS(signature))


@pytest_twisted.ensureDeferred
async def test_key_that_is_shown_without_a_proof(tmp_path: Path) -> None:
    """A key that the server cannot sign with is not reported."""
    key = blob(public(make_key(tmp_path / "host")))
    error = await refusal(VERSION + kexinit() + answer(key))
    assert "did not sign" in error.detail


@pytest_twisted.ensureDeferred
async def test_invalid_keys() -> None:
    """A key of another type than negotiated, or a too long one, ends the connection."""
    assert "did not sign" in (await refusal(VERSION + kexinit() + answer(b"x" * 50))).detail
    long = NS(b"ssh-ed25519") + bytes(LONGEST_KEY)
    assert "a host key of" in (await refusal(VERSION + kexinit() + answer(long))).detail


@pytest_twisted.ensureDeferred
async def test_silent_server() -> None:
    """The wait for a silent server has a limit, at the start and after its first lines."""
    for output in b"", VERSION, VERSION + kexinit():
        assert "does not answer" in (await refusal(output, seconds=0.3)).what


@pytest_twisted.ensureDeferred
async def test_server_of_another_kind() -> None:
    """The error for another kind of server quotes it in printable form."""
    assert "does not speak SSH" in (await refusal(b"HTTP/1.1 400 Bad Request\r\n" * 2000)).what
    error = await refusal(VERSION + kexinit(b"\x1b[2Jodd"))
    assert "no host key" in error.what
    assert r"\x1b[2Jodd" in error.detail
    assert error.detail.isprintable()


@pytest_twisted.ensureDeferred
async def test_unreachable_server() -> None:
    """A closed port and an unknown host name raise errors."""
    with pytest.raises(DeliveryFailed, match="cannot be reached"):
        await host_keys("127.0.0.1", free_port(), reactor)
    with pytest.raises(DeliveryFailed, match="has no address"):
        await host_keys("no-such-host.invalid", 22, reactor)


@pytest.mark.parametrize("early", [True, False])
@pytest_twisted.ensureDeferred
async def test_cancelled(early: bool) -> None:
    """Cancelling during connect or key exchange closes the connection."""
    connection_lost: Deferred[None] = Deferred()

    class Silent(ScriptedServer):
        def connectionMade(self) -> None:
            if early:  # the client does not know yet that it is connected
                asking.cancel()

        def dataReceived(self, data: bytes) -> None:
            asking.cancel()

        def connectionLost(self, reason: Any = None) -> None:
            connection_lost.callback(None)

    listening = reactor.listenTCP(0, ServerFactory.forProtocol(Silent), interface="127.0.0.1")
    port = listening.getHost().port
    asking = Deferred.fromCoroutine(host_keys("127.0.0.1", port, reactor))
    try:
        with pytest.raises(CancelledError):
            await asking
        await connection_lost
    finally:
        await listening.stopListening()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return public keys by name."""
    root = tmp_path_factory.mktemp("keys")
    kinds = {"ed": "ed25519", "ed2": "ed25519", "ec": "ecdsa", "rsa": "rsa"}
    return {name: public(make_key(root / name, kind)) for name, kind in kinds.items()}


@pytest.mark.parametrize(
    ("known_hosts", "key_names", "verdicts"),
    [
        ("", ["ed", "ec"], [Verdict.NEW, Verdict.NEW]),
        ("i {ed}", ["ed"], [Verdict.NEW]),
        ("h {ed}", ["ed"], [Verdict.KNOWN]),
        ("h {ed}", ["ed", "ec"], [Verdict.KNOWN, Verdict.NEW]),
        ("h {ed}", ["ed2"], [Verdict.CHANGED]),
        ("h {ed}", ["ed2", "ec"], [Verdict.CHANGED, Verdict.CHANGED]),
        ("h {ed}", ["ec"], [Verdict.CHANGED]),
        ("h {ed}\nh {rsa}", ["ed2", "ec", "rsa"], [Verdict.CHANGED, Verdict.NEW, Verdict.KNOWN]),
        ("h {ed}\nh {ed2}", ["ed2"], [Verdict.KNOWN]),
        ("@revoked * {ed}", ["ed", "ec"], [Verdict.REVOKED, Verdict.NEW]),
        ("h {ed}\n@revoked h {ed}", ["ed"], [Verdict.REVOKED]),
        ("@revoked i {ed}", ["ed"], [Verdict.NEW]),
        ("@cert-authority h {rsa}", ["ed"], [Verdict.NEW]),
    ],
)
def test_verdicts(
    keys: dict[str, str], known_hosts: str, key_names: Sequence[str], verdicts: Sequence[Verdict]
) -> None:
    """A key is new only if no known key contradicts it."""
    blobs = [blob(keys[name]) for name in key_names]
    keys_found = judge("h", 22, blobs, KnownHosts(known_hosts.format(**keys), "list"))
    assert [key.blob for key in keys_found] == blobs
    assert [key.verdict for key in keys_found] == verdicts


def test_lines_that_contradict_a_key(keys: dict[str, str]) -> None:
    """A bad verdict names the lines of the file that cause it."""
    known_hosts = KnownHosts("# a comment\nh {ed}\n\n@revoked * {ec}".format(**keys), "list")
    changed_key, revoked_key = judge("h", 22, [blob(keys["ed2"]), blob(keys["ec"])], known_hosts)
    assert [line.place for line in changed_key.lines] == ["list, line 2"]
    assert [line.place for line in revoked_key.lines] == ["list, line 4"]
    assert type_of(changed_key.lines[0].blob) == b"ssh-ed25519"


def test_hashed_lines(keys: dict[str, str], tmp_path: Path) -> None:
    """Hashed names are recognized, for known and for changed keys."""
    path = tmp_path / "known_hosts"
    path.write_text(f"[h]:2222 {keys['ed']}\n")
    subprocess.run([need("ssh-keygen"), "-q", "-H", "-f", os.fspath(path)], check=True)
    assert "2222" not in path.read_text()
    known_hosts = KnownHosts.read([path], must_exist=True)
    for name, verdict in ("ed", Verdict.KNOWN), ("ed2", Verdict.CHANGED):
        (keys_found,) = judge("H", 2222, [blob(keys[name])], known_hosts)
        assert keys_found.verdict == verdict
    (keys_found,) = judge("h", 22, [blob(keys["ed"])], known_hosts)
    assert keys_found.verdict == Verdict.NEW
