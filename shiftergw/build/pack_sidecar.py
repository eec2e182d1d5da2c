"""The sidecar of a pack: index of its layer, measures, and digests and data of its contents.

It is `_MAGIC`, the SHA-256 of all that follows, the length of a JSON document and the document, the
digests of the contents, the length of their columns and the columns, which say where the data of
each content is, and the index. So nobody parses the inodes of a pack once more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from struct import Struct
from threading import Event
from typing import Any

from shiftergw.model.images import Digest
from shiftergw.oci.budget import stoppable
from shiftergw.oci.stored_index import (
    SIZE_LIMIT,
    compress_columns,
    decode_index,
    decompress_columns,
    encode_index,
)
from shiftergw.oci.tar import LayerIndex
from shiftergw.oci.tree import NO_CONTENT
from shiftergw.plumbing.files import read_whole
from shiftergw.squashfs.columns import FileColumns

_MAGIC = b"sgwpack\2"
"""The first bytes of a sidecar; the last of them is the version of its format."""

_MAGICS = (b"sgwpack\1", _MAGIC)
"""The first bytes of sidecars whose document can be read, so that the scrub knows old packs."""

_DIGEST_SIZE = 32
_DIGEST = Struct(f"{_DIGEST_SIZE}s")
_LENGTH = Struct("<I")
_BODY = len(_MAGIC) + _DIGEST_SIZE
_LIMIT = 2 * SIZE_LIMIT
"""Bytes of the largest sidecar that is read."""

_HEAD_SIZE = 4096
"""Bytes that have the document; it has less than a thousand."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Size, time of the last change in nanoseconds, and digests of the file of a pack.

    `other_sha256` is the digest of the bytes that are not data: before and behind them.
    """

    size: int
    mtime_ns: int
    data_sha256: str
    other_sha256: str


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The content of a sidecar; `digests` and `columns` are those of the contents, by number."""

    index: LayerIndex
    digests: Sequence[bytes]
    columns: FileColumns
    measures: Measures


@dataclass(frozen=True, slots=True)
class SidecarHead:
    """The document of a sidecar: the proven `diff_id`, the number of contents, the measures."""

    diff_id: Digest
    contents: int
    measures: Measures


@dataclass(frozen=True, slots=True)
class EncodedContents:
    """What a sidecar says without the measures: a part of its document, and all that follows."""

    document: Mapping[str, object]
    rest: bytes


def encode_contents(
    index: LayerIndex, digests: Sequence[bytes], columns: FileColumns, stop: Event
) -> EncodedContents:
    """Encode all of a sidecar but the measures.

    Raises `ImageTooLarge` for a very large index, and `StopRequested` soon after `stop` is set.
    """
    encoded_columns = compress_columns(columns.encode(), stop)
    encoded_index = encode_index(index, stop)
    parts = [*digests, _LENGTH.pack(len(encoded_columns)), encoded_columns, encoded_index]
    document = {"diff_id": str(index.diff_id), "contents": len(digests)}
    return EncodedContents(document, b"".join(parts))


def encode(contents: EncodedContents, measures: Measures) -> bytes:
    """Return the bytes of a sidecar."""
    document = json.dumps({**contents.document, **asdict(measures)}).encode()
    body = b"".join([_LENGTH.pack(len(document)), document, contents.rest])
    return b"".join([_MAGIC, sha256(body).digest(), body])


def read(path: Path, stop: Event) -> Sidecar:
    """Return what a sidecar says.

    Raises `ValueError`, `KeyError` or `TypeError` for damage, and `OSError`. Blocks.
    """
    content = _read_sound(path)
    if not content.startswith(_MAGIC):
        raise ValueError("its sidecar is of another version of this program")
    head, position = _decode_head(content)
    body = memoryview(content)
    end = position + _DIGEST_SIZE * head.contents
    digests = [digest for (digest,) in _DIGEST.iter_unpack(body[position:end])]
    start = end + _LENGTH.size
    end = start + int.from_bytes(body[end:start], "little")
    columns = FileColumns.decode(decompress_columns(body[start:end]))
    index = decode_index(body[end:], head.diff_id, stop)
    numbers = stoppable((entry.number for entry in index.entries), stop)
    if len(columns) != len(digests) or max(numbers, default=NO_CONTENT) >= len(digests):
        raise ValueError("its sidecar names a content that the pack does not have")
    return Sidecar(index, digests, columns, head.measures)


def read_head(path: Path) -> SidecarHead:
    """Return the document of a sound sidecar without its index; errors are those of `read`."""
    return _decode_head(_read_sound(path))[0]


def read_unchecked_head(path: Path) -> SidecarHead:
    """Return the document of a sidecar that may be damaged elsewhere; errors are those of `read`.

    It reads a few bytes of a file that may have hundreds of megabytes.
    """
    with path.open("rb") as file:
        return _decode_head(file.read(_HEAD_SIZE))[0]


def _read_sound(path: Path) -> bytes:
    """Return the bytes of a sidecar after a check of their digest."""
    content, _ = read_whole(path, _LIMIT)
    digest = content[len(_MAGIC) : _BODY]
    if not content.startswith(_MAGICS) or sha256(memoryview(content)[_BODY:]).digest() != digest:
        raise ValueError("its sidecar is damaged")
    return content


def _decode_head(content: bytes) -> tuple[SidecarHead, int]:
    """Return the document at the beginning of a sidecar, and the position behind it."""
    start = _BODY + _LENGTH.size
    if not content.startswith(_MAGICS) or len(content) < start:
        raise ValueError("its sidecar is damaged")
    (length,) = _LENGTH.unpack_from(content, _BODY)
    document: dict[str, Any] = json.loads(content[start : start + length])
    measures = Measures(*(document[field.name] for field in fields(Measures)))
    diff_id = Digest.parse(document["diff_id"])
    return SidecarHead(diff_id, document["contents"], measures), start + length
