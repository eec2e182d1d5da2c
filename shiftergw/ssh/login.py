"""Log in with public keys (RFC 4252, RFC 8308, RFC 8332)."""

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
"""The limit on the bytes of all banners of a login."""

_BANNER_OVERHEAD = 64  # bytes that each banner counts besides its text


@dataclass(frozen=True)
class _Answer:
    kind: int
    body: bytes


class SshLogin(SSHService):
    """Logs `user` in and then starts `service`; `done` fires at the end, or fails."""

    name = b"ssh-userauth"
    transport: Any

    def __init__(self, user: str, signers: Sequence[Signer], service: SSHService) -> None:
        """Try the keys of `signers` in order."""
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
        self._running.addCallbacks(self._finish, self.fail)

    def serviceStopped(self) -> None:
        """Do nothing: the transport fails the login when the connection is lost."""

    def packetReceived(self, messageNum: int, packet: bytes) -> None:  # noqa: N803
        if messageNum == _BANNER:
            self._take_banner(getNS(packet)[0])
            return
        waiting, self._answer = self._answer, None
        if waiting is None or messageNum not in {_FAILURE, _SUCCESS, _KEY_OK}:
            raise broken_protocol(f"message {messageNum} during the login")
        if messageNum == _SUCCESS:
            # Messages that follow in the same segment belong to the next service.
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

    def _finish(self, _: None) -> None:
        if not self.done.called:
            self.done.callback(None)

    def fail(self, error: Any) -> None:
        """Fail `done` unless it has fired."""
        if not self.done.called:
            self.done.errback(error)

    async def _log_in(self) -> None:
        methods = b""
        for signer in self._signers:
            for algorithm in self._algorithms(type_of(signer.blob)):
                answer = await self._try(signer, algorithm)
                if answer.kind == _SUCCESS:
                    return
                methods, partial = getNS(answer.body)
                if partial[:1] == b"\1":
                    raise self._refusal("accepts the gateway's key, but asks for more", methods)
        if methods and _METHOD not in methods.split(b","):
            raise self._refusal("does not let this user in with a key", methods)
        raise self._refusal("does not accept the gateway's key, or not for this user", methods)

    def _algorithms(self, key_type: bytes) -> list[bytes]:
        """Return the signature algorithms for a key type that the server may accept."""
        server_algorithms = self.transport.peerExtensions.get(b"server-sig-algs")
        algorithms = SIGNATURES.get(key_type, ())
        if server_algorithms is None:
            return list(algorithms)
        # OpenSSH lists all algorithms that it knows, even if its configuration forbids some.
        return [name for name in algorithms if name in server_algorithms.split(b",")]

    async def _try(self, signer: Signer, algorithm: bytes) -> _Answer:
        """Ask whether the key is acceptable, and if so sign with it."""
        key = NS(algorithm) + NS(signer.blob)
        answer = await self._send_request(b"\0" + key)
        if answer.kind == _KEY_OK:
            content = NS(self.transport.sessionID) + self._request(b"\1" + key)
            signature = await signer.sign(content, algorithm)
            answer = await self._send_request(b"\1" + key + NS(signature))
            if answer.kind == _KEY_OK:
                raise broken_protocol("an answer to another question during the login")
        return answer

    async def _send_request(self, details: bytes) -> _Answer:
        self._answer = Deferred()
        self.transport.sendPacket(_REQUEST, self._request(details)[1:])
        return await self._answer

    def _request(self, details: bytes) -> bytes:
        head = bytes((_REQUEST,)) + NS(self._user) + NS(self._service.name)
        return head + NS(_METHOD) + details

    def _refusal(self, how: str, methods: bytes) -> DeliveryFailed:
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
