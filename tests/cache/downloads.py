"""A blob, its sources, and its download into a cache, for tests."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from shiftergw.model.images import Descriptor, Digest, Opening, ResolvedImage
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobCache, BlobSink, Download
from tests.installed_reactor import reactor

CONTENT = os.urandom(300_000)
BLOB = Descriptor(Digest.of(CONTENT), len(CONTENT))


def place(tmp_path: Path, suffix: str = "", blob: Descriptor = BLOB) -> Path:
    """Return the path of a blob in the cache, or of a file beside it."""
    return tmp_path / "cache" / blob.digest.algorithm / (blob.digest.hex + suffix)


def leave_partial(tmp_path: Path, content: bytes) -> None:
    """Leave a partial file, as an interrupted download does."""
    path = place(tmp_path, ".partial")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)


class Source:
    """A source of one blob that records the offsets of its requests, and may not resume."""

    def __init__(
        self, content: bytes = CONTENT, piece: int = 1000, *, resumes: bool = True
    ) -> None:
        """Send `content` in pieces; a source that does not resume begins at 0 always."""
        self.offsets: list[int] = []
        self._content = content
        self._piece = piece
        self._resumes = resumes

    async def __call__(self, offset: int, sink: BlobSink) -> None:
        """Send everything from `offset`, with a turn of the reactor now and then."""
        self.offsets.append(offset)
        begin = offset if self._resumes else 0
        sink.begin(begin)
        for start in range(begin, len(self._content), self._piece):
            sink.write(self._content[start : start + self._piece])
            if start % (16 * self._piece) == 0:
                await pause(0, reactor)


def refuse(offset: int, sink: BlobSink) -> Awaitable[None]:
    """Stand for a download that must not happen."""
    raise AssertionError("a download of a blob that is there")


def ignore(_: object) -> None:
    """Ignore a report."""


async def fetch_blob(
    cache: BlobCache,
    blob: Descriptor,
    download: Download,
    report: Callable[[int], None],
    on_opening: Callable[[Opening], None] = lambda _: None,
) -> Path:
    """Fetch a blob and return its path."""
    async with cache.get(blob, download, report, on_opening) as path:
        return path


def image_of(repository: str, *, private: bool) -> ResolvedImage:
    """Return an image of a repository."""
    digest = Digest.of(b"manifest")
    return ResolvedImage(digest, digest, BLOB, (BLOB,), "registry", repository, private)
