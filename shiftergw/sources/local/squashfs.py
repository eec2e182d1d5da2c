"""Make an image of one layer of a squashfs file system, in a file of its own or in a SIF file.

The file system is never passed on: `sqfs2tar` turns its content into a tar, which is read as every
other layer. The program parses bytes of users, so it runs with limits on memory, time and output.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from shiftergw.errors import (
    ChildFailed,
    ImageTooLarge,
    LayerInvalid,
    ManifestInvalid,
    SourceUnreadable,
    SquashfsCorrupt,
    TimedOut,
    printable,
    stage_timeout,
)
from shiftergw.model.build_options import BuildLimits
from shiftergw.model.images import Digest
from shiftergw.oci.archive import find_members
from shiftergw.oci.canonical import canonical_json, canonical_manifest
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.process import Command, run_command
from shiftergw.sources.local.extents import (
    Extent,
    ExtentFile,
    file_errors,
    read_extent,
    whole_file,
)
from shiftergw.sources.local.image_files import SingleImage
from shiftergw.sources.local.scratch_files import ReportBytes, byte_counter, copy_extent, spool
from shiftergw.sources.local.singularity_metadata import (
    ENVIRONMENT_FILES,
    FILE_LIMIT,
    LABELS_FILE,
    environment,
    labels,
)
from shiftergw.squashfs import superblock

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.plumbing.threads import Threads

MEMORY_LIMIT = 4 << 30
"""Bytes of address space of `sqfs2tar`, which keeps the tree of the file system in memory."""


async def squashfs_image(
    file_system: Extent,
    architecture: str,
    labels_document: bytes,
    scratch: Path,
    limits: BuildLimits,
    threads: Threads,
    reactor: Reactor,
    report: ReportBytes,
) -> SingleImage:
    """Return a file system, whose path is absolute, as an image; its layer is a file in `scratch`.

    `architecture` may be empty, and `labels_document` too. `report` gets the bytes of the layer, in
    a thread. Raises `ManifestInvalid`, `LayerInvalid`, `ImageTooLarge`, `SourceUnreadable`,
    `NoSpace` and `TimedOut`.
    """
    created = await threads.run(_check_superblock, file_system, limits)
    path = file_system.path
    if file_system.offset:
        path = scratch / "file-system.squashfs"
        stop = Event()
        await threads.run_until(stop.set, copy_extent, file_system, path, stop, report)
    target = scratch / "layer.tar"
    digest, size = await _run(path, file_system.size, target, limits, threads, reactor, report)
    stop = Event()
    config = await threads.run_until(
        stop.set, _config, target, digest, architecture, created, labels_document, stop
    )
    manifest = canonical_manifest(config, [(digest, size)])
    return SingleImage(manifest, config, {digest: Extent(target, 0, size)})


def _check_superblock(file_system: Extent, limits: BuildLimits) -> int:
    """Return when a file system was made; raise `ManifestInvalid` if it cannot be read."""
    with file_errors("squashfs file"), ExtentFile(file_system) as file:
        head = file.read(superblock.SIZE)
    try:
        block = superblock.Superblock.unpack(head)
    except SquashfsCorrupt as error:
        raise ManifestInvalid(error.what, remedy="Check the path and its prefix.") from error
    if block.version != superblock.VERSION:
        raise ManifestInvalid(
            f"The file system has the squashfs version {block.major}.{block.minor}; 4.0 is"
            " supported."
        )
    if block.bytes_used > file_system.size:
        raise ManifestInvalid(
            f"The squashfs file is incomplete: it should have {block.bytes_used} bytes, and has"
            f" {file_system.size}.",
            remedy="Copy it once more.",
        )
    if block.inodes > limits.all_entries:
        raise ImageTooLarge.for_limit(
            f"The file system has {block.inodes} entries; the gateway takes at most"
            f" {limits.all_entries}.",
            "MaxLayersEntries",
        )
    return block.created


async def _run(
    path: Path,
    stored_size: int,
    target: Path,
    limits: BuildLimits,
    threads: Threads,
    reactor: Reactor,
    report: ReportBytes,
) -> tuple[Digest, int]:
    """Write the tar of a file system to `target`; return its digest and size."""
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    await threads.run(_check_program, "sqfs2tar", "squashfs-tools-ng", env["PATH"])
    await threads.run(_check_program, "prlimit", "util-linux", env["PATH"])
    argv = ["prlimit", f"--as={MEMORY_LIMIT}", "--core=0", "sqfs2tar", "--no-xattr"]
    argv += ["--root-becomes", ".", str(path)]
    sha = hashlib.sha256()
    reading, writing = os.pipe()
    stop = Event()
    count = byte_counter(limits, stored_size, stop, report)

    def take(piece: bytes) -> None:
        count(piece)
        sha.update(piece)

    async def convert() -> None:
        command = Command(argv, env, stdout=writing, total=limits.stages.examination)
        running = Deferred.fromCoroutine(run_command(command, reactor, reactor))
        os.close(writing)
        await running

    async def write() -> int:
        try:
            return await threads.run_until(stop.set, spool, reading, target, stop, take)
        finally:
            os.close(reading)

    try:
        _, size = await gather_or_cancel([convert(), write()])
    except ChildFailed as error:
        raise LayerInvalid(
            "The squashfs file system is damaged, or uses a compression that sqfs2tar does not"
            " know.",
            remedy="Build or copy the file once more.",
            detail=printable(error.detail.strip() or error.what, 1000),
        ) from error
    except TimedOut as error:
        seconds = limits.stages.examination
        raise stage_timeout("Reading", seconds, "examination") from error
    assert isinstance(size, int)
    return Digest("sha256", sha.hexdigest()), size


def _check_program(program: str, package: str, path: str) -> None:
    """Raise `SourceUnreadable` if a program is not installed. Blocks."""
    if shutil.which(program, path=path) is None:
        raise SourceUnreadable(
            f"SIF and squashfs files are read by {program}, which this machine lacks.",
            remedy=f"Install the package {package}.",
        )


def _config(
    layer: Path,
    diff_id: Digest,
    architecture: str,
    created: int,
    labels_document: bytes,
    stop: Event,
) -> bytes:
    """Return the configuration of an image whose layer is at `layer`. Blocks."""
    whole = whole_file(layer, "layer")
    with file_errors("layer"), ExtentFile(whole) as file:
        names = [*ENVIRONMENT_FILES, LABELS_FILE]
        members = find_members(file, whole.size, names, stop)

    def read(name: str) -> bytes:
        member = members.get(name)
        if member is None or member.size > FILE_LIMIT:
            return b""
        extent = Extent(layer, member.offset, member.size)
        return read_extent(extent, FILE_LIMIT, "metadata of the image")

    config = {
        "Env": environment([read(name) for name in ENVIRONMENT_FILES]),
        "Labels": labels(labels_document or read(LABELS_FILE)),
    }
    return canonical_json(
        {
            "architecture": architecture,
            "os": "linux",
            "created": datetime.fromtimestamp(created, UTC).isoformat(),
            "config": {name: value for name, value in config.items() if value},
            "rootfs": {"type": "layers", "diff_ids": [str(diff_id)]},
        }
    )
