"""Connect to a system with the site's own `ssh`: for jump hosts, certificates, Kerberos.

Each channel is one child process. Prompts are disabled (`BatchMode`) and host keys are checked
strictly, whatever the site's configuration of OpenSSH says.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.channel import SystemUnavailable
from shiftergw.plumbing.child_end import ChildTermination
from shiftergw.plumbing.timing import shield
from shiftergw.ssh.openssh_failures import ssh_failure

if TYPE_CHECKING:
    from pathlib import Path

    from twisted.internet.interfaces import IReactorProcess, IReactorTime

    from shiftergw.plumbing.channel import Buffer, Channel

CONNECT_SECONDS = 30.0
"""Seconds to reach the system's sshd."""

KILL_AFTER = 2.0
"""Seconds between SIGTERM and SIGKILL, and until the output of a dead child is closed."""

_STDERR_KEPT = 4096
_PIPE_SIZE = 1 << 20
_SSH_FAILURE = 255  # ssh itself failed, not the remote program


@dataclass(frozen=True, slots=True)
class OpensshAccount:
    """Host, user and options of a login; `options` are further arguments of ssh.

    `port` 22, and None for `key` and `known_hosts`, leave the choice to OpenSSH's configuration.
    """

    host: str
    user: str
    port: int = 22
    key: Path | None = None
    known_hosts: Path | None = None
    options: Sequence[str] = ()


class OpenSsh:
    """Implements the protocol `Connection` with one `ssh` per channel."""

    window = 0

    def __init__(
        self,
        account: OpensshAccount,
        env: Mapping[str, str],
        reactor: IReactorProcess,
        clock: IReactorTime,
        idle_seconds: float,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        """Use the `ssh` in the PATH of `env`; nothing runs yet."""
        self._account = account
        # The messages of ssh are parsed, so they must be in English.
        self._env = {**env, "LC_ALL": "C"}
        self._reactor = reactor
        self._clock = clock
        self._limits = (connect_seconds, idle_seconds)
        self._children: set[_Child] = set()

    @property
    def usable(self) -> bool:
        """Return True: each channel connects by itself."""
        return True

    async def open_subsystem(self, name: str) -> Channel:
        """Start `ssh -s`; a failure is reported by `closed` of the channel."""
        return self._start(["-s"], name)

    async def open_command(self, argv: Sequence[str]) -> Channel:
        """Start a program; each word is quoted, since ssh passes one text to a remote shell."""
        return self._start([], shlex.join(argv))

    async def close(self) -> None:
        """End every child process, and return when all have ended."""
        for child in list(self._children):
            child.lose()
            await shield(child.end)

    def arguments(self) -> list[str]:
        """Return the options of every ssh, ours first: ssh uses the first of two values."""
        account, (connect, idle) = self._account, self._limits
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "NoHostAuthenticationForLocalhost": "no",
            "ConnectTimeout": f"{max(1, round(connect))}",
            "ServerAliveInterval": f"{max(1, int(idle / 3))}",
            "ServerAliveCountMax": "2",
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "EscapeChar": "none",
            "LogLevel": "INFO",
        }
        if account.known_hosts is not None:
            options["UserKnownHostsFile"] = _quote(account.known_hosts)
            options["GlobalKnownHostsFile"] = "none"
        if account.key is not None:
            options["IdentitiesOnly"] = "yes"
        arguments = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        if account.key is not None:
            arguments += ["-i", str(account.key)]
        if account.port != 22:  # noqa: PLR2004 - the default
            arguments += ["-p", str(account.port)]
        return [*arguments, "-l", account.user, "-T", *account.options]

    def _start(self, options: Sequence[str], command: str) -> _Child:
        program = shutil.which("ssh", path=self._env.get("PATH", os.defpath))
        if program is None:
            raise DeliveryFailed(
                "The gateway cannot reach the system.",
                remedy="Tell the site's support: the gateway's machine has no ssh program.",
            )
        words = ["ssh", *self.arguments(), *options, "--", self._account.host, command]
        argv = [word.encode("utf-8", "surrogateescape") for word in words]
        child = _Child(self._clock, self._children.discard)
        try:
            self._reactor.spawnProcess(child, program, argv, env=self._env)
        except OSError as error:
            raise DeliveryFailed(
                "The gateway cannot reach the system.", detail=f"ssh cannot be started: {error}"
            ) from error
        self._children.add(child)
        return child


def _quote(path: Path) -> str:
    """Return a path quoted for an option of ssh, where blanks separate several paths."""
    return '"' + str(path).replace("%", "%%") + '"'


class _Child(ProcessProtocol):
    """One `ssh` process; implements the protocol `Channel`."""

    def __init__(self, clock: IReactorTime, forget: Callable[[_Child], None]) -> None:
        self.closed: Deferred[int | None] = Deferred()
        self.end: Deferred[None] = Deferred()
        self.stderr = ""
        self._raw_stderr = b""
        self._clock = clock
        self._forget = forget
        self._calls: list[Any] = []
        self._is_lost = False
        self._unread: list[bytes] = []
        self._on_data: Callable[[bytes], None] | None = None
        self._on_eof: Callable[[], None] | None = None
        self._has_eof = False
        self._process: Any = None  # the transport, which has several interfaces
        self._termination: Any = None

    def connectionMade(self) -> None:
        self._process = self.transport
        self._termination = ChildTermination(
            "ssh", self._process, self._clock, KILL_AFTER, self._leave
        )
        # Larger pipes need fewer wake-ups; the kernel may allow less.
        for pipe in self._process.pipes.values():
            with suppress(OSError):
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_SIZE)

    def write(self, data: Buffer) -> None:
        self.writeSequence((data,))

    def writeSequence(self, data: Iterable[Buffer]) -> None:
        if not self._is_lost:
            self._process.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        stdin = self._process.pipes.get(0)
        if stdin is None:
            producer.stopProducing()
        else:
            stdin.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        stdin = self._process.pipes.get(0)
        if stdin is not None:
            stdin.unregisterProducer()

    def receive(self, data: Callable[[bytes], None], eof: Callable[[], None] | None = None) -> None:
        self._on_data, self._on_eof = data, eof
        unread, self._unread = self._unread, []
        for piece in unread:
            data(piece)
        if self._has_eof and eof is not None:
            eof()

    def end_input(self) -> None:
        self._process.closeStdin()

    def lose(self) -> None:
        if self._is_lost:
            return
        self._is_lost = True
        self._termination.begin()

    def _leave(self) -> None:
        """End the channel though its process has not ended."""
        self._drop_pipes()
        self._end(None)

    def outReceived(self, data: bytes) -> None:
        if self._on_data is not None:
            self._on_data(data)
        elif not self._is_lost:
            self._unread.append(data)

    def outConnectionLost(self) -> None:
        self._has_eof = True
        if self._on_eof is not None:
            self._on_eof()

    def errReceived(self, data: bytes) -> None:
        self._raw_stderr = (self._raw_stderr + data)[-_STDERR_KEPT:]
        self.stderr = printable(b" | ".join(self._raw_stderr.split(b"\n")[-4:]).strip(b" |\r"))

    def processExited(self, reason: Any) -> None:  # noqa: ARG002 - as overridden
        self._termination.note_exit()
        # A process that ssh left behind may keep the pipes open, and `processEnded` waits for them.
        self._calls.append(self._clock.callLater(KILL_AFTER, self._drop_pipes))

    def _drop_pipes(self) -> None:
        for pipe in list(self._process.pipes.values()):
            # `loseConnection` would first write data that nobody reads.
            pipe.connectionLost(Failure(ConnectionAborted()))

    def processEnded(self, reason: Any) -> None:
        for call in self._calls:
            if call.active():
                call.cancel()
        self._termination.note_end()
        if not self.end.called:  # otherwise the process was left behind
            self._end(reason.value)

    def _end(self, end: Any) -> None:
        self._forget(self)
        was_lost, self._is_lost = self._is_lost, True
        self._close(end, was_lost)
        self.end.callback(None)

    def _close(self, end: Any, was_lost: bool) -> None:
        if self.closed.called:  # by cancellation
            return
        if was_lost:
            self.closed.callback(None)
        elif end.signal is not None:
            text = f"ssh was killed by signal {end.signal}"
            self.closed.errback(
                SystemUnavailable("The connection to the system broke.", detail=text)
            )
        elif end.exitCode == _SSH_FAILURE:
            self.closed.errback(
                ssh_failure(self._raw_stderr.decode("utf-8", "replace"), self.stderr)
            )
        else:
            self.closed.callback(end.exitCode)
