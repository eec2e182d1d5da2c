"""Packs that are installed beside the rest of a build, and builds that end meanwhile."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs, formatEvent

from shiftergw.build import by_packs, image_build, pack_job
from shiftergw.build.background_packing import BackgroundPacking
from shiftergw.build.pack_files import Pack
from shiftergw.build.written_pack import WrittenPack, install_pack
from shiftergw.errors import ConversionFailed, ImageTooLarge, NoSpace
from shiftergw.model.build_options import BuildLimits
from shiftergw.plumbing.threads import Threads
from tests.build.parts import content_of
from tests.build.site import Site
from tests.images import entry
from tests.parts import need
from tests.work.waiting import until

WRITTEN_PACK: Any = object()
INSTALLED_PACK: Any = object()
"""Stand for a pack, before and after."""


class HeldSite(Site):
    """A site with packs whose installation waits until the test says so."""

    def __init__(self, directory: Path, threads: Threads) -> None:
        """Hold the installation of every pack."""
        super().__init__(directory, threads, need("mksquashfs"), "packs")
        self._defaults["memory"] = "256M"  # for several layers at the same time
        self.release = threading.Event()
        self.installation_count = 0
        self.failures: list[OSError] = []
        """The next failures of an installation."""

    def install(self, written_pack: WrittenPack, stop: threading.Event) -> Pack:
        """Install a pack once that is allowed."""
        self.installation_count += 1
        while not self.release.wait(0.01) and not stop.is_set():
            pass
        if self.failures:
            raise self.failures.pop()
        return install_pack(written_pack, stop)

    @property
    def image_layers(self) -> list[Any]:
        """Return the layers of an image."""
        return [self.layer([entry("a", b"a" * 3000)]), self.layer([entry("b", b"b")])]


@pytest.fixture
def held_site(
    tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HeldSite]:
    """Return a site that holds its installations; those of a failed test end with it."""
    site = HeldSite(tmp_path, threads)
    monkeypatch.setattr(pack_job, "install_pack", site.install)
    yield site
    site.release.set()


def patch_after(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, after: Callable[[], object]
) -> None:
    """Have `after` called after each call of a function of a module."""
    function = getattr(module, name)

    def call(*arguments: Any) -> Any:
        result = function(*arguments)
        after()
        return result

    monkeypatch.setattr(module, name, call)


@pytest_twisted.ensureDeferred
async def test_an_image_is_composed_of_packs_that_are_not_installed(
    held_site: HeldSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It appears only after all its packs, also those that another build needs."""
    end_of_composition = threading.Event()
    patch_after(monkeypatch, by_packs, "compose", end_of_composition.set)
    building = Deferred.fromCoroutine(held_site.build_image(held_site.image_layers))
    await until(end_of_composition.is_set)
    assert held_site.installation_count == 2
    assert held_site.pack_suffixes.count(".pack") == 0
    assert "CHECK" not in held_site.states
    held_site.release.set()
    content = content_of((await building).path)
    assert (content["a"][2], content["b"][2]) == (b"a" * 3000, b"b")
    assert held_site.pack_suffixes == [".index", ".index", ".pack", ".pack"]
    assert held_site.states == ["PACKING", "COMPOSITION", "CHECK"]


@pytest_twisted.ensureDeferred
async def test_a_pack_that_cannot_be_installed(
    held_site: HeldSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its image does not appear, and no part of either is left; the other pack stays."""
    held_site.failures.append(OSError(errno.EIO, "Input/output error"))
    patch_after(monkeypatch, by_packs, "compose", held_site.release.set)
    with pytest.raises(ConversionFailed, match="could not read or write its own files"):
        await held_site.build_image(held_site.image_layers)
    assert held_site.pack_suffixes == [".index", ".pack"]
    assert held_site.names == []


@pytest_twisted.ensureDeferred
async def test_a_pack_whose_installation_fills_the_disk(
    held_site: HeldSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made once more, of the file of its layer, while the image is composed."""
    held_site.failures.append(OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(pack_job.PackJob, "_make_room_for", lambda *_, **__: return_later(True))
    patch_after(monkeypatch, by_packs, "compose", held_site.release.set)
    image = await held_site.build_image(held_site.image_layers)
    assert content_of(image.path)["a"][2] == b"a" * 3000
    assert held_site.pack_suffixes == [".index", ".index", ".pack", ".pack"]


@pytest_twisted.ensureDeferred
async def test_a_disk_that_stays_full(held_site: HeldSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build says so after the image was composed once, and leaves nothing of it."""
    held_site.failures.append(OSError(errno.ENOSPC, "No space left on device"))
    held_site.failures.append(OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(pack_job.PackJob, "_make_room_for", lambda *_, **__: return_later(False))
    patch_after(monkeypatch, by_packs, "compose", held_site.release.set)
    with pytest.raises(NoSpace):
        await held_site.build_image(held_site.image_layers[:1])
    assert (held_site.names, held_site.pack_suffixes) == ([], [])
    assert held_site.states == ["PACKING", "COMPOSITION"]


async def return_later(value: bool) -> bool:
    """Return a value."""
    return value


@pytest_twisted.ensureDeferred
async def test_packs_of_an_image_that_is_refused_are_kept(
    held_site: HeldSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build ends after they are installed: their layers need not be converted again."""
    patch_after(monkeypatch, image_build, "drain_indexes", held_site.release.set)
    with pytest.raises(ImageTooLarge, match="more than 1 entries"):
        await held_site.build_image(held_site.image_layers, limits=BuildLimits(entries=1))
    assert held_site.pack_suffixes == [".index", ".index", ".pack", ".pack"]


@pytest_twisted.ensureDeferred
async def test_a_build_that_is_canceled_meanwhile(held_site: HeldSite) -> None:
    """Nothing is left of it, and nothing runs any longer."""
    building = Deferred.fromCoroutine(held_site.build_image(held_site.image_layers))
    await until(lambda: "COMPOSITION" in held_site.states)
    building.cancel()
    with pytest.raises(CancelledError):
        await building
    assert (held_site.names, held_site.pack_suffixes) == ([], [])


class FakePacking:
    """The making of a pack whose steps the test decides."""

    def __init__(self) -> None:
        """Begin with a pack that is not written."""
        self.is_ended = False
        self.steps: Deferred[Any] = Deferred()
        self.background = BackgroundPacking(self._make, self._end)

    async def _make(self, on_written: Callable[[WrittenPack], None]) -> Pack:
        if await self.steps is WRITTEN_PACK:
            self.steps = Deferred()
            on_written(WRITTEN_PACK)
            await self.steps
        return INSTALLED_PACK  # type: ignore[no-any-return]

    def _end(self) -> None:
        self.is_ended = True

    def leave(self, error: BaseException | None = None) -> Deferred[None]:
        """Leave an exit stack with this error."""

        async def leave() -> None:
            async with AsyncExitStack() as use:
                use.push_async_exit(self.background.leave)
                if error is not None:
                    raise error

        return Deferred.fromCoroutine(leave())


@pytest_twisted.ensureDeferred
async def test_a_pack_that_exists_is_never_announced() -> None:
    """It is the result, both before and after."""
    packing = FakePacking()
    waiting = Deferred.fromCoroutine(packing.background.wait_until_written())
    assert not waiting.called
    packing.steps.callback(INSTALLED_PACK)
    assert await waiting is INSTALLED_PACK
    assert await packing.background.wait_until_installed() is INSTALLED_PACK
    assert packing.is_ended


@pytest_twisted.ensureDeferred
async def test_whoever_leaves_waits_for_the_installation() -> None:
    """After an error of the build, too; an error of the installation is logged after no other."""
    for error in (None, ValueError("of the build")):
        packing = FakePacking()
        packing.steps.callback(WRITTEN_PACK)
        assert await packing.background.wait_until_written() is WRITTEN_PACK
        leaving = packing.leave(error)
        assert not leaving.called
        with capturedLogs() as log:
            packing.steps.errback(OSError("of the disk"))
            if error is None:
                await leaving
            else:
                with pytest.raises(ValueError, match="of the build"):
                    await leaving
        assert packing.is_ended
        texts = [formatEvent(event) or "" for event in log]
        assert any("of the disk" in text for text in texts) is (error is None)
        with pytest.raises(OSError, match="of the disk"):
            await packing.background.wait_until_installed()


@pytest_twisted.ensureDeferred
async def test_a_cancellation_ends_the_installation() -> None:
    """Whether it comes before the wait for the end, or meanwhile."""
    packing = FakePacking()
    packing.steps.callback(WRITTEN_PACK)
    with pytest.raises(CancelledError):
        await packing.leave(CancelledError())
    assert packing.is_ended
    packing = FakePacking()
    packing.steps.callback(WRITTEN_PACK)
    leaving = packing.leave()
    leaving.cancel()
    with pytest.raises(CancelledError):
        await leaving
    assert packing.is_ended


@pytest_twisted.ensureDeferred
async def test_a_cancellation_ends_the_packing() -> None:
    """The cancellation is raised, and the packing has ended."""
    packing = FakePacking()
    waiting = Deferred.fromCoroutine(packing.background.wait_until_written())
    waiting.cancel()
    with pytest.raises(CancelledError):
        await waiting
    assert packing.is_ended
