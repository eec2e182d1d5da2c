"""The packs of all places of a machine: public ones, and those of each private repository."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shiftergw.build.converted import disk_errors
from shiftergw.build.pack_files import PackFiles, pack_groups, remove_abandoned_parts
from shiftergw.plumbing.disk_errors import SkipUnreadable

if TYPE_CHECKING:
    from shiftergw.plumbing.disk_budget import RemovableFiles
    from shiftergw.plumbing.threads import Threads


@dataclass(frozen=True, slots=True)
class PackPlaces:
    """All packs below a directory, as a `FileKind`; `list_places` returns the places of packs.

    All methods block.
    """

    directory: Path
    list_places: Callable[[], Sequence[Path]]

    def list_removable(self) -> list[RemovableFiles]:
        """Return all packs, each with its sidecar."""
        return [
            files for place in self.list_places() for files in pack_groups(place).list_removable()
        ]

    def list_packs(self) -> list[PackFiles]:
        """Return the packs of all places; whether they have a sidecar is not looked at."""
        packs = (
            PackFiles.of_pack(path) for place in self.list_places() for path in place.glob("*.pack")
        )
        return [files for files in packs if files is not None]

    def sweep(self, before: float) -> int:
        """Remove the packs that were last used before this time; return how many were removed.

        What killed processes have left of packs is removed whatever its time.
        """
        places = self.list_places()
        for place in places:
            remove_abandoned_parts(place)
        return sum(pack_groups(place).sweep(before) for place in places)


class PackSweep:
    """Keeps the port `Sweepable` for the packs of layers."""

    def __init__(self, packs: PackPlaces, threads: Threads) -> None:
        """Sweep `packs` in `threads`."""
        self._packs = packs
        self._threads = threads

    async def sweep(self, before: float) -> int:
        """Remove the packs that were last used before this time; return how many were removed."""
        with disk_errors():
            return await self._threads.run(self._packs.sweep, before)


def last_uses(directory: Path) -> dict[str, float]:
    """Return when a pack of each layer was last used, by the hexadecimal digits of its digest."""
    uses: dict[str, float] = {}
    for path in directory.glob("*.index"):
        with SkipUnreadable(path):
            layer = path.name.partition("-")[0]
            uses[layer] = max(path.stat().st_mtime, uses.get(layer, 0.0))
    return uses
