"""Small programs on a system: their arguments, their output, and their end."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from shiftergw.delivery import scp_programs
from shiftergw.delivery.shell import RemoteShell
from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.channel import Channel, Connection
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused
from tests.delivery.far import UNUSED_ACCOUNT, connection, without_ssh
from tests.installed_reactor import reactor
from tests.sftp.recorded_wire import Wire, error_of

IDLE_SECONDS = 20.0


class Wires:
    """A connection whose programs are played by the test."""

    usable = True
    window = 0

    def __init__(self) -> None:
        """Start without a channel."""
        self.channels: list[tuple[Wire, str]] = []

    async def open_subsystem(self, name: str) -> Channel:
        """Offer no subsystem."""
        raise DeliveryFailed(f"no {name}")

    async def open_command(self, argv: Sequence[str]) -> Channel:
        """Open a channel; keep it together with the mark of its frame."""
        self.channels.append((Wire(), argv[4] + argv[5]))
        return self.channels[-1][0]

    async def close(self) -> None:
        """Do nothing."""


class Running:
    """A running program, with a clock; with `has_begun` it has printed its mark."""

    def __init__(self, *, has_begun: bool = True, **limits: Any) -> None:
        """Start the program."""
        self.clock = Clock()
        link = Wires()
        typed_connection: Connection = link
        self.shell = RemoteShell(typed_connection, self.clock, IDLE_SECONDS)
        self.done = Deferred.fromCoroutine(self.shell.run("text", b"word", **limits))
        self.wire, self.mark = link.channels[0]
        if has_begun:
            self.wire.says(f"{self.mark}\n".encode())

    def end(self, status: int | None) -> None:
        """End the program with a status, or kill it (None); the channel has another status."""
        if status is not None:
            self.wire.says(f"{self.mark} {status}\n".encode())
        self.wire.is_lost = True
        self.wire.closed.callback(77)

    def result(self) -> bytes:
        """Return the output; check that no timer is left."""
        results: list[bytes] = []
        self.done.addCallback(results.append)
        assert self.clock.getDelayedCalls() == []
        return results[0]

    def error(self) -> BaseException:
        """Return the error of the program; check that no timer is left."""
        error = error_of(self.done)
        assert self.clock.getDelayedCalls() == []
        assert self.wire.is_lost
        return error


def test_output() -> None:
    """The output of a program is returned, without what was printed before it."""
    running = Running(has_begun=False)
    for piece in (b"Welcome", b"!\n" + running.mark.encode(), b"\nout", b"put"):
        running.wire.says(piece)
    running.end(0)
    assert running.result() == b"output"
    assert running.shell.usable


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (102, packets.NO_SUCH_FILE),
        (103, packets.PERMISSION_DENIED),
        (104, packets.FAILURE),
        (108, packets.UNSUPPORTED),
        (1, packets.FAILURE),
        (100, packets.FAILURE),
        (127, packets.FAILURE),
        (None, packets.FAILURE),
    ],
)
def test_exit_status(status: int | None, reason: int) -> None:
    """An exit status other than 0 is a refusal, and the output is ignored."""
    running = Running()
    running.wire.stderr = "cannot create"
    running.wire.says(b"output")
    running.end(status)
    error = running.error()
    assert isinstance(error, SftpRefused)
    assert error.status == reason
    assert "cannot create" in str(error)
    assert running.shell.usable


@pytest.mark.parametrize("status", [0, 1, 127, None])
def test_no_shell(status: int | None) -> None:
    """An account that runs another program raises an error with that program's output."""
    running = Running(has_begun=False)
    running.wire.says(b"This account is currently not available.\n")
    running.wire.is_lost = True
    running.wire.closed.callback(status)
    error = running.error()
    assert isinstance(error, DeliveryFailed)
    assert "runs no commands" in error.what
    assert "not available" in error.detail
    assert not running.shell.usable


def test_endless_noise() -> None:
    """Endless output before the program means that the account runs no commands."""
    running = Running(has_begun=False)
    for _ in range(100):
        if not running.wire.is_lost:
            running.wire.says(b"x" * (1 << 20))
    assert "runs no commands" in str(running.error())


def test_endless_output() -> None:
    """A program that prints more than its limit is ended, and so is the session."""
    running = Running(limit=5)
    # No hexadecimal digits, because bytes that may begin the mark are not passed on yet.
    running.wire.says(b"yyyyy")
    assert not running.done.called
    running.wire.says(b"y")
    assert isinstance(running.error(), DeliveryFailed)
    assert not running.shell.usable


@pytest.mark.parametrize("seconds", [0, 3 * IDLE_SECONDS])
def test_silence(seconds: float) -> None:
    """A program that exceeds its time limit is given up, whatever it prints."""
    running = Running(seconds=seconds)
    running.clock.advance(max(seconds, IDLE_SECONDS) - 1)
    running.wire.says(b"x")
    assert not running.done.called
    running.clock.advance(1)
    assert "stopped answering" in str(running.error())
    assert not running.shell.usable


def test_broken_connection() -> None:
    """A connection that ends raises its error in running programs and in later ones."""
    running = Running()
    second_program = Deferred.fromCoroutine(running.shell.run("another"))
    running.wire.is_lost = True
    running.wire.closed.errback(DeliveryFailed("The cable was cut."))
    third_program = Deferred.fromCoroutine(running.shell.run("a third"))
    assert "cable" in str(running.error())
    assert "cable" in str(error_of(second_program))
    assert "cable" in str(error_of(third_program))


def test_closed() -> None:
    """Closing a shell ends its running programs."""
    running = Running()
    running.shell.close()
    assert "was closed" in str(running.error())
    assert not running.shell.usable


def test_cancelled() -> None:
    """A cancelled program is ended, and the shell stays usable."""
    running = Running()
    running.done.cancel()
    assert isinstance(running.error(), CancelledError)
    assert running.shell.usable


def test_connection_that_broke_while_idle() -> None:
    """A shell is usable as long as its connection is."""
    link = Wires()
    shell = RemoteShell(link, Clock(), IDLE_SECONDS)
    assert shell.usable
    link.usable = False
    assert not shell.usable


@given(pieces=st.lists(st.binary(max_size=40), max_size=5), status=st.none() | st.integers(0, 255))
def test_any_bytes(pieces: list[bytes], status: int | None) -> None:
    """Whatever a program prints and however it ends, only the expected errors are raised."""
    running = Running(has_begun=False, limit=60)
    ends: list[Any] = []
    running.done.addBoth(ends.append)
    for piece in pieces:
        running.wire.says(piece)
        running.wire.says(f"{running.mark}\n".encode())
    if not running.wire.is_lost:
        running.end(status)
    (end,) = ends
    assert not isinstance(end, Failure) or end.check(DeliveryFailed, SftpRefused)
    assert running.clock.getDelayedCalls() == []


WORDS = [
    b"",
    b"a b",
    b"'",
    b'"',
    b"$(echo x)",
    b"`echo x`",
    b"two\nlines",
    b"-n",
    b"\\",
    b"\xff",
    b"!x",
]


@pytest_twisted.ensureDeferred
async def test_words(tmp_path: Path) -> None:
    """Every argument reaches the program unchanged."""
    link = connection(UNUSED_ACCOUNT, without_ssh(tmp_path / "bin"))
    shell = RemoteShell(link, reactor, IDLE_SECONDS)
    output = await shell.run('for w in "$@"; do printf "%s\\0" "$w"; done', *WORDS)
    assert output.split(b"\0")[:-1] == WORDS
    assert await shell.run("cat", stdin=b"x" * 3000) == b"x" * 3000
    await link.close()


def program_texts() -> list[str]:
    """Return the texts of all programs."""
    return [
        value
        for name, value in vars(scp_programs).items()
        if name.isupper() and isinstance(value, str) and "$" in value
    ]


@pytest.mark.parametrize("text", program_texts(), ids=lambda text: text[:30])
def test_texts_for_any_shell(text: str) -> None:
    """The quoted text of each program passes through csh and fish unchanged."""
    assert "\n" not in text
    assert "\\" not in text
    assert "!" not in text.replace("! ", "")
    assert shlex.split(shlex.quote(text)) == [text]
