"""Both HTTP clients of the command line, for tests that hold for each."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import pytest
from twisted.internet.threads import deferToThread

from shiftergw.cli.blocking import value_of
from shiftergw.cli.exchange_blocking import BlockingExchange
from shiftergw.cli.exchange_twisted import TwistedExchange
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from tests.installed_reactor import reactor

T = TypeVar("T")
Calls = Callable[[Remote], Coroutine[Any, Any, T]]
"""Calls one or several methods of a client."""


async def with_twisted(settings: Settings, calls: Calls[T], urls: Sequence[str] = ()) -> T:
    """Run calls by Twisted's client."""
    return await calls(Remote(TwistedExchange(reactor), settings, urls=urls))


async def with_standard_library(settings: Settings, calls: Calls[T], urls: Sequence[str] = ()) -> T:
    """Run calls by the client that blocks, in a thread."""
    result: T = await deferToThread(
        lambda: value_of(calls(Remote(BlockingExchange(), settings, urls=urls)))
    )
    return result


both_clients = pytest.mark.parametrize("with_client", [with_twisted, with_standard_library])
"""Runs a test with each client."""
