"""What both stores share about the ranges of delivered files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from twisted.logger import Logger

from shiftergw.errors import printable
from shiftergw.model.packed_data import PackedData
from shiftergw.ports import DeltaBase

MOST_FILES = 1000
"""The most files whose ranges are compared with those of a file that is to be delivered."""

_log = Logger()


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a record says of its file; a record of another program may say anything."""

    image_id: Any
    sha256: Any
    size: Any
    modified: Any


def usable_files(files: Iterable[FileFacts]) -> Iterator[FileFacts]:
    """Yield the first file of each image, unless its record says too little of it."""
    image_ids: set[str] = set()
    for file in files:
        is_complete = isinstance(file.image_id, str) and isinstance(file.size, int)
        if is_complete and file.image_id not in image_ids:
            image_ids.add(file.image_id)
            yield file


def decode_base(file: FileFacts, content: bytes) -> DeltaBase | None:
    """Return a file with its ranges; None, and a warning, if the ranges are damaged."""
    try:
        data = PackedData.decode(content)
    except ValueError as error:
        _log.warn(
            "the recorded ranges of {sha256} are not used: {error}",
            sha256=printable(str(file.sha256), 64),
            error=error,
        )
        return None
    modified = file.modified if isinstance(file.modified, int) else None
    return DeltaBase(file.image_id, file.sha256, file.size, modified, data)
