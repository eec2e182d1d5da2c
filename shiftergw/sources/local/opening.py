"""Open a file, a directory or a pipe as a source of one image."""

from __future__ import annotations

import stat
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from shiftergw.errors import ManifestInvalid, stage_timeout
from shiftergw.model.build_options import BuildLimits
from shiftergw.model.records import Progress
from shiftergw.model.source_names import LocalSourceName, SourceKind
from shiftergw.plumbing.timing import within
from shiftergw.sources.local.docker_archive import DockerArchive
from shiftergw.sources.local.extents import Extent, file_errors
from shiftergw.sources.local.forms import (
    check_form,
    form_of_archive,
    form_of_directory,
    form_of_file,
)
from shiftergw.sources.local.image_files import ImageFiles
from shiftergw.sources.local.images import LocalImageSource
from shiftergw.sources.local.layout import LayoutFiles
from shiftergw.sources.local.scratch_files import ReportBytes, byte_counter, spool, unpack
from shiftergw.sources.local.sif import read_sif
from shiftergw.sources.local.skopeo_directory import SkopeoDirectory
from shiftergw.sources.local.squashfs import squashfs_image
from shiftergw.sources.local.trees import ArchiveTree, DirectoryTree

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.plumbing.threads import Threads
    from shiftergw.ports import Notify, Report

_REPORT_BYTES = 4 << 20
"""Bytes between two reports of progress."""


async def open_source(
    name: LocalSourceName,
    scratch: Path,
    limits: BuildLimits,
    threads: Threads,
    reactor: Reactor,
    notify: Notify,
    report: Report,
    stdin: int = 0,
) -> LocalImageSource:
    """Return the source of a name; files that it needs are written to the directory `scratch`.

    They belong to the caller, who removes them after the last use of the source. `notify` gets what
    begins, and `report` how far it is. `stdin` is the descriptor for the name `-`. All of it may
    take `StageLimits.fetch`. Raises `ImageNotFound` (also if an image must be chosen),
    `ManifestInvalid`, `LayerInvalid`, `BlobCorrupt`, `ImageTooLarge`, `SourceUnreadable`, `NoSpace`
    and `TimedOut`.
    """
    opening = _Opening(scratch, limits, threads, reactor, notify, report, stdin)
    seconds = limits.stages.fetch
    return await within(
        seconds,
        reactor,
        opening.source(name),
        partial(stage_timeout, "Reading", seconds, "fetch"),
    )


@dataclass(frozen=True, slots=True)
class _Opening:
    """Opens one source."""

    scratch: Path
    limits: BuildLimits
    threads: Threads
    reactor: Reactor
    notify: Notify
    report: Report
    stdin: int

    async def source(self, name: LocalSourceName) -> LocalImageSource:
        if name.kind == "stdin":
            name = LocalSourceName("path", await self._spool(), name.selector)
        path, is_directory = await self.threads.run(_look_at, name.path)
        name = replace(name, path=path)
        kind: SourceKind
        files: ImageFiles
        if name.kind in {"oci", "dir"} or (name.kind == "path" and is_directory):
            kind, files = await self.threads.run(_directory, name)
        else:
            kind, files = await self._file(name)
        return LocalImageSource(files, self.threads, kind)

    async def _file(self, name: LocalSourceName) -> tuple[SourceKind, ImageFiles]:
        form, extent = await self.threads.run(form_of_file, name.path)
        if form == "packed":
            target = self.scratch / "archive.tar"
            self.notify("Unpacking the archive")
            stop = Event()
            report = self._reporter(extent.size)
            await self.threads.run_until(
                stop.set, unpack, extent, target, self.limits, stop, report
            )
            form, extent = await self.threads.run(form_of_file, target)
        check_form(form, name.kind)
        if form == "tar":
            return await self._archive(name, extent)
        architecture, labels = "", b""
        if form == "sif":
            image = await self.threads.run(read_sif, extent)
            extent, architecture, labels = image.partition, image.architecture, image.labels
        self.notify("Reading the file system")
        files = await squashfs_image(
            extent,
            architecture,
            labels,
            self.scratch,
            self.limits,
            self.threads,
            self.reactor,
            self._reporter(0),
        )
        return ("sif" if form == "sif" else "squashfs"), files

    async def _archive(
        self, name: LocalSourceName, archive: Extent
    ) -> tuple[SourceKind, ImageFiles]:
        stop = Event()

        def read() -> tuple[SourceKind, ImageFiles]:
            tree = ArchiveTree(archive.path, stop)
            kind = form_of_archive(tree) if name.kind == "path" else name.kind
            if kind == "oci-archive":
                return kind, LayoutFiles(tree, name.selector)
            if kind == "dir":
                return kind, SkopeoDirectory(tree)
            reader = DockerArchive(tree, archive.size, self.limits, stop)
            return kind, reader.image(name.selector)

        return await self.threads.run_until(stop.set, read)

    async def _spool(self) -> Path:
        """Write standard input to a file."""
        target, stop = self.scratch / "standard-input", Event()
        self.notify("Reading standard input")
        # What is compressed there is limited when it is unpacked.
        count = byte_counter(self.limits, self.limits.all_size, stop, self._reporter(0))
        size = await self.threads.run_until(stop.set, spool, self.stdin, target, stop, count)
        if not size:
            raise ManifestInvalid(
                "Standard input is empty.",
                remedy="Look whether the command in front of the pipe has failed.",
            )
        return target

    def _reporter(self, total: int) -> ReportBytes:
        """Return a function that reports bytes from a thread, of `total` (0: not known)."""
        last = 0

        def report(done: int) -> None:
            nonlocal last
            if done - last >= _REPORT_BYTES:
                last = done
                self.threads.call_reactor(self.report, Progress("fetch", done, total))

        return report


def _look_at(path: Path) -> tuple[Path, bool]:
    """Return the absolute path, and whether it is a directory. Blocks."""
    with file_errors("file or directory"):
        # A relative path could look like an option to a program.
        absolute = path.absolute()
        return absolute, stat.S_ISDIR(absolute.stat().st_mode)


def _directory(name: LocalSourceName) -> tuple[SourceKind, ImageFiles]:
    """Return the kind and the files of a directory. Blocks."""
    tree = DirectoryTree(name.path)
    kind: SourceKind = form_of_directory(tree) if name.kind == "path" else name.kind
    return kind, LayoutFiles(tree, name.selector) if kind == "oci" else SkopeoDirectory(tree)
