"""The circuit breakers that the processes of a site share, by the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shiftergw.model.postponement import Breaker
from shiftergw.model.requests import RegistryLogin

if TYPE_CHECKING:
    from shiftergw.ports import BreakerStore


class NoBreakers:
    """A `BreakerStore` that holds nothing back: for conversions outside the service."""

    async def check_breaker(self, key: str, now: float, seconds: float) -> Breaker | None:
        """Hold nothing back."""

    async def trip_breaker(self, key: str, until: float, why: str, now: float) -> None:
        """Do nothing."""

    async def close_breaker(self, key: str, now: float) -> None:
        """Do nothing."""

    async def end_probe(self, key: str, end: float, at: float) -> None:
        """Do nothing."""


def _no_fingerprint(_: RegistryLogin) -> str:
    return "login"


@dataclass(frozen=True, slots=True)
class SharedBreakers:
    """The breakers that the processes of a site share, and the names in their keys.

    `machine` is the host name of the machine that sends the requests. `fingerprint` returns a keyed
    digest of a login: the login cannot be computed from it.
    """

    breakers: BreakerStore = field(default_factory=NoBreakers)
    machine: str = ""
    fingerprint: Callable[[RegistryLogin], str] = _no_fingerprint
