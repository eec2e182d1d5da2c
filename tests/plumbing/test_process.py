"""`run_command`: output, limits, signals, cancellation."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater

from shiftergw.errors import ChildFailed, TimedOut
from shiftergw.plumbing.process import KILL_AFTER, PIPES_AFTER, Command, CommandOutput, run_command
from tests.plumbing import ends_of

real: Any = reactor
ENV = {"PATH": os.environ["PATH"]}


def sh(script: str, **limits: Any) -> Command:
    """Return a command that runs a shell script."""
    return Command(["sh", "-c", script], ENV, **limits)


async def ends(script: str, **limits: Any) -> CommandOutput:
    """Run a script with the real reactor and its real time."""
    return await run_command(sh(script, **limits), real, real)


async def appears(path: Path) -> None:
    """Return once a child has made this file."""
    while not path.exists():  # noqa: ASYNC240 - it looks at the child's steps
        await deferLater(real, 0.01)


@pytest_twisted.ensureDeferred
async def test_output_is_returned() -> None:
    """A child that exits with 0 gives back what it printed, on both outputs."""
    assert await ends("echo out; echo err >&2") == CommandOutput(b"out\n", b"err\n")


@pytest_twisted.ensureDeferred
async def test_the_environment_is_the_one_given() -> None:
    """A child sees the variables of its command and none of ours."""
    command = Command(["env"], {**ENV, "ONLY": "this"})
    lines = (await run_command(command, real, real)).stdout.splitlines()
    assert sorted(lines) == sorted([f"PATH={ENV['PATH']}".encode(), b"ONLY=this"])


@pytest_twisted.ensureDeferred
async def test_the_directory_is_the_one_given(tmp_path: Path) -> None:
    """A child starts in the directory of its command."""
    finished = await ends("pwd", cwd=tmp_path)
    assert finished.stdout.decode().strip() == str(tmp_path)


@pytest_twisted.ensureDeferred
async def test_stdin_is_empty_unless_given() -> None:
    """Without a descriptor a child reads nothing, and does not wait for our terminal."""
    assert (await ends("cat")).stdout == b""


@pytest_twisted.ensureDeferred
async def test_stdin_and_stdout_may_be_descriptors(tmp_path: Path) -> None:
    """A child reads from and writes to the files it is given; nothing of it comes here."""
    (tmp_path / "in").write_bytes(b"x" * 300_000)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        finished = await ends("cat", stdin=source.fileno(), stdout=sink.fileno())
    assert finished.stdout == b""
    assert (tmp_path / "out").read_bytes() == b"x" * 300_000


@pytest_twisted.ensureDeferred
async def test_stdout_is_kept_up_to_its_limit() -> None:
    """What a child prints beyond the limit is read and dropped, and the child ends well."""
    finished = await ends("head -c 300000 /dev/zero", output_limit=1000)
    assert finished.stdout == bytes(1000)


@pytest_twisted.ensureDeferred
async def test_the_end_of_stderr_is_kept() -> None:
    """Of a long stderr the end is kept: that is where the reason stands."""
    with pytest.raises(ChildFailed) as excinfo:
        await ends("head -c 100000 /dev/zero >&2; echo reason >&2; exit 7")
    assert excinfo.value.exit_code == 7
    assert excinfo.value.signal is None
    assert len(excinfo.value.detail) == 4096
    assert excinfo.value.detail.endswith("reason\n")


@pytest_twisted.ensureDeferred
async def test_stderr_need_not_be_utf8() -> None:
    """Bytes that are no UTF-8 do not break the error that carries them."""
    with pytest.raises(ChildFailed) as excinfo:
        await ends(r"printf '\377' >&2; exit 1")
    assert excinfo.value.detail == "\\xff"


@pytest_twisted.ensureDeferred
async def test_a_signal_is_named() -> None:
    """A killed child is told from one that exits with an error."""
    with pytest.raises(ChildFailed, match="killed by signal 9") as excinfo:
        await ends("kill -9 $$")
    assert excinfo.value.signal == signal.SIGKILL
    assert excinfo.value.exit_code is None


@pytest.mark.parametrize("cwd", [None, Path("/tmp")])
@pytest.mark.parametrize("name", ["no-such-program", "/no/such/program", "/etc/passwd"])
@pytest_twisted.ensureDeferred
async def test_a_program_that_is_not_there(name: str, cwd: Path | None) -> None:
    """A program that is missing, or none, is one and the same error wherever it would start."""
    with pytest.raises(ChildFailed, match="cannot be started"):
        await run_command(Command([name], ENV, cwd=cwd), real, real)


@pytest_twisted.ensureDeferred
async def test_a_program_that_the_system_refuses(tmp_path: Path) -> None:
    """An executable file that is no program is an error with the system's reason."""
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF, but no more of it")
    program.chmod(0o755)
    with pytest.raises(ChildFailed, match="cannot be started: Exec format error"):
        await run_command(Command([str(program)], ENV), real, real)


@pytest_twisted.ensureDeferred
async def test_programs_are_looked_up_in_the_path_of_the_command(tmp_path: Path) -> None:
    """A name without a slash means the child's PATH, not ours."""
    program = tmp_path / "only-here"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    command = Command(["only-here"], {"PATH": str(tmp_path)})
    assert (await run_command(command, real, real)).stdout == b"found\n"


@pytest_twisted.ensureDeferred
async def test_output_as_it_comes() -> None:
    """With `on_stdout` the output goes there and is not kept."""
    got: list[bytes] = []
    finished = await run_command(sh("echo a; echo b"), real, real, got.append)
    assert b"".join(got) == b"a\nb\n"
    assert finished.stdout == b""


@pytest_twisted.ensureDeferred
async def test_a_reader_that_fails_ends_the_child() -> None:
    """What `on_stdout` raises is raised by `run_command`, and the child does not run on."""

    def refuse(data: bytes) -> None:
        raise ValueError(f"not {data!r}")

    with pytest.raises(ValueError, match="not b'a"):
        await run_command(sh("echo a; sleep 0.2; echo b; exec sleep 60"), real, real, refuse)


@pytest_twisted.ensureDeferred
async def test_the_whole_run_has_a_limit() -> None:
    """A child that runs too long is ended, however much it prints."""
    with pytest.raises(TimedOut, match=r"sh ran longer than 0\.3 s"):
        await ends("while :; do echo x; sleep 0.05; done", total=0.3)


@pytest_twisted.ensureDeferred
async def test_silence_has_a_limit() -> None:
    """A child that prints nothing for too long is ended; its last words are kept."""
    with pytest.raises(TimedOut, match=r"sh printed nothing for 0\.3 s") as excinfo:
        await ends("echo last words >&2; exec sleep 60", idle=0.3)
    assert excinfo.value.detail == "last words\n"


@pytest_twisted.ensureDeferred
async def test_output_puts_the_limit_of_silence_off() -> None:
    """A child that goes on printing is not silent, however long it takes."""
    finished = await ends("for i in 1 2 3 4 5 6; do sleep 0.1; echo $i; done", idle=0.45)
    assert len(finished.stdout.splitlines()) == 6


@pytest_twisted.ensureDeferred
async def test_cancelling_ends_the_child(tmp_path: Path) -> None:
    """A cancelled caller hears of it once the child is gone, after SIGTERM let it clean up."""
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
    """A child that fails while it is ended does not hide that the caller was cancelled."""
    script = f"trap 'exit 3' TERM; touch {tmp_path}/started; while :; do sleep 0.02; done"
    running = Deferred.fromCoroutine(ends(script))
    await appears(tmp_path / "started")
    running.cancel()
    with pytest.raises(CancelledError):
        await running


@pytest_twisted.ensureDeferred
async def test_a_deaf_child_is_killed(tmp_path: Path) -> None:
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
async def test_a_grandchild_does_not_hold_us(tmp_path: Path) -> None:
    """A child's own child that keeps the output open is waited for only some seconds."""
    clock = Clock()
    script = "echo before; sleep 60 & echo $! > new; mv new pid"
    said: list[bytes] = []
    command = sh(script, cwd=tmp_path)
    running = Deferred.fromCoroutine(run_command(command, real, clock, said.append))
    await appears(tmp_path / "pid")
    try:
        while not (said and clock.getDelayedCalls()):
            await deferLater(real, 0.01)
        clock.advance(PIPES_AFTER)
        await running
        assert said == [b"before\n"]
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert clock.getDelayedCalls() == []
