"""Run a command that sends a few requests to the gateways of one system."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from shiftergw.cli.blocking import run_blocking
from shiftergw.cli.exchange import TlsUnproven
from shiftergw.cli.exchange_blocking import BlockingExchange
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings


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
