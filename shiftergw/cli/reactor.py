"""Run a command in a reactor of its own, for commands that do several things at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall

from shiftergw.app.reactor import run_main
from shiftergw.cli.exits import DONE, Stop, report, report_interruption
from shiftergw.cli.readers import LOOK_INTERVAL, has_readers
from shiftergw.cli.start import code_of_output_error
from shiftergw.errors import GatewayError
from shiftergw.plumbing.signals import ENDING

Command = Callable[[Any], Coroutine[Deferred[Any], Any, int]]
"""A command that needs a reactor and returns its exit code."""


def run(command: Command, interruption: str = "Interrupted.") -> NoReturn:
    """Run a command in a reactor of its own, and exit with its exit code.

    Prints `interruption` on standard error if a signal ends the command.
    """
    sys.exit(_exit_code_of(command, interruption))


def exit_code_of(command: Command, interruption: str = "Interrupted.") -> int:
    """Run a command in a reactor of its own, and return its exit code.

    For a command that asks the user questions once the reactor has ended.
    """
    handlers = {number: signal.getsignal(number) for number in ENDING}
    code = _exit_code_of(command, interruption)
    if code == DONE:
        # The reactor leaves handlers behind with which no signal would interrupt a question.
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code


def _exit_code_of(command: Command, interruption: str) -> int:
    return run_main(
        lambda reactor: run_guarded(while_output_is_read(reactor, command(reactor)), interruption)
    )


async def run_guarded(command: Coroutine[Deferred[Any], Any, int], interruption: str) -> int:
    """Return the exit code of a command; print errors that have an explanation.

    Other exceptions are raised, since they are faults of the program. Raises `CancelledError` once
    `interruption` is printed.
    """
    try:
        try:
            return await command
        except CancelledError:
            report_interruption(interruption)
            raise
        except (Stop, GatewayError) as error:
            return report(error)
    except OSError as error:
        return code_of_output_error(error)


async def while_output_is_read(clock: Any, command: Coroutine[Deferred[Any], Any, int]) -> int:
    """Return the result of a command; cancel it once a pipe that it prints to has no reader.

    Raises `BrokenPipeError` then, even if nothing is printed: `shiftergw pull ... | head -1` must
    not wait for a conversion that has nothing to print.
    """
    running = Deferred.fromCoroutine(command)
    is_broken = False

    def look() -> None:
        nonlocal is_broken
        if not is_broken and not has_readers():
            is_broken = True
            running.cancel()

    watch = LoopingCall(look)
    watch.clock = clock
    watch.start(LOOK_INTERVAL, now=False)
    try:
        return await running
    except CancelledError:
        if is_broken:
            raise BrokenPipeError from None
        raise
    finally:
        watch.stop()
