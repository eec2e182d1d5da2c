"""Connect to a system with our own SSH client."""

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
from shiftergw.plumbing.channel import SystemUnavailable, no_answer
from shiftergw.plumbing.timing import abandonable, shield, within
from shiftergw.ssh.channels import Channels
from shiftergw.ssh.keys import Signer, agent_keys, read_key
from shiftergw.ssh.known_hosts import GLOBAL_FILE, KnownHosts, user_file
from shiftergw.ssh.login import SshLogin
from shiftergw.ssh.transport import SshTransport

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.plumbing.threads import Threads
    from shiftergw.ssh.channel import SshChannel

CONNECT_SECONDS = 30.0
"""Seconds for everything from the name look-up to the end of the login."""

IDLE_SECONDS = 60.0
"""Seconds without any packet, in spite of keep-alives, after which a server is given up."""

CLOSE_SECONDS = 5.0
_KEEP_ALIVES = 3  # sent to a silent server within the idle limit


@dataclass(frozen=True)
class SshAccount:
    """Host, user and keys of a login.

    Without `key` the keys of an agent are used; without `known_hosts`, the files that OpenSSH
    reads. `ciphers` are some of `cipher_names.CIPHERS`, the best first; empty means all.
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
        """Return the account as USER@HOST:PORT."""
        return f"{self.user}@{self.host}:{self.port}"


class SshConnection:
    """A connection after the login."""

    def __init__(
        self, transport: SshTransport, channels: Channels, clock: Any, idle_seconds: float
    ) -> None:
        """Start to watch whether the server is alive."""
        self._transport = transport
        self._channels = channels
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._last_count = -1
        self._silent_checks = 0
        self._timer: Any = None
        self._check_alive()

    @property
    def usable(self) -> bool:
        """Return whether the connection has not ended."""
        return self._transport.failure is None

    @property
    def ciphers(self) -> str:
        """Return the ciphers in use, outgoing and incoming."""
        return str(self._transport.currentEncryptions.names)

    @property
    def window(self) -> int:
        """Return the largest window of a channel in bytes; 0 before the first channel."""
        return self._channels.window

    async def open_subsystem(self, name: str) -> SshChannel:
        """Open a channel to a subsystem of the server (`sftp`). Raises `DeliveryFailed`."""
        return await self._open(b"subsystem", name)

    async def open_command(self, argv: Sequence[str]) -> SshChannel:
        """Open a channel to a command. Raises `DeliveryFailed`.

        The words are quoted, since a shell of the account parses the command.
        """
        return await self._open(b"exec", shlex.join(argv))

    async def close(self) -> None:
        """Close the connection after the waiting data is sent, in a few seconds; channels fail."""
        await close(self._transport, self._clock)

    async def _open(self, request: bytes, argument: str) -> SshChannel:
        return await within(
            self._idle_seconds,
            self._clock,
            self._channels.open_session(request, argument),
            no_answer,
        )

    def _check_alive(self) -> None:
        """Send a keep-alive if no packet has arrived since the last check; fail after several."""
        self._timer = None
        if not self.usable:
            return
        if self._transport.packets_received != self._last_count:
            self._last_count, self._silent_checks = self._transport.packets_received, 0
        else:
            self._silent_checks += 1
        if self._silent_checks > _KEEP_ALIVES:
            self._transport.fail(no_answer())
            return
        if self._silent_checks:
            self._channels.keep_alive()
        self._timer = self._clock.callLater(
            self._idle_seconds / (_KEEP_ALIVES + 1), self._check_alive
        )

    def stop_watching(self) -> None:
        """Cancel the timer; the connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def connect(
    account: SshAccount,
    reactor: Reactor,
    threads: Threads,
    *,
    connect_seconds: float = CONNECT_SECONDS,
    idle_seconds: float = IDLE_SECONDS,
    environment: Mapping[str, str] = os.environ,
) -> SshConnection:
    """Connect and log in.

    Raises `DeliveryFailed` with the account in `detail`: host unknown or unreachable, host key
    unknown or changed, gateway's key unusable or refused, timeout. Cancellable.
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
    reactor: Reactor,
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
        transport.fail(DeliveryFailed("The login was interrupted."))
        await shield(transport.wait_for_end())
        raise
    connection = SshConnection(transport, channels, reactor, idle_seconds)
    transport.wait_for_end().addCallback(lambda _: connection.stop_watching())
    return connection


async def close(transport: SshTransport, clock: Any) -> None:
    """Close a connection unless it has ended; return after its end, in a few seconds."""
    if transport.failure is None:
        transport.close(DeliveryFailed("The gateway closed the connection."))
    try:
        await within(CLOSE_SECONDS, clock, transport.wait_for_end(), TimeoutError)
    except TimeoutError:
        transport.abort()
        await transport.wait_for_end()


async def reach(host: str, port: int, transport: SshTransport, reactor: Reactor) -> None:
    """Connect a transport; raise `SystemUnavailable` if there is no way to it. Cancellable."""
    try:
        await abandonable(connectProtocol(HostnameEndpoint(reactor, host, port), transport))
    except DNSLookupError as error:
        raise unknown_host(host) from error
    except ConnectError as error:
        raise SystemUnavailable(
            "The system cannot be reached.",
            remedy="Try again later; if it lasts, tell the site's support.",
            detail=printable(str(error)),
        ) from error


def unknown_host(host: str) -> SystemUnavailable:
    """Return the error for a host name without an address."""
    return SystemUnavailable(
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


def _read_known_hosts(path: Path | None) -> KnownHosts:
    if path is not None:
        return KnownHosts.read([path], must_exist=True)
    files = filter(None, (user_file(), GLOBAL_FILE))
    return KnownHosts.read(files, must_exist=False)
