"""Which registry the name of an image means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shiftergw.errors import ImageNotFound
from shiftergw.model.references import ImageReference
from shiftergw.sources.registry.location import Location

Locate = Callable[[ImageReference], tuple[str, str]]
"""Splits the name of a reference into that of a location and a repository there."""

Find = Callable[[str, str], Location | None]
"""Returns the registry of a host and a repository that no location names, if it is allowed."""


def find_nothing(_host: str, _repository: str) -> None:
    """Allow no registry besides the locations."""


@dataclass(frozen=True, slots=True)
class RegistryNames:
    """The registries from which images may be pulled.

    `locations` are those of the configuration, by their names. `find` returns others, and
    `examples` has one of each kind that it returns: their files are read at the start.
    """

    locations: Mapping[str, Location]
    locate: Locate
    find: Find = find_nothing
    examples: Sequence[Location] = ()

    def location(self, name: str, repository: str) -> Location:
        """Return the location of a name, or raise `ImageNotFound`."""
        location = self.locations.get(name) or self.find(name, repository)
        if location is None:
            raise ImageNotFound(
                f"The gateway knows no registry {name!r}.",
                remedy="Ask the site's support which registries there are.",
            )
        return location
