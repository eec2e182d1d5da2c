"""Fetch the host keys of a server, and compare them with the known hosts.

One connection per key type runs a key exchange without a login. The signature of the server proves
that it holds the key, but not whose server it is: a person must compare the fingerprints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.channel import no_answer
from shiftergw.plumbing.timing import shield, within
from shiftergw.ssh.channels import Channels
from shiftergw.ssh.connection import CONNECT_SECONDS, close, reach
from shiftergw.ssh.kex import broken_protocol
from shiftergw.ssh.known_hosts import SIGNATURES, KnownHosts, KnownHostsLine, type_of
from shiftergw.ssh.login import SshLogin
from shiftergw.ssh.transport import SshTransport

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

LONGEST_KEY = 8 << 10
"""Bytes of a host key; an RSA key of 16,384 bits has a quarter of that."""


class Verdict(StrEnum):
    """How a key of a server compares with the known hosts."""

    KNOWN = "known already"
    NEW = "new"
    CHANGED = "another key is known"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class JudgedKey:
    """A key of a server with its verdict; `lines` contradict or revoke it."""

    blob: bytes
    verdict: Verdict
    lines: Sequence[KnownHostsLine] = ()


def judge(host: str, port: int, blobs: Sequence[bytes], known_hosts: KnownHosts) -> list[JudgedKey]:
    """Compare all keys that a server has shown with the known hosts.

    A key is new only if no other key of its type is known for the host, and if the host has shown
    one of its known keys or has none. An impostor would show a new key, too.
    """
    lines = known_hosts.keys(host, port)
    is_host_proven = not lines or any(line.blob in blobs for line in lines)
    keys = []
    for blob in blobs:
        contradictions = [
            line for line in lines if type_of(line.blob) == type_of(blob) or not is_host_proven
        ]
        if revoking := known_hosts.revoking(host, port, blob):
            keys.append(JudgedKey(blob, Verdict.REVOKED, revoking))
        elif any(line.blob == blob for line in lines):
            keys.append(JudgedKey(blob, Verdict.KNOWN))
        elif contradictions:
            keys.append(JudgedKey(blob, Verdict.CHANGED, contradictions))
        else:
            keys.append(JudgedKey(blob, Verdict.NEW))
    return keys


class _AnyKey:
    """A stand-in for known hosts that accepts and stores any key of these algorithms."""

    def __init__(self, algorithms: Sequence[bytes]) -> None:
        self._algorithms = list(algorithms)
        self.blob = b""

    def algorithms(self, host: str, port: int) -> list[bytes]:  # noqa: ARG002 - as others
        return self._algorithms

    def check(self, host: str, port: int, blob: bytes) -> None:  # noqa: ARG002 - as others
        if len(blob) > LONGEST_KEY:
            raise broken_protocol(f"a host key of {len(blob)} bytes")
        self.blob = blob


class _NoSuchKey(DeliveryFailed):
    """The server has no key of this type."""


class _KeyProbe(SshTransport):
    """A connection that ends once the server has signed with a key of one type."""

    def __init__(self, host: str, port: int, algorithms: Sequence[bytes]) -> None:
        self.key = _AnyKey(algorithms)
        self.login = SshLogin("", (), Channels())  # never started
        self.offered_algorithms: Sequence[bytes] = ()
        super().__init__(host, port, self.key, self.login)

    def _choose(self, server_lists: list[list[bytes]]) -> None:
        self.offered_algorithms = server_lists[1]
        if not set(self.key.algorithms("", 0)) & set(self.offered_algorithms):
            raise _NoSuchKey("The server has no host key of this kind.")
        super()._choose(server_lists)

    def connectionSecure(self) -> None:
        # The signature is checked only now.
        self.login.done.callback(None)


async def host_keys(
    host: str, port: int, reactor: Reactor, *, seconds: float = CONNECT_SECONDS
) -> list[bytes]:
    """Return the host keys that a server has proven to hold, using one connection per key type.

    `seconds` limits each connection. Raises `DeliveryFailed`: unreachable, too slow, not SSH, no
    supported key. Cancellable.
    """
    keys: list[bytes] = []
    offered_algorithms: Sequence[bytes] | None = None
    for algorithms in SIGNATURES.values():
        if offered_algorithms is not None and not set(algorithms) & set(offered_algorithms):
            continue
        probe = _KeyProbe(host, port, algorithms)
        try:
            await within(seconds, reactor, _run(probe, host, port, reactor), no_answer)
            keys.append(probe.key.blob)
        except _NoSuchKey:
            pass
        offered_algorithms = probe.offered_algorithms
    if not keys:
        raise DeliveryFailed(
            "The system's SSH server has no host key that can be checked here.",
            detail=f"it offers {printable(b','.join(offered_algorithms or ()), 200)}",
        )
    return keys


async def _run(probe: _KeyProbe, host: str, port: int, reactor: Reactor) -> None:
    await reach(host, port, probe, reactor)
    try:
        await probe.login.done
    except BaseException:
        probe.fail(DeliveryFailed("The probe was interrupted."))
        await shield(probe.wait_for_end())
        raise
    await close(probe, reactor)
