"""How the gateway logs in: with keys, one after the other (RFC 4252, RFC 8308, RFC 8332)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.conch.ssh.common import NS, getNS
from twisted.conch.ssh.service import SSHService
from twisted.internet.defer import Deferred

from shiftergw.errors import DeliveryFailed, printable
from shiftergw.ssh.kex import broken_protocol
from shiftergw.ssh.known_hosts import SIGNATURES, fingerprint, type_of

if TYPE_CHECKING:
    from shiftergw.ssh.keys import Signer

_REQUEST, _FAILURE, _SUCCESS, _BANNER, _KEY_OK = 50, 51, 52, 53, 60
_METHOD = b"publickey"

MOST_BANNER_BYTES = 1 << 20
"""Bytes of all banners of a login, at most."""

_BANNER_OVERHEAD = 64  # bytes that even an empty banner counts


@dataclass(frozen=True)
class _Answer:
    kind: int
    body: bytes


class SshLogin(SSHService):
    """Logs `user` in and then starts `service`; `done` tells the end, or why not."""

    name = b"ssh-userauth"
    transport: Any

    def __init__(self, user: str, signers: Sequence[Signer], service: SSHService) -> None:
        """Try these keys in their order."""
        self._user = user
        self._signers = signers
        self._service = service
        self._answer: Deferred[_Answer] | None = None
        self._running: Deferred[None] | None = None
        self._banner = ""
        self._banner_bytes = 0
        self.done: Deferred[None] = Deferred(lambda _: self._stop())

    def serviceStarted(self) -> None:
        self._running = Deferred.fromCoroutine(self._log_in())
        self._running.addCallbacks(self._finished, self.failed)

    def serviceStopped(self) -> None:
        """Leave the end to who lost the connection."""

    def packetReceived(self, messageNum: int, packet: bytes) -> None:  # noqa: N803
        if messageNum == _BANNER:
            self._take_banner(getNS(packet)[0])
            return
        waiting, self._answer = self._answer, None
        if waiting is None or messageNum not in {_FAILURE, _SUCCESS, _KEY_OK}:
            raise broken_protocol(f"message {messageNum} during the login")
        if messageNum == _SUCCESS:
            # What follows in the same segment is the next service's already.
            self.transport.setService(self._service)
        waiting.callback(_Answer(messageNum, packet))

    def _take_banner(self, banner: bytes) -> None:
        self._banner_bytes += _BANNER_OVERHEAD + len(banner)
        if self._banner_bytes > MOST_BANNER_BYTES:
            raise broken_protocol("banners without end during the login")
        self._banner = printable(banner.strip())

    def _stop(self) -> None:
        if self._running is not None:
            self._running.cancel()

    def _finished(self, _: None) -> None:
        if not self.done.called:
            self.done.callback(None)

    def failed(self, why: Any) -> None:
        """Let `done` fail unless it is known already."""
        if not self.done.called:
            self.done.errback(why)

    async def _log_in(self) -> None:
        methods = b""
        for signer in self._signers:
            for algorithm in self._algorithms(type_of(signer.blob)):
                answer = await self._try(signer, algorithm)
                if answer.kind == _SUCCESS:
                    return
                methods, partial = getNS(answer.body)
                if partial[:1] == b"\1":
                    raise self._refused("accepts the gateway's key, but asks for more", methods)
        if methods and _METHOD not in methods.split(b","):
            raise self._refused("does not let this user in with a key", methods)
        raise self._refused("does not accept the gateway's key, or not for this user", methods)

    def _algorithms(self, kind: bytes) -> list[bytes]:
        """Return how to sign with a key of this type, by what the server says it takes."""
        accepted = self.transport.peerExtensions.get(b"server-sig-algs")
        ours = SIGNATURES.get(kind, ())
        # OpenSSH lists what it knows, which may be more than what its configuration takes.
        return [name for name in ours if accepted is None or name in accepted.split(b",")]

    async def _try(self, signer: Signer, algorithm: bytes) -> _Answer:
        """Ask whether the key would do, and if so sign with it."""
        key = NS(algorithm) + NS(signer.blob)
        answer = await self._ask(_METHOD, b"\0" + key)
        if answer.kind == _KEY_OK:
            signed = NS(self.transport.sessionID) + self._request(_METHOD, b"\1" + key)
            signature = await signer.sign(signed, algorithm)
            answer = await self._ask(_METHOD, b"\1" + key + NS(signature))
            if answer.kind == _KEY_OK:
                raise broken_protocol("an answer to another question during the login")
        return answer

    async def _ask(self, method: bytes, details: bytes) -> _Answer:
        self._answer = Deferred()
        self.transport.sendPacket(_REQUEST, self._request(method, details)[1:])
        return await self._answer

    def _request(self, method: bytes, details: bytes) -> bytes:
        return bytes((_REQUEST,)) + NS(self._user) + NS(self._service.name) + NS(method) + details

    def _refused(self, how: str, methods: bytes) -> DeliveryFailed:
        keys = ", ".join(
            f"{type_of(signer.blob).decode()} {fingerprint(signer.blob)}"
            for signer in self._signers
        )
        detail = f"user {self._user}, tried {keys}"
        if methods:
            detail += f"; the server would take {printable(methods, 100)}"
        if self._banner:
            detail += f"; it says: {self._banner}"
        return DeliveryFailed(
            f"The system {how}.",
            remedy="Tell the site's support: the gateway's public key must be among the "
            "authorized keys of its user on the system.",
            detail=detail,
        )
