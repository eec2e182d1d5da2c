"""Open sources in tests, and make the files that they read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.model.build_options import BuildLimits
from shiftergw.model.images import Descriptor, ImageConfig, Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.source_names import LocalSourceName, parse_source
from shiftergw.plumbing.threads import Threads
from shiftergw.sources.local.images import LocalImageSource
from shiftergw.sources.local.opening import open_source
from tests.parts import need
from tests.patience import patient
from tests.sources.registry.network import REACTOR, Sink

REFERENCE = ImageReference("image")
"""The name does not matter: a file has one image."""


def quiet(_: object) -> None:
    """Ignore a report."""


async def open_text(
    text: str,
    scratch: Path,
    threads: Threads,
    *,
    limits: BuildLimits | None = None,
    stdin: int = 0,
) -> LocalImageSource:
    """Open the source of a name; its temporary files are in the directory `scratch`."""
    name = parse_source(text)
    assert isinstance(name, LocalSourceName)
    return await open_source(
        name, scratch, limits or BuildLimits(), threads, REACTOR, quiet, quiet, stdin
    )


def open_now(text: str, scratch: Path, threads: Threads) -> LocalImageSource:
    """Open a source in a fixture, outside of coroutines."""
    scratch.mkdir(exist_ok=True)
    source: LocalImageSource = pytest_twisted.blockon(
        Deferred.fromCoroutine(open_text(text, scratch, threads))
    )
    return source


async def resolve(
    source: LocalImageSource, platform: Platform | None = None
) -> tuple[ResolvedImage, ImageConfig]:
    """Return the image of a source."""
    return await source.resolve(REFERENCE, platform or Platform(), None, quiet)


async def content_of(source: LocalImageSource, image: ResolvedImage, blob: Descriptor) -> bytes:
    """Return a blob."""
    sink = Sink()
    await source.blob(image, blob, None, quiet, 0, sink)
    return bytes(sink.content)


def skopeo_copy(source: str, target: str, *options: str) -> None:
    """Copy an image."""
    subprocess.run(
        [need("skopeo"), "--insecure-policy", "copy", "--quiet", *options, source, target],
        check=True,
        stdin=subprocess.DEVNULL,
        timeout=patient(60),
    )


def make_squashfs(root: Path, target: Path, *options: str) -> None:
    """Make a squashfs file of the files below `root`."""
    subprocess.run(
        [need("mksquashfs"), str(root), str(target), "-quiet", "-no-progress", *options],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=patient(60),
    )
