"""Read SIF files, the format of Singularity 3 and later and of Apptainer. Blocks.

A SIF file has a header, a table of descriptors, and data objects: the file system of the image in
the primary system partition, labels, signatures. All numbers are little-endian and packed without
padding (`pkg/sif` of sylabs/sif).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from shiftergw.errors import ManifestInvalid
from shiftergw.sources.local.extents import Extent, ExtentFile, file_errors, read_extent

MAGIC = b"SIF_MAGIC\0"
MAGIC_OFFSET = 32
"""Bytes of the line that lets a shell start the file."""

_HEADER = Struct("<32s10s3s3s16sqqqqqqqq")
# type, used, id, group, link, offset, size, size with padding, times, owners, name, extra
_DESCRIPTOR = Struct("<i?IIIqqqqqqq128s384s")
_PARTITION = Struct("<ii3s")
_MOST_DESCRIPTORS = 4096

_LABELS, _DATA_PARTITION, _OCI_ROOT_INDEX = 0x4003, 0x4004, 0x400A
_PRIMARY = 2
_SQUASHFS, _EXT3, _ENCRYPTED_SQUASHFS = 1, 2, 5
_LABELS_LIMIT = 1 << 20

_ARCHITECTURES = {
    b"01": "386", b"02": "amd64", b"03": "arm", b"04": "arm64", b"05": "ppc64", b"06": "ppc64le",
    b"07": "mips", b"08": "mipsle", b"09": "mips64", b"10": "mips64le", b"11": "s390x",
    b"12": "riscv64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SifImage:
    """The primary partition of a SIF file, which is a squashfs.

    `architecture` is Go's name, or empty; `labels` is the JSON document of the labels, or empty.
    """

    partition: Extent
    architecture: str
    labels: bytes


@dataclass(frozen=True, slots=True)
class _Object:
    kind: int
    extent: Extent
    extra: bytes


def read_sif(file: Extent) -> SifImage:
    """Return the image of a SIF file; raise `ManifestInvalid` if it cannot be read here."""
    header = _HEADER.unpack(_read(file, 0, _HEADER.size))
    architecture, total, offset = header[3], header[8], header[9]
    if not 0 <= total <= _MOST_DESCRIPTORS or not 0 < offset < file.size:
        raise _damage()
    objects = []
    table = _read(file, offset, total * _DESCRIPTOR.size)
    for fields in _DESCRIPTOR.iter_unpack(table):
        kind, is_used, start, size, extra = fields[0], fields[1], fields[5], fields[6], fields[13]
        if not is_used:
            continue
        if start < 0 or size < 0 or start + size > file.size:
            raise _damage()
        objects.append(_Object(kind, Extent(file.path, start, size), extra))
    partition, partition_architecture = _primary(objects)
    labels = next((o.extent for o in objects if o.kind == _LABELS), None)
    return SifImage(
        partition,
        _ARCHITECTURES.get((partition_architecture or architecture).rstrip(b"\0"), ""),
        b"" if labels is None else read_extent(labels, _LABELS_LIMIT, "labels of the SIF file"),
    )


def _primary(objects: list[_Object]) -> tuple[Extent, bytes]:
    """Return the primary system partition and its architecture; raise `ManifestInvalid`."""
    for item in objects:
        if item.kind != _DATA_PARTITION:
            continue
        file_system, role, architecture = _PARTITION.unpack(item.extra[: _PARTITION.size])
        if role != _PRIMARY:
            continue
        if file_system == _ENCRYPTED_SQUASHFS:
            raise ManifestInvalid(
                "The file system in the SIF file is encrypted; the gateway has no key for it.",
                remedy="Build the image without encryption.",
            )
        if file_system != _SQUASHFS:
            kind = "an ext3 file system" if file_system == _EXT3 else "not a squashfs"
            raise ManifestInvalid(
                f"The primary partition of the SIF file is {kind}, which is not supported.",
                remedy="Build it once more with a current Apptainer: `apptainer build new.sif"
                " old.sif`.",
            )
        return item.extent, architecture
    if any(item.kind == _OCI_ROOT_INDEX for item in objects):
        raise ManifestInvalid(
            "The SIF file is an OCI-SIF, which has no file system of its own.",
            remedy="Pull the image from its registry, or build the file without `--oci`.",
        )
    raise ManifestInvalid(
        "The SIF file has no primary system partition.",
        remedy="Only files that can be run have one: build the image once more.",
    )


def _read(file: Extent, offset: int, size: int) -> bytes:
    with file_errors("SIF file"), ExtentFile(Extent(file.path, offset, size)) as source:
        content = source.read(size)
    if len(content) < size:
        raise _damage()
    return content


def _damage() -> ManifestInvalid:
    return ManifestInvalid(
        "The SIF file is damaged or incomplete.", remedy="Copy or build it once more."
    )
