"""How a command ends: its exit codes, and a reactor around the commands that need one."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NoReturn

import click
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.app.reactor import run_main
from shiftergw.cli.output import while_read
from shiftergw.cli.start import code_of_unwritten, drop_unwritten
from shiftergw.errors import (
    BadRequest,
    ConfigurationError,
    GatewayError,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    printable,
)
from shiftergw.plumbing.signals import ENDING

DONE = 0
FAILED = 1
"""The image failed."""
MISUSED = 2
"""The command line or the configuration is wrong."""
NO_GATEWAY = 3
"""No gateway answered, or none could work."""
REFUSED = 4
"""Not allowed, or not found."""

_LINE_LIMIT = 1000

_CODES: dict[type[GatewayError], int] = {
    BadRequest: MISUSED,
    ConfigurationError: MISUSED,
    NotAllowed: REFUSED,
    NotAuthenticated: REFUSED,
    NotFound: REFUSED,
}


class Stop(click.ClickException):
    """The end of a command, with what to say about it; its class knows the exit code."""


class Misused(Stop):
    """The command line or the configuration is wrong."""

    exit_code = MISUSED


class NoGateway(Stop):
    """A gateway that cannot be reached, or cannot work at the moment."""

    exit_code = NO_GATEWAY


class Busy(NoGateway):
    """A gateway that answers that it cannot do it now, such as one whose store is away."""


class Refused(Stop):
    """The gateway refused."""

    exit_code = REFUSED


def code_of(error: GatewayError) -> int:
    """Return the exit code for an error of the program's own."""
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), FAILED)


def text_of(error: GatewayError) -> str:
    """Return an error for whoever runs the work himself: the details are for him, too."""
    # The end of a tool's standard error has lines, and names from an image in them.
    details = [printable(line, _LINE_LIMIT) for line in error.detail.strip().split("\n")]
    return "\n".join(filter(None, [error.what, error.remedy, *details]))


Command = Callable[[Any], Coroutine[Deferred[Any], Any, int]]
"""A command that wants a reactor and returns its exit code."""


def run(command: Command, interrupted: str = "Interrupted.") -> NoReturn:
    """Run a command in a reactor of its own and exit; `interrupted` is said after a signal."""
    sys.exit(_outcome(command, interrupted))


def outcome(command: Command, interrupted: str = "Interrupted.") -> int:
    """As `run`, but return the exit code: for what is to be asked when the reactor has ended."""
    handlers = {number: signal.getsignal(number) for number in ENDING}
    code = _outcome(command, interrupted)
    if code == DONE:
        # The reactor leaves handlers behind with which no signal would interrupt a question.
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code


def _outcome(command: Command, interrupted: str) -> int:
    return run_main(
        lambda reactor: guarded(while_read(reactor, command(reactor)), interrupted),
    )


async def guarded(command: Coroutine[Deferred[Any], Any, int], interrupted: str) -> int:
    """Return a command's exit code; an error we can explain is told in place of a traceback."""
    try:
        return await _explained(command, interrupted)
    except OSError as error:
        return code_of_unwritten(error)


async def _explained(command: Coroutine[Deferred[Any], Any, int], interrupted: str) -> int:
    try:
        return await command
    except CancelledError:
        tell_interrupted(interrupted)
        raise
    except Stop as stop:
        stop.show()
        return stop.exit_code
    except GatewayError as error:
        click.echo(f"Error: {text_of(error)}", err=True)
        return code_of(error)


def tell_interrupted(text: str) -> None:
    """Print what an interruption has left; the terminal may be what has gone."""
    with suppress(OSError):
        click.echo(text, err=True)
    drop_unwritten()
