"""Tell by its content in which form a file or directory has an image. Blocks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from shiftergw.errors import ManifestInvalid
from shiftergw.model.source_names import SourceKind
from shiftergw.oci.compression import is_packed
from shiftergw.oci.header import BLOCK, has_valid_checksum
from shiftergw.sources.local import docker_archive, layout, skopeo_directory
from shiftergw.sources.local.extents import Extent, ExtentFile, file_errors, whole_file
from shiftergw.sources.local.sif import MAGIC as SIF_MAGIC
from shiftergw.sources.local.sif import MAGIC_OFFSET as SIF_MAGIC_OFFSET
from shiftergw.sources.local.trees import FileTree
from shiftergw.squashfs.superblock import MAGIC as SQUASHFS_MAGIC

FileForm = Literal["sif", "squashfs", "packed", "tar"]

_CHECKSUM = slice(148, 156)
_LAUNCH = re.compile(rb"#![^\n]{1,100}run-singularity\n(?=%b)" % SQUASHFS_MAGIC)
"""The first line of images of Singularity 2.4 and later 2.x, before the file system."""

_EXT_MAGIC = b"\x53\xef"
_EXT_MAGIC_OFFSET = 1080
HEAD_BYTES = 2048
"""Bytes at the begin of a file that show its form."""

_FORMS: dict[SourceKind, tuple[FileForm, ...]] = {
    "sif": ("sif",),
    "squashfs": ("squashfs",),
    "oci-archive": ("tar",),
    "docker-archive": ("tar",),
    "path": ("tar", "sif", "squashfs"),
}
"""The forms that a file of each kind may have, once it is unpacked."""

_FORM_NAMES: dict[FileForm, str] = {
    "sif": "a SIF file",
    "squashfs": "a squashfs file",
    "tar": "a tar archive",
}

_UNSUPPORTED = (
    (b"\xfd7zXZ\0", "packed with xz"),
    (b"BZh", "packed with bzip2"),
    (b"LZIP", "packed with lzip"),
    (b"PK\3\4", "a zip file"),
    (b"sqsh", "a squashfs file of the old big-endian format"),
)


def form_of_file(path: Path) -> tuple[FileForm, Extent]:
    """Return the form of a file, and the part of it that has the image.

    Raises `ManifestInvalid` with what it is instead, `ImageNotFound` and `SourceUnreadable`.
    """
    whole = whole_file(path, "file")
    with file_errors("file"), ExtentFile(whole) as file:
        head = file.read(HEAD_BYTES)
    form, start = _form_of_head(head)
    return form, Extent(path, start, whole.size - start)


def check_head(head: bytes, kind: SourceKind) -> None:
    """Raise `ManifestInvalid` if a file that begins with `head` has no image of this kind.

    What it has inside, if it is packed, is not known.
    """
    form, _ = _form_of_head(head)
    if form != "packed":
        check_form(form, kind)


def check_form(form: FileForm, kind: SourceKind) -> None:
    """Raise `ManifestInvalid` unless a file of this kind may have a form, once it is unpacked."""
    if form == "packed":
        raise ManifestInvalid(
            "The file is packed twice with gzip or zstd.", remedy="Unpack it once."
        )
    if form not in _FORMS[kind]:
        raise ManifestInvalid(
            f"The file is {_FORM_NAMES[form]}, and not what its prefix {kind}: says.",
            remedy="Write its path alone, as in `shiftergw pull FILE NAME`: the content tells"
            " what it is.",
        )


def _form_of_head(head: bytes) -> tuple[FileForm, int]:
    """Return the form of a file by its first `HEAD_BYTES`, and where its image begins."""
    if not head:
        raise ManifestInvalid(
            "The file is empty.",
            remedy="Look whether the program that should have written it has failed.",
        )
    if head[SIF_MAGIC_OFFSET:].startswith(SIF_MAGIC):
        return "sif", 0
    launch = _LAUNCH.match(head)
    start = launch.end() if launch is not None else 0
    if head[start:].startswith(SQUASHFS_MAGIC):
        return "squashfs", start
    if is_packed(head[:4]):
        return "packed", 0
    block = head[:BLOCK]
    if len(block) == BLOCK and has_valid_checksum(block, block[_CHECKSUM]):
        return "tar", 0
    raise ManifestInvalid(
        f"The file has no image that is supported: it is {_description(head)}.",
        remedy="Images are read from archives of `docker save`, `podman save` and skopeo, plain or"
        " packed with gzip or zstd, from SIF files, and from squashfs files.",
    )


def _description(head: bytes) -> str:
    for magic, description in _UNSUPPORTED:
        if head.startswith(magic):
            return description
    is_old = head.startswith(b"#!") and b"run-singularity" in head[:100]
    if is_old or head[_EXT_MAGIC_OFFSET:].startswith(_EXT_MAGIC):
        return "an ext3 file system, as Singularity 1 and 2 wrote it"
    return "neither a tar archive nor a SIF or squashfs file"


def form_of_archive(tree: FileTree) -> Literal["docker-archive", "oci-archive", "dir"]:
    """Return the form of an archive; `dir` is a tar of a directory of skopeo's.

    What Docker 25 and later save is both. It counts as an archive of `docker save`, so that an
    image has the same id whichever version has saved it.
    """
    if tree.extent(skopeo_directory.MANIFEST) and tree.extent(skopeo_directory.VERSION):
        return "dir"
    if tree.extent(docker_archive.MANIFEST) or tree.extent(docker_archive.REPOSITORIES):
        return "docker-archive"
    if tree.extent(layout.INDEX):
        return "oci-archive"
    raise ManifestInvalid(
        f"The tar archive has no image: neither {docker_archive.MANIFEST} nor {layout.INDEX} is in"
        " it.",
        remedy="Write it with `docker save`, `podman save` or skopeo. `docker export` saves the"
        " files of a container, and no image.",
    )


def form_of_directory(tree: FileTree) -> Literal["oci", "dir"]:
    """Return the form of a directory."""
    if tree.extent(layout.INDEX):
        return "oci"
    if tree.extent(skopeo_directory.MANIFEST) and tree.extent(skopeo_directory.VERSION):
        return "dir"
    raise ManifestInvalid(
        "The directory has no image: it is neither an OCI layout nor one of `skopeo copy … dir:`.",
        remedy="Check the path. A directory with the files of a container is no image: make one"
        " with `buildah` or `umoci`.",
    )
