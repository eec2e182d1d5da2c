"""Which host keys a server holds, and what is to be thought of them.

It is asked for its keys one kind at a time, by a key exchange without a login: the signature proves
that it holds the key that it shows. Whose server it is that does not prove; a person must compare
fingerprints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.channel import no_answer
from shiftergw.plumbing.timing import shielded, within
from shiftergw.ssh.channels import Channels
from shiftergw.ssh.connection import CONNECT_SECONDS, close, reach
from shiftergw.ssh.kex import broken_protocol
from shiftergw.ssh.known_hosts import SIGNATURES, KnownHosts, KnownHostsLine, type_of
from shiftergw.ssh.login import SshLogin
from shiftergw.ssh.transport import SshTransport

LONGEST_KEY = 8 << 10
"""Bytes of a host key; RSA with 16384 bits has a quarter of it."""


class Verdict(StrEnum):
    """What known hosts say of a key that a server has shown."""

    KNOWN = "known already"
    NEW = "new"
    CHANGED = "another key is known"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Judged:
    """A key that a server holds; `lines` are those that make it changed or revoked."""

    blob: bytes
    verdict: Verdict
    lines: Sequence[KnownHostsLine] = ()


def judged(host: str, port: int, blobs: Sequence[bytes], known: KnownHosts) -> list[Judged]:
    """Return what the known hosts say of all the keys that a server has shown.

    A key is new only where its host is not known by another one of its type, and not by keys that
    it has not shown now: somebody who answers in its place would have a new key, too.
    """
    lines = known.keys(host, port)
    proven = not lines or any(line.blob in blobs for line in lines)
    found = []
    for blob in blobs:
        others = [line for line in lines if type_of(line.blob) == type_of(blob) or not proven]
        if revoking := known.revoking(host, port, blob):
            found.append(Judged(blob, Verdict.REVOKED, revoking))
        elif any(line.blob == blob for line in lines):
            found.append(Judged(blob, Verdict.KNOWN))
        elif others:
            found.append(Judged(blob, Verdict.CHANGED, others))
        else:
            found.append(Judged(blob, Verdict.NEW))
    return found


class _AnyKey:
    """In the place of known hosts: takes any key that signs with these algorithms; keeps it."""

    def __init__(self, algorithms: Sequence[bytes]) -> None:
        self._algorithms = list(algorithms)
        self.blob = b""

    def algorithms(self, host: str, port: int) -> list[bytes]:  # noqa: ARG002 - as others
        return self._algorithms

    def check(self, host: str, port: int, blob: bytes) -> None:  # noqa: ARG002 - as others
        if len(blob) > LONGEST_KEY:
            raise broken_protocol(f"a host key of {len(blob)} bytes")
        self.blob = blob


class _Lacking(DeliveryFailed):
    """The server has no key of this kind."""


class _KeyProbe(SshTransport):
    """A connection that is done once the server has signed with a key of one kind."""

    def __init__(self, host: str, port: int, algorithms: Sequence[bytes]) -> None:
        self.key = _AnyKey(algorithms)
        self.login = SshLogin("", (), Channels())  # never begun
        self.offered: Sequence[bytes] = ()
        super().__init__(host, port, self.key, self.login)

    def _choose(self, offered: list[list[bytes]]) -> None:
        self.offered = offered[1]
        if not set(self.key.algorithms("", 0)) & set(self.offered):
            raise _Lacking("The server has no host key of this kind.")
        super()._choose(offered)

    def connectionSecure(self) -> None:
        # Only now the signature has been checked.
        self.login.done.callback(None)


async def host_keys(
    host: str, port: int, reactor: Any, *, seconds: float = CONNECT_SECONDS
) -> list[bytes]:
    """Return the keys that a server has proven to hold, by one connection for each of its kinds.

    `seconds` is the limit of each. Raises `DeliveryFailed`: not reachable, too slow, no SSH, no key
    that we can check. Cancellable.
    """
    found: list[bytes] = []
    offered: Sequence[bytes] | None = None
    for algorithms in SIGNATURES.values():
        if offered is not None and not set(algorithms) & set(offered):
            continue
        question = _KeyProbe(host, port, algorithms)
        try:
            await within(seconds, reactor, _ask(question, host, port, reactor), no_answer)
            found.append(question.key.blob)
        except _Lacking:
            pass
        offered = question.offered
    if not found:
        raise DeliveryFailed(
            "The system's SSH server has no host key that can be checked here.",
            detail=f"it offers {printable(b','.join(offered or ()), 200)}",
        )
    return found


async def _ask(question: _KeyProbe, host: str, port: int, reactor: Any) -> None:
    await reach(host, port, question, reactor)
    try:
        await question.login.done
    except BaseException:
        question.fail(DeliveryFailed("The question did not come to its end."))
        await shielded(question.ended())
        raise
    await close(question, reactor)
