"""Registries that limit requests, and breakers that their clients share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from shiftergw.model.images import Platform
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.seal import Seal
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.retry import (
    Patience,
)
from shiftergw.sources.registry.shared_breakers import SharedBreakers
from tests.images import make_image, tar_of
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import REACTOR, Network, quiet

IMAGE = make_image([tar_of({"a": b"a"})])
SEAL = Seal(bytes(32))
PATIENCE = Patience(first=0.01, quick=0.5)


class ShiftedClock(Network):
    """A network whose clock, which breakers use, is `shift` seconds ahead."""

    def __init__(self) -> None:
        """Start without a shift."""
        super().__init__({})
        self.shift = 0.0

    def seconds(self) -> float:
        """Return the time."""
        return float(REACTOR.seconds()) + self.shift


def breakers_of(store: Any, machine: str = "node1") -> SharedBreakers:
    """Return the breakers that a process on a machine shares through a store."""
    return SharedBreakers(store, machine, lambda login: SEAL.fingerprint(login.password, "test"))


async def resolve(client: RegistryClient, login: RegistryLogin | None = None) -> bool:
    """Resolve an image; return whether it counts as private."""
    reference = ImageReference.parse("team/app")
    return (await client.resolve(reference, Platform(), login, quiet))[0].private


@asynccontextmanager
async def registry(limits: Callable[[Ask], object]) -> AsyncIterator[FakeRegistry]:
    """Run a registry; `limits` answers requests in its place."""
    server = FakeRegistry(IMAGE, misbehave=limits)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
