"""`run_command` handles output, limits, signals and cancellation."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure

from shiftergw.errors import ChildFailed, TimedOut
from shiftergw.plumbing import child_end
from shiftergw.plumbing.child_end import LEAVE_AFTER
from shiftergw.plumbing.process import (
    KILL_AFTER,
    PIPES_AFTER,
    Command,
    CommandOutput,
    run_command,
)
from tests.plumbing import ends_of
from tests.stuck_children import StuckReactor

real: Any = reactor
ENV = {"PATH": os.environ["PATH"]}


def sh(script: str, **limits: Any) -> Command:
    """Return a command that runs a shell script."""
    return Command(["sh", "-c", script], ENV, **limits)


async def ends(script: str, **limits: Any) -> CommandOutput:
    """Run a script with the real reactor and real time."""
    return await run_command(sh(script, **limits), real, real)


async def appears(path: Path) -> None:
    """Wait until a child has created a file."""
    while not path.exists():  # noqa: ASYNC240 - it looks at the child's steps
        await deferLater(real, 0.01)


@pytest_twisted.ensureDeferred
async def test_output_is_returned() -> None:
    """Both outputs of a child that exits with 0 are returned."""
    assert await ends("echo out; echo err >&2") == CommandOutput(b"out\n", b"err\n")


@pytest_twisted.ensureDeferred
async def test_the_environment_is_that_of_the_command() -> None:
    """A child gets the variables of its command and none of this process."""
    command = Command(["env"], {**ENV, "ONLY": "this"})
    lines = (await run_command(command, real, real)).stdout.splitlines()
    assert sorted(lines) == sorted([f"PATH={ENV['PATH']}".encode(), b"ONLY=this"])


@pytest_twisted.ensureDeferred
async def test_further_descriptors() -> None:
    """A child has the descriptors of its command from 3 on, and they stay open here."""
    files = [os.memfd_create("a"), os.memfd_create("b")]
    try:
        await ends("printf one >&3; printf two >&4", descriptors=files)
        assert [os.pread(file, 10, 0) for file in files] == [b"one", b"two"]
    finally:
        for file in files:
            os.close(file)


@pytest_twisted.ensureDeferred
async def test_the_directory_is_that_of_the_command(tmp_path: Path) -> None:
    """A child starts in the directory of its command."""
    output = await ends("pwd", cwd=tmp_path)
    assert output.stdout.decode().strip() == str(tmp_path)


@pytest_twisted.ensureDeferred
async def test_stdin_is_empty_by_default() -> None:
    """Without a descriptor a child reads an empty input, not our terminal."""
    assert (await ends("cat")).stdout == b""


@pytest_twisted.ensureDeferred
async def test_stdin_and_stdout_may_be_descriptors(tmp_path: Path) -> None:
    """A child reads and writes the given files, and its output is not collected."""
    (tmp_path / "in").write_bytes(b"x" * 300_000)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        output = await ends("cat", stdin=source.fileno(), stdout=sink.fileno())
    assert output.stdout == b""
    assert (tmp_path / "out").read_bytes() == b"x" * 300_000


@pytest_twisted.ensureDeferred
async def test_collected_output_is_limited() -> None:
    """Output beyond the limit is read and dropped, and the child succeeds."""
    output = await ends("head -c 300000 /dev/zero", output_limit=1000)
    assert output.stdout == bytes(1000)


@pytest_twisted.ensureDeferred
async def test_errors_have_the_end_of_stderr() -> None:
    """The end of a long stderr is kept, since it has the reason."""
    with pytest.raises(ChildFailed) as excinfo:
        await ends("head -c 100000 /dev/zero >&2; echo reason >&2; exit 7")
    assert excinfo.value.exit_code == 7
    assert excinfo.value.signal is None
    assert len(excinfo.value.detail) == 4096
    assert excinfo.value.detail.endswith("reason\n")


@pytest_twisted.ensureDeferred
async def test_stderr_need_not_be_utf8() -> None:
    """Invalid UTF-8 on stderr is escaped in the error."""
    with pytest.raises(ChildFailed) as excinfo:
        await ends(r"printf '\377' >&2; exit 1")
    assert excinfo.value.detail == "\\xff"


@pytest_twisted.ensureDeferred
async def test_a_signal_is_named() -> None:
    """The error of a killed child names the signal."""
    with pytest.raises(ChildFailed, match="killed by signal 9") as excinfo:
        await ends("kill -9 $$")
    assert excinfo.value.signal == signal.SIGKILL
    assert excinfo.value.exit_code is None


@pytest.mark.parametrize("cwd", [None, Path("/tmp")])
@pytest.mark.parametrize("name", ["no-such-program", "/no/such/program", "/etc/passwd"])
@pytest_twisted.ensureDeferred
async def test_missing_programs(name: str, cwd: Path | None) -> None:
    """Missing and non-executable programs raise the same error in every directory."""
    with pytest.raises(ChildFailed, match="cannot be started"):
        await run_command(Command([name], ENV, cwd=cwd), real, real)


@pytest_twisted.ensureDeferred
async def test_a_program_that_the_system_refuses(tmp_path: Path) -> None:
    """An executable file in an invalid format raises an error with the system's reason."""
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF, but no more of it")
    program.chmod(0o755)
    with pytest.raises(ChildFailed, match="cannot be started: Exec format error"):
        await run_command(Command([str(program)], ENV), real, real)


@pytest_twisted.ensureDeferred
async def test_programs_are_looked_up_in_the_path_of_the_command(tmp_path: Path) -> None:
    """A name without a slash is looked up in the child's PATH, not in ours."""
    program = tmp_path / "only-here"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    command = Command(["only-here"], {"PATH": str(tmp_path)})
    assert (await run_command(command, real, real)).stdout == b"found\n"


@pytest_twisted.ensureDeferred
async def test_streamed_output() -> None:
    """`on_stdout` gets the output, which is then not collected."""
    pieces: list[bytes] = []
    output = await run_command(sh("echo a; echo b"), real, real, pieces.append)
    assert b"".join(pieces) == b"a\nb\n"
    assert output.stdout == b""


@pytest_twisted.ensureDeferred
async def test_a_failing_callback_ends_the_child() -> None:
    """An error of `on_stdout` is raised by `run_command` and ends the child."""

    def refuse(data: bytes) -> None:
        raise ValueError(f"not {data!r}")

    with pytest.raises(ValueError, match="not b'a"):
        await run_command(sh("echo a; sleep 0.2; echo b; exec sleep 60"), real, real, refuse)


@pytest_twisted.ensureDeferred
async def test_the_whole_run_has_a_limit() -> None:
    """A child that runs too long is ended, even if it prints."""
    with pytest.raises(TimedOut, match=r"sh ran longer than 0\.3 s"):
        await ends("while :; do echo x; sleep 0.05; done", total=0.3)


@pytest_twisted.ensureDeferred
async def test_silence_has_a_limit() -> None:
    """A silent child is ended; the error has the end of its stderr."""
    with pytest.raises(TimedOut, match=r"sh printed nothing for 0\.3 s") as excinfo:
        await ends("echo last words >&2; exec sleep 60", idle=0.3)
    assert excinfo.value.detail == "last words\n"


@pytest_twisted.ensureDeferred
async def test_output_restarts_the_limit_of_silence() -> None:
    """A child that keeps printing is not ended for silence."""
    output = await ends("for i in 1 2 3 4 5 6; do sleep 0.1; echo $i; done", idle=0.45)
    assert len(output.stdout.splitlines()) == 6


@pytest_twisted.ensureDeferred
async def test_cancelling_ends_the_child(tmp_path: Path) -> None:
    """The cancellation is raised after the end of the child, which may clean up on SIGTERM."""
    script = f"trap 'sleep 0.1; touch {tmp_path}/cleaned; exit 0' TERM; touch {tmp_path}/started;"
    running = Deferred.fromCoroutine(ends(script + "while :; do sleep 0.02; done"))
    await appears(tmp_path / "started")
    running.cancel()
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert (tmp_path / "cleaned").exists()


@pytest_twisted.ensureDeferred
async def test_cancelling_stays_a_cancellation(tmp_path: Path) -> None:
    """An error of the child after the cancellation does not replace the cancellation."""
    script = f"trap 'exit 3' TERM; touch {tmp_path}/started; while :; do sleep 0.02; done"
    running = Deferred.fromCoroutine(ends(script))
    await appears(tmp_path / "started")
    running.cancel()
    with pytest.raises(CancelledError):
        await running


@pytest_twisted.ensureDeferred
async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """A child that ignores SIGTERM gets SIGKILL some seconds later."""
    clock = Clock()
    script = f"trap '' TERM; touch {tmp_path}/started; while :; do sleep 0.02; done"
    running = Deferred.fromCoroutine(run_command(sh(script), real, clock))
    ends = ends_of(running)
    await appears(tmp_path / "started")
    running.cancel()
    await deferLater(real, 0.1)
    assert ends == []
    clock.advance(KILL_AFTER)
    with pytest.raises(CancelledError):
        await running
    assert clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_a_grandchild_does_not_block_the_end(tmp_path: Path) -> None:
    """A grandchild that keeps the output open delays the end only by a few seconds."""
    clock = Clock()
    script = "echo before; sleep 60 & echo $! > new; mv new pid"
    pieces: list[bytes] = []
    command = sh(script, cwd=tmp_path)
    running = Deferred.fromCoroutine(run_command(command, real, clock, pieces.append))
    await appears(tmp_path / "pid")
    try:
        while not (pieces and clock.getDelayedCalls()):
            await deferLater(real, 0.01)
        clock.advance(PIPES_AFTER)
        await running
        assert pieces == [b"before\n"]
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert clock.getDelayedCalls() == []


def stuck_command(reactor: StuckReactor, clock: Clock, **options: Any) -> Deferred[CommandOutput]:
    """Run a command whose child does not end, for a second."""
    any_reactor: Any = reactor
    command = sh("cat /hung/file", total=1)
    return Deferred.fromCoroutine(run_command(command, any_reactor, clock, **options))


def pass_time(clock: Clock, seconds: float) -> None:
    """Advance a clock second by second."""
    clock.pump([1] * int(seconds))


@pytest_twisted.ensureDeferred
async def test_a_child_that_cannot_be_killed_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command ends some seconds after SIGKILL; later output of the child is dropped."""
    monkeypatch.setattr(child_end, "stuck_children", set())
    stuck_reactor, clock = StuckReactor(), Clock()
    pieces: list[bytes] = []
    running = stuck_command(stuck_reactor, clock, on_stdout=pieces.append)
    ends = ends_of(running)
    (child,) = stuck_reactor.protocols
    child.outReceived(b"a")
    pass_time(clock, KILL_AFTER + LEAVE_AFTER)
    assert ends == []
    assert child.transport.signals == ["TERM", "KILL"]
    pass_time(clock, 1)
    with pytest.raises(TimedOut, match="sh ran longer than 1 s, and could not be killed"):
        await running
    assert child.transport.is_closed
    assert child_end.stuck_children == {1}
    child.outReceived(b"b")
    assert pieces == [b"a"]
    stuck_reactor.end(0)
    assert child_end.stuck_children == set()
    assert clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_a_cancellation_leaves_a_stuck_child_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cancellation is raised, and the slot of the caller is free again."""
    monkeypatch.setattr(child_end, "stuck_children", set())
    stuck_reactor, clock = StuckReactor(), Clock()
    running = stuck_command(stuck_reactor, clock)
    running.cancel()
    pass_time(clock, KILL_AFTER + LEAVE_AFTER)
    assert clock.getDelayedCalls() == []
    with pytest.raises(CancelledError):
        await running
    assert stuck_reactor.protocols[0].transport.signals == ["TERM", "KILL"]
    stuck_reactor.end(0)


@pytest_twisted.ensureDeferred
async def test_few_children_are_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit a command waits, until its child or one that was left behind ends."""
    monkeypatch.setattr(child_end, "stuck_children", set())
    monkeypatch.setattr(child_end, "STUCK_LIMIT", 1)
    stuck_reactor, clock = StuckReactor(), Clock()
    commands = [stuck_command(stuck_reactor, clock) for _ in range(3)]
    ends = [ends_of(command) for command in commands]
    pass_time(clock, 10 * LEAVE_AFTER)
    assert ends == [["ended"], [], []]
    stuck_reactor.end(1)
    assert ends == [["ended"], ["ended"], []]
    stuck_reactor.end(0)
    pass_time(clock, LEAVE_AFTER)
    assert child_end.stuck_children == {3}
    for command in commands:
        with pytest.raises(TimedOut):
            await command
    stuck_reactor.end(2)
    assert clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_a_child_that_has_exited_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """While only its pipes are open, the command waits for them."""
    monkeypatch.setattr(child_end, "stuck_children", set())
    stuck_reactor, clock = StuckReactor(), Clock()
    running = stuck_command(stuck_reactor, clock)
    pass_time(clock, KILL_AFTER + LEAVE_AFTER)
    (child,) = stuck_reactor.protocols
    reason = Failure(ProcessTerminated(None, signal.SIGKILL))
    child.processExited(reason)
    pass_time(clock, PIPES_AFTER)
    assert child_end.stuck_children == set()
    assert child.transport.is_closed
    child.processEnded(reason)
    with pytest.raises(TimedOut, match=r"sh ran longer than 1 s\. "):
        await running
    assert clock.getDelayedCalls() == []
