"""The mirrors of a location: opened, with the gateway's own logins there."""

from __future__ import annotations

from dataclasses import dataclass, field

from shiftergw.model.requests import RegistryLogin
from shiftergw.sources.registry.local_files import mirror_login
from shiftergw.sources.registry.location import Location, Mirror
from shiftergw.sources.registry.registries import Registries, Registry


@dataclass(frozen=True, slots=True)
class MirrorPlace:
    """A mirror of a location, opened, with the gateway's own login there."""

    mirror: Mirror
    registry: Registry
    login: RegistryLogin | None = field(repr=False)

    @property
    def name(self) -> str:
        """Return the host of the mirror."""
        return self.mirror.location.name


def open_mirrors(registries: Registries, location: Location) -> tuple[MirrorPlace, ...]:
    """Return the mirrors of a location; raise `ConfigurationError` for a login file. Blocks."""
    return tuple(
        MirrorPlace(mirror, registries.at(mirror.location), mirror_login(mirror))
        for mirror in location.mirrors
    )
