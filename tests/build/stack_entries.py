"""Entries of layers, also sparse ones, with the whole contents of their files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.images import entry


@dataclass(frozen=True)
class StackEntry:
    """An entry of a layer.

    `content` is that of the file, `archive_data` what an archive has of it if it is sparse.
    """

    info: tarfile.TarInfo
    content: bytes
    archive_data: bytes | None = None


def sparse_entry(
    path: str, pieces: Sequence[tuple[int, bytes]], size: int, **members: Any
) -> StackEntry:
    """Return a sparse file of `size` bytes with these (position, data), in the format PAX 0.1."""
    content = bytearray(size)
    for start, data in pieces:
        content[start : start + len(data)] = data
    numbers = [number for start, data in pieces for number in (start, len(data))]
    headers = {
        "GNU.sparse.size": str(size),
        "GNU.sparse.numblocks": str(len(pieces)),
        "GNU.sparse.map": ",".join(map(str, numbers)),
    }
    archive_data = b"".join(data for _, data in pieces)
    info, _ = entry(path, archive_data, pax_headers=headers, **members)
    return StackEntry(info, bytes(content), archive_data)


def tar_of_entries(entries: Iterable[StackEntry], tar_format: int) -> bytes:
    """Return the archive of a layer."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        for item in entries:
            data = item.content if item.archive_data is None else item.archive_data
            archive.addfile(item.info, io.BytesIO(data))
    return out.getvalue()
