"""Requests that are repeated after a moment."""

from __future__ import annotations

import pytest
import pytest_twisted

from shiftergw.errors import (
    GatewayError,
    RegistryUnavailable,
    RetryLater,
)
from shiftergw.model.references import ImageReference
from shiftergw.sources.registry.retry import Interruption, Patience
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import (
    REACTOR,
    open_client,
    quiet,
    serving,
)
from tests.sources.registry.simple_images import AMD64, IMAGE, resolve

# Being asked to wait, and broken connections.


@pytest_twisted.ensureDeferred
async def test_slow_down() -> None:
    """The client waits after a 429 with `Retry-After`, and reports the reason to the user."""
    messages: list[str] = []

    def misbehave(ask: Ask) -> object:
        body = b'{"errors":[{"message":"too many"}]}'
        return not ask.registry.requests and ask.answer(429, body, Retry_After="1")

    registry = FakeRegistry(IMAGE, misbehave=misbehave)
    async with serving(registry) as client:
        start = REACTOR.seconds()
        reference = ImageReference.parse("team/app")
        image, _ = await client.resolve(reference, AMD64, None, messages.append)
    assert image.digest == IMAGE.digest
    assert REACTOR.seconds() - start >= 1
    assert messages == ["waiting 1 s: The registry 'test' asked to slow down: too many"]


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
@pytest_twisted.ensureDeferred
async def test_a_registry_that_stays_away(status: int) -> None:
    """After three such answers the pull must wait, and other pulls are not blocked."""
    registry = FakeRegistry(misbehave=lambda ask: ask.answer(status, b"<html>"))
    async with serving(registry) as client:
        with pytest.raises(RetryLater, match=f"status {status}") as caught:
            await resolve(client)
    assert len(registry.requests) == 3
    assert (caught.value.why, caught.value.registry) == (f"test (status {status})", "")
    assert not caught.value.is_fixed


@pytest_twisted.ensureDeferred
async def test_hang_ups_and_silence() -> None:
    """If a connection is closed, reset or silent before the answer, the request is repeated."""

    def misbehave(ask: Ask) -> object:
        return {1: ask.hang_up, 2: lambda: ask.hang_up(reset=True), 3: lambda: True}.get(
            ask.nth, lambda: None
        )()

    registry = FakeRegistry(IMAGE, misbehave=misbehave)
    async with serving(registry, patience=Patience(tries=4, first=0.01)) as client:
        reference = ImageReference.parse("team/app")
        assert (await client.resolve(reference, AMD64, None, quiet))[0].digest == IMAGE.digest
    assert sum(ask.path.endswith("/latest") for ask in registry.requests) == 4


@pytest_twisted.ensureDeferred
async def test_a_refused_connection() -> None:
    """The error for a refused connection has neither host nor port."""
    registry = await FakeRegistry().start()
    await registry.stop()
    async with open_client(f"http://{registry.host}") as client:
        with pytest.raises(RetryLater, match=r"'test'.*refused") as caught:
            await resolve(client)
    assert caught.value.why == "test (unreachable)"
    assert registry.host not in str(caught.value)
    assert registry.host in caught.value.detail


def test_interruptions_are_errors_of_the_program() -> None:
    """The error after the last try is a retryable `RegistryUnavailable`."""
    assert issubclass(Interruption, RegistryUnavailable)
    assert Interruption.retryable
    assert issubclass(Interruption, GatewayError)
