"""Port to the ranges of delivered files that are data of layer packs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from shiftergw.model.packed_data import PackedData


@dataclass(frozen=True, slots=True)
class DeltaBase:
    """A READY image whose file has data of packs in common with a file that is to be delivered.

    `size` and `sha256` are those of its file, which was last written at `modified` (seconds since
    1970; None if that is not known). `data` says where in the file the data of packs is.
    """

    image_id: str
    sha256: str
    size: int
    modified: int | None
    data: PackedData


class RangeStore(Protocol):
    """Stores which ranges of delivered files are data of packs, by the SHA-256 of the files.

    A power cut may lose the last writes. Deliveries work without them: they send the whole file.
    """

    async def save_ranges(self, sha256: str, data: PackedData, now: float) -> None:
        """Keep the ranges of a file that an image is about to have; replace earlier ones."""
        ...

    async def find_bases(
        self, systems: Collection[str], data_sizes: Mapping[str, int], excluded_id: str, limit: int
    ) -> Sequence[DeltaBase]:
        """Return at most `limit` READY images of these systems that have data of these packs.

        `data_sizes` maps the digest of a pack's data to the bytes of it that the new file has. The
        images that may have most of them come first. Images with the id `excluded_id` are left
        out. A store may look at a thousand of the files only, if there are very many.
        """
        ...

    async def forget_ranges(self, before: float) -> int:
        """Remove ranges that were saved before a time and whose file no image has; return how many.

        An image has its file while one of its records is READY or EXPIRING.
        """
        ...
