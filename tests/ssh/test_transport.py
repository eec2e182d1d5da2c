"""The transport: algorithms, host keys, rekeying, and protocol errors."""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from pathlib import Path

import pytest
import pytest_twisted
from twisted.conch.ssh.common import NS
from twisted.internet.protocol import Protocol, ServerFactory

from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.threads import Threads
from shiftergw.ssh.channels import Channels
from shiftergw.ssh.ciphers import CIPHERS, MACS
from shiftergw.ssh.connection import SshAccount, connect
from shiftergw.ssh.kex import STRICT_SERVER
from shiftergw.ssh.known_hosts import KnownHosts, fingerprint
from shiftergw.ssh.login import SshLogin
from shiftergw.ssh.transport import SshTransport
from tests.delivery.conch_client import open_connection, refusal, run
from tests.installed_reactor import reactor
from tests.sshd import Sshd, make_key, public

CONTENT = os.urandom(3_000_001)

RIGHT = [f"{cipher} {mac}" for cipher in ("aes128-ctr", "aes192-ctr", "aes256-ctr")
         for mac in ("hmac-sha2-256", "hmac-sha2-512")]  # fmt: skip


@pytest.mark.parametrize(
    "pair", [*RIGHT, "aes128-gcm@openssh.com hmac-sha2-512", "aes256-gcm@openssh.com hmac-sha1"]
)
@pytest_twisted.ensureDeferred
async def test_ciphers(threads: Threads, pair: str) -> None:
    """Each cipher and MAC that we offer carries data both ways; GCM needs no MAC in common."""
    cipher, mac = pair.split()
    with Sshd(f"Ciphers {cipher}", f"MACs {mac}") as sshd:
        async with open_connection(sshd, threads) as connection:
            assert cipher in connection.ciphers
            assert await run(connection, "cat", stdin=CONTENT) == (0, CONTENT)


def test_all_ciphers_are_tested() -> None:
    """The test above covers every cipher and MAC that we offer."""
    names = {name.decode() for name in (*CIPHERS, *MACS)}
    assert names == {*" ".join(RIGHT).split(), "aes128-gcm@openssh.com", "aes256-gcm@openssh.com"}


@pytest_twisted.ensureDeferred
async def test_fastest_cipher_is_chosen(threads: Threads) -> None:
    """With a default server, the fastest cipher is used in both directions."""
    with Sshd() as sshd:
        async with open_connection(sshd, threads) as connection:
            assert connection.ciphers == "aes128-gcm@openssh.com / aes128-gcm@openssh.com"


@pytest.mark.parametrize(
    "name", ["curve25519-sha256", "ecdh-sha2-nistp256", "ecdh-sha2-nistp384", "ecdh-sha2-nistp521"]
)
@pytest_twisted.ensureDeferred
async def test_key_exchanges(threads: Threads, name: str) -> None:
    """Each key exchange that we offer leads to a connection."""
    with Sshd(f"KexAlgorithms {name}") as sshd:
        async with open_connection(sshd, threads) as connection:
            assert (await run(connection, "true"))[0] == 0


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("Ciphers chacha20-poly1305@openssh.com", "chacha20"),
        ("Ciphers aes128-ctr\nMACs hmac-sha2-256-etm@openssh.com", "hmac-sha2-256-etm"),
        ("KexAlgorithms diffie-hellman-group14-sha1", "group14-sha1"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_nothing_in_common(threads: Threads, setting: str, what: str) -> None:
    """A server without a common safe algorithm is refused; the error names its algorithms."""
    with Sshd(setting) as sshd:
        error = await refusal(sshd, threads)
    assert "no algorithm in common" in error.what
    assert what in error.detail


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa:256", "ecdsa:384", "ecdsa:521", "rsa:2048"])
@pytest_twisted.ensureDeferred
async def test_host_keys(threads: Threads, kind: str) -> None:
    """Known host keys of each type are accepted, and other keys refused."""
    with Sshd(host_keys=[kind]) as sshd:
        async with open_connection(sshd, threads) as connection:
            assert (await run(connection, "true"))[0] == 0
        line = f"[127.0.0.1]:{sshd.port} {public(make_key(sshd.root / 'other'))}\n"
        sshd.known_hosts.write_text(line)
        assert "has changed" in (await refusal(sshd, threads)).what


@pytest.mark.parametrize("algorithm", ["rsa-sha2-256", "rsa-sha2-512"])
@pytest_twisted.ensureDeferred
async def test_rsa_host_key_with_sha2(threads: Threads, algorithm: str) -> None:
    """An RSA host key may sign with either SHA-2 variant."""
    with Sshd(f"HostKeyAlgorithms {algorithm}", host_keys=["rsa:2048"]) as sshd:
        async with open_connection(sshd, threads) as connection:
            assert (await run(connection, "true"))[0] == 0


@pytest_twisted.ensureDeferred
async def test_rsa_host_key_with_sha1(threads: Threads) -> None:
    """A known RSA host key that signs with SHA-1 only is refused."""
    with Sshd("HostKeyAlgorithms ssh-rsa", host_keys=["rsa:2048"]) as sshd:
        error = await refusal(sshd, threads)
    assert "no algorithm in common" in error.what
    assert "ssh-rsa" in error.detail


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa:384", "rsa:2048"])
@pytest_twisted.ensureDeferred
async def test_server_with_several_keys(threads: Threads, kind: str) -> None:
    """A server with several keys is asked for a known key."""
    with Sshd(host_keys=["rsa:2048", "ecdsa:384", "ed25519"]) as sshd:
        known_hosts = f"[127.0.0.1]:{sshd.port} {public(sshd.host_key(kind))}\n"
        sshd.known_hosts.write_text(known_hosts)
        async with open_connection(sshd, threads) as connection:
            assert (await run(connection, "true"))[0] == 0


@pytest_twisted.ensureDeferred
async def test_unknown_and_revoked_host_keys(threads: Threads) -> None:
    """Unknown and revoked keys are refused by errors with the fingerprint."""
    with Sshd() as sshd:
        line = sshd.known_hosts.read_text()
        shown_fingerprint = fingerprint(_blob(public(sshd.host_key("ed25519"))))
        for text, what in ("", "is not known"), (f"{line}@revoked {line}", "has been revoked"):
            sshd.known_hosts.write_text(text)
            error = await refusal(sshd, threads)
            assert what in error.what
            assert shown_fingerprint in error.detail
            assert sshd.known_hosts.read_text() == text
        assert "Accepted" not in sshd.log.read_text()


def _blob(key: str) -> bytes:
    return base64.b64decode(key.split()[1])


@pytest_twisted.ensureDeferred
async def test_server_asks_for_new_keys(threads: Threads) -> None:
    """Rekeying by the server in the middle of streams loses no bytes."""
    content = os.urandom(16 << 20)
    for cipher in "aes128-gcm@openssh.com", "aes128-ctr":
        with Sshd("RekeyLimit 1M", f"Ciphers {cipher}", "LogLevel DEBUG1") as sshd:
            async with open_connection(sshd, threads) as connection:
                status, output = await run(connection, "cat", stdin=content)
            assert (status, hashlib.sha256(output).digest()) == (
                0,
                hashlib.sha256(content).digest(),
            )
            assert sshd.log.read_text().count("SSH2_MSG_NEWKEYS received") > 5


@pytest_twisted.ensureDeferred
async def test_we_ask_for_new_keys(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client starts a rekeying after much sent data, and no bytes are lost."""
    monkeypatch.setattr(SshTransport, "rekey_bytes", 1 << 20)
    content = os.urandom(8 << 20)
    with Sshd("LogLevel DEBUG1") as sshd:
        async with open_connection(sshd, threads) as connection:
            assert await run(connection, "cat", stdin=content) == (0, content)
        assert sshd.log.read_text().count("SSH2_MSG_NEWKEYS received") > 5


@pytest_twisted.ensureDeferred
async def test_strict_key_exchange(threads: Threads) -> None:
    """With OpenSSH the strict key exchange is used, which prevents CVE-2023-48795."""
    with Sshd("LogLevel DEBUG3") as sshd:
        async with open_connection(sshd, threads):
            pass
        assert "will use strict KEX ordering" in sshd.log.read_text()


class ScriptedServer(Protocol):
    """A server that sends a fixed output and ignores its input."""

    output = b""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self.output)


async def failure_text(output: bytes, threads: Threads, tmp_path: Path, seconds: float = 10) -> str:
    """Return the error of a connection to a server with this output."""
    key = tmp_path / "id"
    if not key.exists():
        make_key(key)
    known_hosts = tmp_path / "known_hosts"
    known_hosts.touch()
    factory = ServerFactory.forProtocol(ScriptedServer)
    factory.protocol = type("Said", (ScriptedServer,), {"output": output})
    listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
    try:
        port = listening.getHost().port
        with pytest.raises(DeliveryFailed) as excinfo:
            await connect(
                SshAccount("127.0.0.1", port, "u", key=key, known_hosts=known_hosts),
                reactor,
                threads,
                connect_seconds=seconds,
            )
    finally:
        await listening.stopListening()
    return f"{excinfo.value.what} {excinfo.value.detail}"


def packet(kind: int, payload: bytes = b"") -> bytes:
    """Return a plain packet, as before the first key exchange."""
    padding = 8 - (6 + len(payload)) % 8 + 8
    head = struct.pack(">LBB", 2 + len(payload) + padding, padding, kind)
    return head + payload + bytes(padding)


def kexinit(*extra: bytes) -> bytes:
    """Return a server's KEXINIT that agrees with ours."""
    lists = [
        b",".join((b"curve25519-sha256", *extra)), b"ssh-ed25519",
        CIPHERS[0], CIPHERS[0], MACS[0], MACS[0], b"none", b"none", b"", b"",
    ]  # fmt: skip
    return packet(20, bytes(16) + b"".join(map(NS, lists)) + bytes(5))


VERSION = b"SSH-2.0-Test\r\n"

NONSENSE = [
    b"HTTP/1.1 400 Bad Request\r\n" * 2000,
    b"SSH-1.5-old\n",
    b"SSH-\n",
    VERSION + bytes(100),
    VERSION + b"\xff" * 100,
    VERSION + struct.pack(">LBB", 12, 200, 20) + bytes(10),
    VERSION + packet(20),
    VERSION + packet(20, b"\xff" * 30),
    VERSION + packet(21),
    VERSION + packet(31, bytes(20)),
    VERSION + packet(6, NS(b"ssh-userauth")),
    VERSION + packet(52),
    VERSION + packet(94, bytes(20)),
    VERSION + kexinit() + packet(21),
    VERSION + kexinit() + kexinit(),
    VERSION + kexinit() + packet(31, NS(b"") * 3),
    VERSION + kexinit() + packet(31, b"\xff" * 50),
    VERSION + packet(2, NS(b"")) + kexinit(STRICT_SERVER),
    VERSION + kexinit(STRICT_SERVER) + packet(2, NS(b"")),
    VERSION + kexinit(STRICT_SERVER) + packet(7, bytes(4)),
]


@pytest.mark.parametrize("number", range(len(NONSENSE)))
@pytest_twisted.ensureDeferred
async def test_nonsense(threads: Threads, tmp_path: Path, number: int) -> None:
    """A server that violates the protocol fails at once, without a traceback."""
    output = await failure_text(NONSENSE[number], threads, tmp_path)
    assert "SSH" in output or "host key" in output
    assert "not answer" not in output


@pytest_twisted.ensureDeferred
async def test_a_message_injected_into_the_strict_key_exchange(
    threads: Threads, tmp_path: Path
) -> None:
    """A message injected before or within a strict key exchange ends the connection."""
    ignore_packet = packet(2, NS(b""))
    within = await failure_text(VERSION + kexinit(STRICT_SERVER) + ignore_packet, threads, tmp_path)
    assert "within the first key exchange" in within
    before = await failure_text(VERSION + ignore_packet + kexinit(STRICT_SERVER), threads, tmp_path)
    assert "before the first key exchange" in before


@pytest_twisted.ensureDeferred
async def test_lines_before_the_version(threads: Threads, tmp_path: Path) -> None:
    """A server may send lines before its version."""
    output = await failure_text(b"Welcome\r\nto SSH\r\n" + VERSION + packet(21), threads, tmp_path)
    assert "new keys out of turn" in output


@pytest_twisted.ensureDeferred
async def test_server_that_says_nothing(threads: Threads, tmp_path: Path) -> None:
    """A silent server fails within the time limit."""
    assert "does not answer" in await failure_text(b"", threads, tmp_path, seconds=0.3)


@pytest_twisted.ensureDeferred
async def test_host_key_that_did_not_sign(threads: Threads, tmp_path: Path) -> None:
    """A server that shows a known host key without a valid signature is refused."""
    host = make_key(tmp_path / "host")
    blob = _blob(public(host))
    half = bytes(31) + b"\x09"
    signature = NS(b"ssh-ed25519") + NS(bytes(64))
    answer = packet(31, NS(blob) + NS(half) + NS(signature))
    factory = ServerFactory()
    factory.protocol = type("Said", (ScriptedServer,), {"output": VERSION + kexinit() + answer})
    listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
    port = listening.getHost().port
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {public(host)}\n")
    KnownHosts.read([known_hosts], must_exist=True).check("127.0.0.1", port, blob)
    key = make_key(tmp_path / "id")
    try:
        with pytest.raises(DeliveryFailed) as excinfo:
            await connect(
                SshAccount("127.0.0.1", port, "u", key, None, known_hosts), reactor, threads
            )
    finally:
        await listening.stopListening()
    assert "did not sign" in excinfo.value.detail


def test_service_that_was_not_asked_for() -> None:
    """A server cannot restart the login after its end."""
    channels = Channels()
    transport = SshTransport("h", 22, KnownHosts("", "nowhere"), SshLogin("u", (), channels))
    transport.instance = transport.service = channels
    with pytest.raises(DeliveryFailed):
        transport.ssh_SERVICE_ACCEPT(NS(channels.name))
