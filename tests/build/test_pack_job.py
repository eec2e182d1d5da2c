"""Packings and what they share: slots of the machine, locks, and the leftovers of the dead."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from shiftergw.build import pack_job
from shiftergw.build.arrival_meter import ArrivalMeter
from shiftergw.build.pack_files import Pack, remove_abandoned_parts
from shiftergw.build.pack_options import pack_arguments
from shiftergw.errors import ConversionFailed, ImageTooLarge, RetryLater
from shiftergw.model.build_options import BuildLimits, SquashOptions
from shiftergw.model.images import Digest, LayerFile
from shiftergw.oci import budget as budget_module
from shiftergw.oci.budget import Budget, LayerBudget
from shiftergw.oci.compression import LARGE_WINDOWS
from shiftergw.plumbing.locks import tried_lock
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import Layer
from tests.build.packing import ComingLayer, PackSite, budget, files_of, real
from tests.build.parts import running_in
from tests.build.site import StoredLayer
from tests.images import tar_of
from tests.oci.test_compression import long_window
from tests.parts import need
from tests.plumbing.test_file_slots import recording
from tests.work.waiting import until

NOISE = random.Random(1).randbytes(3_000_000)
TAR = tar_of({"a": NOISE})


class WaitingSite(PackSite):
    """A packer that records its waits for slots."""

    def __init__(self, directory: Path, threads: Threads) -> None:
        """Record nothing yet."""
        super().__init__(directory, threads)
        self.waits: list[bool] = []

    def begin(
        self, layer: Layer, cost: LayerBudget | None = None, memory: str = "64M"
    ) -> Deferred[Pack]:
        """Begin to pack a layer on a machine with a slot for each 64 MB."""

        async def pack() -> Pack:
            async with AsyncExitStack() as use:
                queueing = partial(recording, self.waits)
                packer = replace(self.packer(memory=memory), queueing=queueing)
                return await packer.pack(layer, cost or budget(), self.reports.append, use)

        return Deferred.fromCoroutine(pack())

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Have another process hold the first slot during the block."""
        directory = self.tools.slot_directory
        directory.mkdir(parents=True, exist_ok=True)
        with tried_lock(directory / "0.slot") as is_taken:
            assert is_taken
            yield

    @contextmanager
    def queue(self, kind: str) -> Iterator[None]:
        """Have another process wait for a slot for a layer of this kind during the block."""
        directory = self.tools.slot_directory
        with tried_lock(directory / f"{kind}-{0:020}-1-0.ticket") as is_taken:
            assert is_taken
            yield

    async def settle_without_slots(self) -> None:
        """Give a packing time to begin, and wait until it holds no slot."""
        await until(self.tools.slot_directory.exists)
        await settle()
        await until(lambda: list(self.tools.slot_directory.iterdir()) == [])

    def is_locked(self, layer: Layer) -> bool:
        """Return whether a process holds the lock of the pack of a layer."""
        with tried_lock(self.packer(memory="64M").files(layer.digest).lock) as is_free:
            return not is_free


@pytest.fixture
def packs(tmp_path: Path, threads: Threads) -> WaitingSite:
    """Return a packer with the real `mksquashfs`."""
    return WaitingSite(tmp_path, threads)


async def settle() -> None:
    """Give a packing time to do what it should not."""
    await deferLater(real, 0.3)


@pytest_twisted.ensureDeferred
async def test_a_packing_waits_for_a_slot_without_a_lock(packs: WaitingSite) -> None:
    """It is told that it waits, nobody waits for it, and it goes on when a slot is free."""
    layer = packs.layer(TAR)
    with packs.busy():
        packing = packs.begin(layer)
        await until(lambda: packs.waits == [True])
        await settle()
        assert not packs.is_locked(layer)
        assert (packing.called, running_in(packs.directory)) == (False, [])
    assert files_of(await packing) == {b"a": NOISE}
    assert packs.waits == [True, False]
    assert list(packs.tools.slot_directory.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_a_pack_that_is_made_meanwhile_ends_the_wait(packs: WaitingSite) -> None:
    """Two builds that wait for slots with the same layer make one pack."""
    with packs.busy():
        packings = [packs.begin(packs.layer(TAR)) for _ in range(2)]
        await until(lambda: packs.waits == [True, True])
    first, second = [await packing for packing in packings]
    assert first.path.stat().st_ino == second.path.stat().st_ino
    assert packs.names == [".index", ".pack"]


@pytest_twisted.ensureDeferred
async def test_an_arriving_layer_is_not_read_without_a_slot(packs: WaitingSite) -> None:
    """The download does not wait; the layer is packed from its file."""
    layer = packs.coming_layer(TAR, "plain")
    with packs.busy():
        packing = packs.begin(layer)
        layer.arrive(1_500_000)
        await settle()
        assert packs.parts(layer) == []
        assert packs.waits == []
        layer.complete()
        await until(lambda: packs.waits == [True])
    assert files_of(await packing) == {b"a": NOISE}


@pytest.mark.parametrize("queue", ["small", "large", ""])
@pytest_twisted.ensureDeferred
async def test_a_slow_download_keeps_no_slot_that_others_need(
    packs: WaitingSite, monkeypatch: pytest.MonkeyPatch, queue: str
) -> None:
    """Its early packing ends only if others wait; then the layer is packed from its file.

    It is a small layer, and has the second of two slots, for which large layers wait, too.
    """
    monkeypatch.setattr(pack_job, "LOOK_SECONDS", 0.2)
    layer = packs.coming_layer(TAR, "plain")
    with packs.busy(), ExitStack() as queue_locks:
        packing = packs.begin(layer, memory="128M")
        layer.arrive(1_500_000)
        await until(lambda: packs.part_size(layer) > 500_000)
        (part,) = packs.parts(layer)
        if queue:
            queue_locks.enter_context(packs.queue(queue))
            await until(lambda: running_in(packs.directory) == [])
            slot = packs.tools.slot_directory / "1.slot"
            await until(lambda: not slot.exists())
            assert not part.exists()
        else:
            await deferLater(real, 0.8)
            assert running_in(packs.directory) != []
    layer.complete()
    assert files_of(await packing) == {b"a": NOISE}
    assert (part.exists(), packs.names) == (False, [".index", ".pack"])


@pytest_twisted.ensureDeferred
async def test_a_download_that_keeps_its_packing_busy_goes_on(
    packs: WaitingSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its slot although others wait: packing the file later would take as long."""
    monkeypatch.setattr(pack_job, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(ArrivalMeter, "seconds", lambda _: 0.0)
    layer = packs.coming_layer(TAR, "plain")
    with packs.busy():
        packing = packs.begin(layer, memory="128M")
        layer.arrive(1_500_000)
        await until(lambda: packs.part_size(layer) > 500_000)
        with packs.queue("small"):
            await settle()
            assert running_in(packs.directory) != []
    layer.complete()
    assert files_of(await packing) == {b"a": NOISE}


@pytest_twisted.ensureDeferred
async def test_no_lock_is_held_while_other_layers_decide(
    packs: WaitingSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer beyond `MaxRatio` waits for the other layers; another build makes the pack."""
    monkeypatch.setattr(budget_module, "RATIO_FREE", 100_000)
    image = Budget(BuildLimits(ratio=1), stored_size=None)
    tar = tar_of({"a": bytes(3_000_000)})
    layer = packs.layer(tar, "gzip")
    packing = packs.begin(layer, image.layer())
    await until(lambda: packs.directory.exists() and not packs.is_locked(layer))
    await settle()
    assert (packing.called, packs.is_locked(layer)) == (False, False)
    assert (running_in(packs.directory), packs.parts(layer)) == ([], [])
    pack = await packs.begin(layer, Budget(BuildLimits(), stored_size=5_000_000).layer())
    assert files_of(pack) == {b"a": bytes(3_000_000)}
    await settle()
    assert not packing.called
    image.set_stored_size(5_000_000)
    assert (await packing).path == pack.path


@pytest_twisted.ensureDeferred
async def test_an_arriving_layer_does_not_wait_for_others(
    packs: WaitingSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While they decide about it, it keeps neither a slot nor the lock of its pack."""
    monkeypatch.setattr(budget_module, "RATIO_FREE", 100_000)
    image = Budget(BuildLimits(ratio=1), stored_size=None)
    tar = tar_of({"a": bytes(3_000_000)})
    layer = packs.coming_layer(tar, "gzip")
    packing = packs.begin(layer, image.layer())
    layer.arrive(layer.size - 1)
    await packs.settle_without_slots()
    layer.complete()
    pack = await packs.begin(
        packs.layer(tar, "gzip"), Budget(BuildLimits(), stored_size=5_000_000).layer()
    )
    assert files_of(pack) == {b"a": bytes(3_000_000)}
    assert not packing.called
    image.set_stored_size(5_000_000)
    assert (await packing).path == pack.path


@pytest_twisted.ensureDeferred
async def test_an_arriving_layer_takes_no_large_window(packs: WaitingSite, tmp_path: Path) -> None:
    """Others need its memory, and the download may be slow: the layer is packed from its file."""
    layer = ComingLayer(tmp_path / "arriving", long_window(TAR, 27), Digest.of(TAR))
    packing = packs.begin(layer)
    layer.arrive(1_500_000)
    await packs.settle_without_slots()
    layer.complete()
    assert files_of(await packing) == {b"a": NOISE}


@pytest_twisted.ensureDeferred
async def test_a_layer_waits_for_a_large_window_without_a_slot(
    packs: WaitingSite, tmp_path: Path
) -> None:
    """It holds no lock, either, so other layers, and other processes, are not delayed."""
    path = tmp_path / "layer"
    path.write_bytes(long_window(TAR, 27))
    layer = StoredLayer(LayerFile(path, Digest.of(TAR)))
    with LARGE_WINDOWS, LARGE_WINDOWS:
        packing = packs.begin(layer)
        await packs.settle_without_slots()
        assert (packing.called, packs.is_locked(layer)) == (False, False)
        assert packs.parts(layer) == []
        assert files_of(await packs.begin(packs.layer(tar_of({"b": b"1"})))) == {b"b": b"1"}
    assert files_of(await packing) == {b"a": NOISE}
    with LARGE_WINDOWS, LARGE_WINDOWS:
        pass  # none is kept


@pytest_twisted.ensureDeferred
async def test_layers_that_arrived_refuse_an_image(
    packs: WaitingSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the layers may unpack to is known once all have arrived: then the pull fails."""
    monkeypatch.setattr(budget_module, "RATIO_FREE", 100_000)
    image = Budget(BuildLimits(ratio=1), stored_size=None)
    layer = packs.layer(tar_of({"a": bytes(3_000_000)}), "gzip")
    packing = packs.begin(layer, image.layer())
    await settle()
    assert not packing.called
    image.set_stored_size(layer.size)
    with pytest.raises(ImageTooLarge, match="unpack to more than"):
        await packing
    assert packs.names == []


class PostponedLayer(ComingLayer):
    """A layer whose registry asks to retry later."""

    def __init__(self, path: Path) -> None:
        """Begin without any of the bytes."""
        super().__init__(path, TAR, None)
        self._end: Deferred[Path] = Deferred()

    async def wait_for_file(self) -> Path:
        """Wait for the end of the download."""
        return await self._end

    def postpone(self) -> None:
        """End the download."""
        failure = ConversionFailed("The registry is busy.")
        self._end.errback(RetryLater(1e9, "registry (rate limit)", failure))


@pytest_twisted.ensureDeferred
async def test_a_pull_that_is_postponed(packs: WaitingSite, tmp_path: Path) -> None:
    """Its program ends, and it holds neither a lock, a slot nor a file; the next attempt packs."""
    layer = PostponedLayer(tmp_path / "postponed")
    packing = packs.begin(layer)
    layer.arrive(1_500_000)
    await until(lambda: packs.part_size(layer) > 500_000)
    layer.postpone()
    with pytest.raises(RetryLater):
        await packing
    assert (running_in(packs.directory), packs.names) == ([], [])
    assert list(packs.tools.slot_directory.iterdir()) == []
    assert files_of(await packs.begin(packs.layer(TAR))) == {b"a": NOISE}


def feeding(argv: list[str]) -> subprocess.Popen[bytes]:
    """Start a program that reads from a pipe of this process."""
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)


@pytest_twisted.ensureDeferred
async def test_the_program_of_a_killed_process_does_no_harm(packs: WaitingSite) -> None:
    """It ends with the pipe of its dead process; what it writes and removes is only its own.

    It is stopped here until the next process has made the pack, as on a machine under load.
    """
    layer = packs.layer(TAR)
    files = packs.packer(memory="64M").files(layer.digest)
    packs.directory.mkdir()
    argv = [need("mksquashfs"), *pack_arguments(SquashOptions(memory="64M"), files.part)]
    with feeding(argv) as orphan:
        assert orphan.stdin is not None
        os.write(orphan.stdin.fileno(), TAR[:1_500_000])
        await until(lambda: packs.part_size(layer) > 500_000)
        orphan.send_signal(signal.SIGSTOP)
        orphan.stdin.close()
        pack = await packs.begin(layer)
        assert packs.names == [".index", ".pack"]
        content = pack.path.read_bytes()
        orphan.send_signal(signal.SIGCONT)
        assert await deferLater(real, 0, orphan.wait) != 0
    assert (pack.path.read_bytes(), packs.names) == (content, [".index", ".pack"])
    assert files_of(pack) == {b"a": NOISE}


@pytest_twisted.ensureDeferred
async def test_leftovers_of_the_dead_are_removed(packs: WaitingSite) -> None:
    """The next packing of a layer removes them, and the sweep those of all other layers."""
    layer = packs.layer(TAR)
    packs.directory.mkdir()
    files = packs.packer(memory="64M").files(layer.digest)
    files.part.write_bytes(b"left")
    for name in ("", "-early", ".0123abcd"):
        files.pack.with_name(f"{files.pack.stem}{name}.part").write_bytes(b"left")
    await packs.begin(layer)
    assert packs.names == [".index", ".pack"]
    files.part.write_bytes(b"left")
    for lock in (files.lock, files.early_lock):
        with tried_lock(lock):
            assert remove_abandoned_parts(packs.directory) == 0
    assert remove_abandoned_parts(packs.directory) == 1
    assert packs.names == [".index", ".pack"]


@pytest_twisted.ensureDeferred
async def test_parts_of_living_processes_stay(packs: WaitingSite, tmp_path: Path) -> None:
    """A part that another process reads early is no leftover, while the pack is made elsewhere."""
    slow: Any = ComingLayer(tmp_path / "slow", TAR, None)
    site = PackSite(tmp_path, packs.tools.threads)
    packing = Deferred.fromCoroutine(site.pack(slow, memory="512M"))
    slow.arrive(1_500_000)
    await until(lambda: site.part_size(slow) > 500_000)
    pack = await site.pack(site.layer(TAR), memory="512M")
    assert len(site.parts(slow)) == 1
    slow.complete()
    assert (await packing).path == pack.path
    assert site.names == [".index", ".pack"]
