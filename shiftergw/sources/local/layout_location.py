"""Locations that are directories of the site's with OCI layouts (`remotetype` `oci-layout`).

A reference `location/repository:tag` means the entry `tag` of the layout in the subdirectory
`repository`, or, if the directory is a layout itself, its entry `repository:tag`. The grammar of
references leaves no way out of the directory. What is there is public.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from twisted.internet.defer import CancelledError, DeferredSemaphore

from shiftergw.errors import ImageNotFound, RegistryUnavailable
from shiftergw.model.images import Descriptor, Digest, ImageConfig, Platform, ResolvedImage
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls
from shiftergw.sources.local.images import PARALLEL_BLOBS, LocalImageSource
from shiftergw.sources.local.layout import INDEX, LayoutFiles
from shiftergw.sources.local.trees import DirectoryTree

if TYPE_CHECKING:
    from shiftergw.model.references import ImageReference
    from shiftergw.model.requests import RegistryLogin
    from shiftergw.plumbing.threads import Threads
    from shiftergw.ports import BlobSink, Notify

SOURCE_KIND = "oci-layout"

ANSWER_SECONDS = 30.0
"""Seconds that one read or look may take: the directory may be on NFS, whose server may be away."""

SLOTS = 2 * PARALLEL_BLOBS
"""Threads that the calls in one directory occupy, at most."""

_REMEDY = "Check the name and the tag of the image."

P = ParamSpec("P")
T = TypeVar("T")


class LayoutLocation:
    """The `ImageSource` of one such location.

    The name of a reference must be without that of the location.
    """

    def __init__(self, name: str, directory: Path, threads: Threads) -> None:
        """Read below `directory`, whose location has this name, in `threads`."""
        self._name = name
        self._directory = directory
        self._calls = _SiteCalls(
            BoundedThreadCalls(threads, SLOTS, ANSWER_SECONDS, threads.clock, self._no_answer)
        )
        self._blobs = DeferredSemaphore(PARALLEL_BLOBS)

    async def head(
        self, reference: ImageReference, login: RegistryLogin | None, notify: Notify
    ) -> Digest:
        """Return the digest of the document that a reference means now."""
        source = await self._source(reference.name, reference.tag)
        return await source.head(reference, login, notify)

    async def resolve(
        self,
        reference: ImageReference,
        platform: Platform,
        login: RegistryLogin | None,
        notify: Notify,
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return the image that a reference means now, and its configuration."""
        source = await self._source(reference.name, reference.tag)
        return await source.resolve(reference, platform, login, notify)

    async def prove(
        self, image: ResolvedImage, login: RegistryLogin | None, notify: Notify
    ) -> None:
        """Return if every layer is there, with its size."""
        await (await self._source(image.repository)).prove(image, login, notify)

    async def blob(
        self,
        image: ResolvedImage,
        blob: Descriptor,
        login: RegistryLogin | None,
        notify: Notify,
        offset: int,
        sink: BlobSink,
    ) -> None:
        """Stream a blob into `sink`; its digest is the sink's to check."""
        source = await self._source(image.repository)
        await source.blob(image, blob, login, notify, offset, sink)

    async def _source(self, repository: str, tag: str = "") -> LocalImageSource:
        files = await self._calls.run(self._layout, repository, tag)
        return LocalImageSource(
            files,
            self._calls,
            SOURCE_KIND,
            self._name,
            repository,
            parallel_blobs=self._blobs,
            is_saved_by_user=False,
        )

    def _no_answer(self) -> RegistryUnavailable:
        return RegistryUnavailable(
            f"The directory of {self._name} has not answered for {ANSWER_SECONDS:.0f} s.",
            remedy="Try again later; if it lasts, tell the site's support: the file system of the"
            " directory may have lost its server.",
        )

    def _layout(self, repository: str, tag: str) -> LayoutFiles:
        """Return the layout of a repository. Blocks."""
        tree = DirectoryTree(self._directory)
        if tree.extent(INDEX) is not None:
            return LayoutFiles(tree, f"{repository}:{tag}" if tag else "", _REMEDY)
        tree = DirectoryTree(self._directory / repository)
        try:
            is_layout = tree.extent(INDEX) is not None
        except ImageNotFound:
            is_layout = False
        if not is_layout:
            raise ImageNotFound(f"{self._name} has no repository {repository}.")
        return LayoutFiles(tree, tag, _REMEDY)


class _SiteCalls:
    """The `FileCalls` on a file system that may hang: callers do not wait for its threads."""

    def __init__(self, calls: BoundedThreadCalls) -> None:
        self._calls = calls

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._calls.run(function, *args, **kwargs)

    async def run_until(
        self,
        on_cancel: Callable[[], object],
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        try:
            return await self._calls.run(function, *args, **kwargs)
        except CancelledError:
            on_cancel()
            raise
