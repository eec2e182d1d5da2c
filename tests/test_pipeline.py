"""What a pull tells while its image is built: the real builder, watched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from shiftergw.image import (
    BuildLimits,
    Descriptor,
    Digest,
    ImageConfig,
    ResolvedImage,
    SquashOptions,
)
from shiftergw.model import Progress
from shiftergw.pipeline import Pipeline
from shiftergw.plumbing.threads import Threads
from shiftergw.states import State, check_step
from tests.squash.site import Site

LAYER = Descriptor(Digest.of(b"layer"), 5)
IMAGE = ResolvedImage(
    Digest.of(b"manifest"), Digest.of(b"manifest"), LAYER, (LAYER,), "registry", "lib/app", False
)


class Told:
    """A `Watcher` that remembers the states and what was said about them."""

    def __init__(self) -> None:
        """Nothing was told yet."""
        self.stages = [(State.PULLING, "Pulling layers")]

    def entered(self, state: State, message: str) -> None:
        """Remember."""
        check_step(self.stages[-1][0], state)
        self.stages.append((state, message))

    def report(self, progress: Progress) -> None:
        """Forget."""

    def say(self, message: str) -> None:
        """Forget."""


@pytest_twisted.async_yield_fixture()
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """Give a builder with the real `mksquashfs`."""
    anything: Any = reactor
    threads = Threads(anything, 3, "test")
    threads.startService()
    yield Site(tmp_path, threads)
    await threads.stopService()


@pytest_twisted.ensureDeferred
async def test_who_waits_for_anothers_conversion_is_told_so(site: Site) -> None:
    """One of two converts; the other is told what it waits for, by a step that is allowed."""
    pipeline = Pipeline(cast("Any", None), cast("Any", None), site.builder, BuildLimits())
    layers = site.two

    async def build(told: Told) -> None:
        options = SquashOptions(level=1, memory="64M")
        async with pipeline.build(IMAGE, ImageConfig(), layers, options, told):
            pass

    both = [Told(), Told()]
    await gatherResults([Deferred.fromCoroutine(build(told)) for told in both])
    assert sorted([words for _, words in told.stages[1:]] for told in both) == [
        ["Examining image", "Converting image"],
        ["Waiting for the same conversion for another pull"],
    ]
