"""Run a child process to its end, with time limits and clean-up."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol

from shiftergw.errors import ChildFailed, TimedOut
from shiftergw.plumbing.child_end import ChildTermination
from shiftergw.plumbing.timing import wait_to_end

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorProcess, IReactorTime

STDERR_KEPT = 4096
"""Bytes of the end of stderr that an error carries."""

KILL_AFTER = 5.0
"""Seconds between SIGTERM and SIGKILL."""

PIPES_AFTER = 5.0
"""Seconds after the child's end during which its own children may keep its output open."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command: complete argv, complete environment, limits in seconds.

    A program name without a slash is looked up in the PATH of `env`. `stdin` and `stdout` are
    descriptors for the child; they stay open in this process, so close the child's end of a pipe
    soon. By default stdin is `/dev/null`, and at most `output_limit` bytes of stdout are collected.
    `descriptors` are open in the child as 3, 4 and so on, and stay open in this process, too.
    `total` limits the whole run, `idle` the time without output to this process (0: no limit).
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path | None = None
    stdin: int | None = None
    stdout: int | None = None
    descriptors: Sequence[int] = ()
    total: float = 0
    idle: float = 0
    output_limit: int = 1 << 20


@dataclass(frozen=True, slots=True)
class CommandOutput:
    """The standard output of a child that exited with 0, and the end of its standard error."""

    stdout: bytes
    stderr: bytes


class _Watcher(ProcessProtocol):
    """Collects the output of a child; `result` fires once, at its end or if it is left behind."""

    def __init__(
        self, command: Command, clock: IReactorTime, on_stdout: Callable[[bytes], None] | None
    ) -> None:
        self.result: Deferred[CommandOutput] = Deferred()
        self._command = command
        self._clock = clock
        self._on_stdout = on_stdout
        self._stdout = bytearray()
        self._stderr = bytearray()
        self._timeout_reason: str | None = None
        self._callback_error: Exception | None = None
        self._calls: list[Any] = []
        self._idle: Any = None
        self.pid = 0
        self._termination: Any = None

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.pid = self.transport.pid
        self._termination = ChildTermination(
            self._program, self.transport, self._clock, KILL_AFTER, self._leave
        )
        if self._command.total:
            self._after(self._command.total, f"ran longer than {self._command.total:g} s")
        if self._command.idle:
            self._idle = self._after(
                self._command.idle, f"printed nothing for {self._command.idle:g} s"
            )

    def _after(self, seconds: float, why: str) -> Any:
        def expire() -> None:
            self._timeout_reason = why
            self.stop()

        call = self._clock.callLater(seconds, expire)
        self._calls.append(call)
        return call

    def stop(self) -> None:
        """Send SIGTERM to the child, and SIGKILL after `KILL_AFTER` seconds."""
        self._termination.begin()

    def _leave(self) -> None:
        """End the command though its child has not ended."""
        self._cancel_calls()
        assert self.transport is not None
        self.transport.loseConnection()
        reason = self._timeout_reason or "was to end"
        error = TimedOut(
            f"{self._program} {reason}, and could not be killed.", detail=self._stderr_text
        )
        self.result.errback(self._callback_error or error)

    def _cancel_calls(self) -> None:
        for call in self._calls:
            if call.active():
                call.cancel()

    @property
    def _program(self) -> str:
        return os.path.basename(self._command.argv[0])  # noqa: PTH119

    @property
    def _stderr_text(self) -> str:
        return bytes(self._stderr).decode("utf-8", "backslashreplace")

    def outReceived(self, data: bytes) -> None:
        if self.result.called:
            return
        self._alive()
        if self._on_stdout is None:
            self._stdout += data[: self._command.output_limit - len(self._stdout)]
        elif self._callback_error is None:
            # The reactor would only log an error, and the run would look successful.
            try:
                self._on_stdout(data)
            except Exception as error:  # noqa: BLE001 - it is raised again from `run_command`
                self._callback_error = error
                self.stop()

    def errReceived(self, data: bytes) -> None:
        self._alive()
        self._stderr += data
        del self._stderr[:-STDERR_KEPT]

    def _alive(self) -> None:
        if self._idle is not None and self._idle.active():
            self._idle.reset(self._command.idle)

    def processExited(self, reason: Any) -> None:  # noqa: ARG002 - as overridden
        self._termination.note_exit()
        # A grandchild may keep the pipes open forever, and `processEnded` waits for them.
        assert self.transport is not None
        self._calls.append(self._clock.callLater(PIPES_AFTER, self.transport.loseConnection))

    def processEnded(self, reason: Any) -> None:
        self._cancel_calls()
        self._termination.note_end()
        if self.result.called:  # the child was left behind
            return
        program, stderr = self._program, self._stderr_text
        if self._callback_error is not None:
            self.result.errback(self._callback_error)
        elif self._timeout_reason is not None:
            self.result.errback(TimedOut(f"{program} {self._timeout_reason}.", detail=stderr))
        elif reason.check(ProcessDone):
            self.result.callback(CommandOutput(bytes(self._stdout), bytes(self._stderr)))
        else:
            assert reason.check(ProcessTerminated), reason
            self.result.errback(_failure(program, reason.value, stderr))


def cpu_seconds(pid: int) -> float:
    """Return the CPU time in seconds that a process has used; 0 if there is no such process."""
    try:
        stat = Path("/proc", str(pid), "stat").read_bytes()
    except OSError:
        return 0.0
    user, system = stat.rpartition(b")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _failure(program: str, end: Any, stderr: str) -> ChildFailed:
    if end.signal is not None:
        return ChildFailed(
            f"{program} was killed by signal {end.signal}.",
            exit_code=None,
            signal=end.signal,
            stderr=stderr,
        )
    return ChildFailed(
        f"{program} exited with code {end.exitCode}.",
        exit_code=end.exitCode,
        signal=None,
        stderr=stderr,
    )


async def run_command(
    command: Command,
    reactor: IReactorProcess,
    clock: IReactorTime,
    on_stdout: Callable[[bytes], None] | None = None,
    on_start: Callable[[int], None] | None = None,
) -> CommandOutput:
    """Run a command to its end and return its output; call `on_start` with its process id.

    Raises `ChildFailed` (exit code, signal, cannot be started) and `TimedOut`. If `on_stdout` is
    given, it gets the output as it arrives, and no output is collected; an error that it raises
    ends the child and is raised here. When the caller is cancelled, the child gets SIGTERM, then
    SIGKILL, and the cancellation is raised after its end. A child that SIGKILL does not end is left
    behind (`plumbing.child_end`).
    """
    watcher = _Watcher(command, clock, on_stdout)
    # Twisted looks programs up in our PATH or in the child's, depending on how it forks.
    program = shutil.which(command.argv[0], path=command.env.get("PATH", os.defpath))
    if program is None:
        raise ChildFailed(
            f"{command.argv[0]} cannot be started: no such program.",
            exit_code=None,
            signal=None,
            stderr="",
        )
    with open(os.devnull, "rb") as null:  # noqa: ASYNC230, PTH123
        stdin = null.fileno() if command.stdin is None else command.stdin
        try:
            reactor.spawnProcess(
                watcher,
                program,
                list(command.argv),
                env=dict(command.env),
                path=None if command.cwd is None else str(command.cwd),
                childFDs={
                    0: stdin,
                    1: "r" if command.stdout is None else command.stdout,
                    2: "r",
                    **dict(enumerate(command.descriptors, 3)),
                },
            )
        except OSError as error:
            raise ChildFailed(
                f"{command.argv[0]} cannot be started: {error.strerror}.",
                exit_code=None,
                signal=None,
                stderr="",
            ) from error
    if on_start is not None:
        on_start(watcher.pid)
    return await wait_to_end(watcher.result, watcher.stop)
