"""Run a command that sends a few requests to the gateways of one system."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from shiftergw.cli.blocking import run_blocking, value_of
from shiftergw.cli.exchange import TlsUnproven
from shiftergw.cli.exchange_blocking import BlockingExchange
from shiftergw.cli.exits import DONE
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings

T = TypeVar("T")


def run_requests(
    settings: Settings, command: Callable[[Remote], Coroutine[Any, Any, int]]
) -> NoReturn:
    """Run a command on the gateways that `settings` name, and exit with its exit code.

    The command runs without a reactor. Where the standard library does not trust a gateway's
    certificate, the command runs once more by Twisted's client: that client decides, and its error
    messages say what is wrong with the certificate.
    """
    try:
        run_blocking(lambda: command(Remote(BlockingExchange(), settings)))
    except TlsUnproven:
        from shiftergw.cli.exchange_twisted import TwistedExchange  # noqa: PLC0415 - seldom
        from shiftergw.cli.reactor import run  # noqa: PLC0415 - seldom

        # The first run has printed what there is to warn of.
        run(lambda reactor: command(Remote(TwistedExchange(reactor), settings, lambda _: None)))


def answer_of(settings: Settings, call: Callable[[Remote], Coroutine[Any, Any, T]]) -> T:
    """Return the answer to one request, for a command that goes on without the gateways.

    Exits, with the error printed, if the request fails by Twisted's client. Raises `Stop`.
    """
    try:
        return value_of(call(Remote(BlockingExchange(), settings)))
    except TlsUnproven:
        from shiftergw.cli.exchange_twisted import TwistedExchange  # noqa: PLC0415 - seldom
        from shiftergw.cli.reactor import exit_code_of  # noqa: PLC0415 - seldom

    answers: list[T] = []

    async def command(reactor: Any) -> int:
        answers.append(await call(Remote(TwistedExchange(reactor), settings, lambda _: None)))
        return DONE

    code = exit_code_of(command)
    if code != DONE:
        sys.exit(code)
    return answers[0]
