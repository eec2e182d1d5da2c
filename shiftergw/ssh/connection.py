"""A native SSH connection to a system."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.error import ConnectError, DNSLookupError

from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.channel import Away, no_answer
from shiftergw.plumbing.timing import abandonable, shielded, within
from shiftergw.ssh.channels import Channels
from shiftergw.ssh.keys import Signer, agent_keys, read_key
from shiftergw.ssh.known_hosts import GLOBAL_FILE, KnownHosts, user_file
from shiftergw.ssh.login import SshLogin
from shiftergw.ssh.transport import SshTransport

if TYPE_CHECKING:
    from shiftergw.plumbing.threads import Threads
    from shiftergw.ssh.channel import SshChannel

CONNECT_SECONDS = 30.0
"""Limit on all from the name look-up to the login."""

IDLE_SECONDS = 60.0
"""Time after which a server that says nothing, though it is asked, is given up."""

CLOSE_SECONDS = 5.0
_ASK_TIMES = 3  # a server is asked so often within the idle limit


@dataclass(frozen=True)
class SshAccount:
    """Where to log in, as whom, by which keys; no `key` means an agent's keys.

    `known_hosts` absent means the files that OpenSSH reads; `ciphers` are of ours, the best first,
    all of them if there are none.
    """

    host: str
    port: int
    user: str
    key: Path | None = None
    passphrase_file: Path | None = None
    known_hosts: Path | None = None
    ciphers: Sequence[str] = ()

    @property
    def place(self) -> str:
        """Return the account as admins know it."""
        return f"{self.user}@{self.host}:{self.port}"


class SshConnection:
    """A connection that is logged in; `ended` fires with the error that ended it, once."""

    def __init__(
        self, transport: SshTransport, channels: Channels, clock: Any, idle_seconds: float
    ) -> None:
        """Watch the connection from now on."""
        self._transport = transport
        self._channels = channels
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._heard = -1
        self._silent = 0
        self._watch: Any = None
        self._look()

    @property
    def usable(self) -> bool:
        """Say whether it has not ended."""
        return self._transport.failure is None

    @property
    def ciphers(self) -> str:
        """Return what is used, out and in."""
        return str(self._transport.currentEncryptions.names)

    @property
    def window(self) -> int:
        """Return how many bytes the server takes at once on a channel; 0 before it has told."""
        return self._channels.window

    async def open_subsystem(self, name: str) -> SshChannel:
        """Return a channel to a subsystem of the server (`sftp`); raise `DeliveryFailed`."""
        return await self._open(b"subsystem", name)

    async def open_command(self, argv: Sequence[str]) -> SshChannel:
        """Return a channel to a command of the user's; raise `DeliveryFailed`.

        The far side has a shell between: the words are quoted for it.
        """
        return await self._open(b"exec", shlex.join(argv))

    async def close(self) -> None:
        """Close it, waiting a little for what was written to be sent; channels fail."""
        await close(self._transport, self._clock)

    async def _open(self, request: bytes, argument: str) -> SshChannel:
        return await within(
            self._idle_seconds,
            self._clock,
            self._channels.open_session(request, argument),
            no_answer,
        )

    def _look(self) -> None:
        """See whether the server has said anything since last time, and ask it if not."""
        self._watch = None
        if not self.usable:
            return
        if self._transport.heard != self._heard:
            self._heard, self._silent = self._transport.heard, 0
        else:
            self._silent += 1
        if self._silent > _ASK_TIMES:
            self._transport.fail(no_answer())
            return
        if self._silent:
            self._channels.keep_alive()
        self._watch = self._clock.callLater(self._idle_seconds / (_ASK_TIMES + 1), self._look)

    def stop_watching(self) -> None:
        """Leave nothing behind, once the connection has ended."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


async def connect(
    account: SshAccount,
    reactor: Any,
    threads: Threads,
    *,
    connect_seconds: float = CONNECT_SECONDS,
    idle_seconds: float = IDLE_SECONDS,
    environment: Mapping[str, str] = os.environ,
) -> SshConnection:
    """Return a connection that is logged in.

    Raises `DeliveryFailed`, whose `detail` names the account: host unknown or not reachable, host
    key not known or changed, gateway's key not usable or refused, too slow. Cancellable.
    """
    try:
        known_hosts = await threads.run(_read_known_hosts, account.known_hosts)
        signers = await _signers(account, threads, environment)
        return await within(
            connect_seconds,
            reactor,
            _connect(account, reactor, known_hosts, signers, idle_seconds),
            no_answer,
        )
    except DeliveryFailed as error:
        error.detail = f"{account.place}: {error.detail}" if error.detail else account.place
        raise


async def _connect(
    account: SshAccount,
    reactor: Any,
    known_hosts: KnownHosts,
    signers: Sequence[Signer],
    idle_seconds: float,
) -> SshConnection:
    channels = Channels()
    login = SshLogin(account.user, signers, channels)
    transport = SshTransport(account.host, account.port, known_hosts, login, account.ciphers)
    await reach(account.host, account.port, transport, reactor)
    try:
        await login.done
    except BaseException:
        transport.fail(DeliveryFailed("The login did not come to its end."))
        await shielded(transport.ended())
        raise
    connection = SshConnection(transport, channels, reactor, idle_seconds)
    transport.ended().addCallback(lambda _: connection.stop_watching())
    return connection


async def close(transport: SshTransport, clock: Any) -> None:
    """End a connection in order if it has not ended, and return when it has; in a few seconds."""
    if transport.failure is None:
        transport.close(DeliveryFailed("The gateway closed the connection."))
    try:
        await within(CLOSE_SECONDS, clock, transport.ended(), _late_close)
    except TimeoutError:
        transport.abort()
        await transport.ended()


async def reach(host: str, port: int, transport: SshTransport, reactor: Any) -> None:
    """Connect a transport; raise `Away` if nobody is there. Cancellable."""
    try:
        await abandonable(connectProtocol(HostnameEndpoint(reactor, host, port), transport))
    except DNSLookupError as error:
        raise unknown_host(host) from error
    except ConnectError as error:
        raise Away(
            "The system cannot be reached.",
            remedy="Try again later; if it lasts, tell the site's support.",
            detail=printable(str(error)),
        ) from error


def unknown_host(host: str) -> Away:
    """Return the error of a host whose name has no address."""
    return Away(
        "The name of the system's host has no address.",
        remedy=f"Tell the site's support: `host` names {printable(host, 100)}, which the gateway's"
        " machine cannot look up (`getent hosts` shows it); correct the name, or the name servers.",
        detail=printable(host, 100),
    )


async def _signers(
    account: SshAccount, threads: Threads, environment: Mapping[str, str]
) -> Sequence[Signer]:
    if account.key is None:
        return await agent_keys(environment, threads)
    return [await threads.run(read_key, account.key, account.passphrase_file)]


def _read_known_hosts(configured: Path | None) -> KnownHosts:
    if configured is not None:
        return KnownHosts.read([configured], must_exist=True)
    files = filter(None, (user_file(), GLOBAL_FILE))
    return KnownHosts.read(files, must_exist=False)


def _late_close() -> TimeoutError:
    return TimeoutError()
