"""The exit codes of commands, and what they print at the end."""

from __future__ import annotations

import subprocess
import sys

import pytest
import pytest_twisted

from shiftergw.cli.exits import RequestRefused, code_of
from shiftergw.cli.reactor import run_guarded
from shiftergw.errors import (
    BadRequest,
    ConfigurationError,
    ConversionFailed,
    GatewayError,
    ImageNotFound,
    NotAllowed,
    NotAuthenticated,
    NotFound,
)
from tests.patience import patient


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (BadRequest, 2),
        (ConfigurationError, 2),
        (NotAllowed, 4),
        (NotAuthenticated, 4),
        (NotFound, 4),
        (ImageNotFound, 1),
        (ConversionFailed, 1),
    ],
)
def test_exit_codes(kind: type[GatewayError], code: int) -> None:
    """Each class of errors has its exit code."""
    assert code_of(kind("x")) == code


async def _raise(error: Exception) -> int:
    raise error


@pytest_twisted.ensureDeferred
async def test_errors_are_printed_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """The message has the error, its remedy and its details."""
    error = ConversionFailed("It broke.", remedy="Mend it.", detail="the end of stderr\n")
    assert await run_guarded(_raise(error), "") == 1
    assert capsys.readouterr().err == "Error: It broke.\nMend it.\nthe end of stderr\n"
    error = ConversionFailed("It broke.", remedy="", detail="one \x1b[2J\ntwo")
    assert await run_guarded(_raise(error), "") == 1
    assert capsys.readouterr().err == "Error: It broke.\none \\x1b[2J\ntwo\n"
    assert await run_guarded(_raise(RequestRefused("No.")), "") == 4
    assert capsys.readouterr().err == "Error: No.\n"


@pytest_twisted.ensureDeferred
async def test_faults_are_raised() -> None:
    """An unforeseen exception is not reported as an error of the user."""
    with pytest.raises(ZeroDivisionError):
        await run_guarded(_raise(ZeroDivisionError()), "")


COMMAND = """
import click
from shiftergw.cli.reactor import run

async def command(reactor):
    {}

run(command)
"""


def _process(line: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(line)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_faults_are_printed() -> None:
    """The traceback is on standard error, escaped; the exit code is 70."""
    process = _process("raise ValueError('odd \\x1b[2J')")
    out, errors = process.communicate(timeout=patient(60))
    assert (process.returncode, out) == (70, b"")
    assert b"Traceback" in errors
    assert b"ValueError: odd \\x1b[2J" in errors
    assert b"\x1b" not in errors


def test_the_reader_has_gone() -> None:
    """`shiftergw images | head -1` ends silently, like other programs."""
    process = _process("click.echo('line ' * 100_000)")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(patient(60)) == 141
