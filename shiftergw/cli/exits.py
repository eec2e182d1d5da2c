"""Exit codes of the commands, and the errors that end a command.

Imports neither Twisted nor anything else that takes long to load.
"""

from __future__ import annotations

from contextlib import suppress

import click

from shiftergw.cli.start import drop_output
from shiftergw.errors import (
    BadRequest,
    ConfigurationError,
    GatewayError,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    printable,
)

DONE = 0
FAILURE = 1
"""The image failed."""
MISUSE = 2
"""The command line or the configuration is wrong."""
NO_GATEWAY = 3
"""No gateway answered, or none could work."""
REFUSAL = 4
"""Not allowed, or not found."""

BEST_TO_WORST = (DONE, NO_GATEWAY, FAILURE, REFUSAL, MISUSE)
"""Exit codes, ordered by how much it helps to try again: the last one least."""

LINE_LIMIT = 1000
"""Characters of a line on standard error."""

_CODES: dict[type[GatewayError], int] = {
    BadRequest: MISUSE,
    ConfigurationError: MISUSE,
    NotAllowed: REFUSAL,
    NotAuthenticated: REFUSAL,
    NotFound: REFUSAL,
}


class Stop(click.ClickException):
    """The end of a command, with a message for the user; each subclass has an exit code."""


class Misuse(Stop):
    """The command line or the configuration is wrong."""

    exit_code = MISUSE


class InvalidRequest(Misuse):
    """The gateway does not understand a request; its version may be too old for a part of it."""


class NoGateway(Stop):
    """A gateway cannot be reached, or cannot work at the moment."""

    exit_code = NO_GATEWAY


class GatewayBusy(NoGateway):
    """A gateway answers that it cannot do this now, for example while its store is away."""


class RequestRefused(Stop):
    """The gateway, or this command itself, refuses the request."""

    exit_code = REFUSAL


class UnknownName(RequestRefused):
    """The gateway has nothing of a name, or hides it from this user."""


class WrongOffset(Stop):
    """The gateway has another part of an upload than this command believed: `offset` bytes."""

    exit_code = FAILURE

    def __init__(self, message: str, offset: int) -> None:
        """Note how many bytes the gateway has."""
        super().__init__(message)
        self.offset = offset


def code_of(error: GatewayError) -> int:
    """Return the exit code for an error of the program's own."""
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), FAILURE)


def text_of(error: GatewayError) -> str:
    """Return the text of an error for the user who runs the work locally: with the details."""
    # The end of a tool's standard error has several lines, with names from an image in them.
    details = [printable(line, LINE_LIMIT) for line in error.detail.strip().split("\n")]
    return "\n".join(filter(None, [error.what, error.remedy, *details]))


def report(error: Stop | GatewayError) -> int:
    """Print an error on standard error and return its exit code."""
    if isinstance(error, Stop):
        error.show()
        return error.exit_code
    click.echo(f"Error: {text_of(error)}", err=True)
    return code_of(error)


def report_interruption(text: str) -> None:
    """Print what an interruption leaves behind; the terminal itself may be gone."""
    with suppress(OSError):
        click.echo(text, err=True)
    drop_output()
