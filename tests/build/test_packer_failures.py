"""Packing that fails, and packs that make room: no part of a pack is left."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.build.pack_files import pack_groups
from shiftergw.errors import ConversionFailed, ImageTooLarge, LayerInvalid, NoSpace
from shiftergw.plumbing.threads import Threads
from tests.build.packing import ComingLayer, PackSite, budget, files_of
from tests.build.parts import running_in, script
from tests.images import compress, tar_of
from tests.parts import need, small_disk
from tests.work.waiting import until

real: Any = reactor
LONG = os.environ.get("SHIFTERGW_LONG") == "1"
NOISE = random.Random(1).randbytes(3_000_000)


@pytest.fixture(params=["mksquashfs", "direct"])
def packs(request: pytest.FixtureRequest, tmp_path: Path, threads: Threads) -> PackSite:
    """Return each packer: the real `mksquashfs`, and our own."""
    return PackSite(tmp_path, threads, packer=request.param)


@pytest_twisted.ensureDeferred
async def test_a_packing_that_takes_too_long(tmp_path: Path, threads: Threads) -> None:
    """The limit counts from the arrival of the layer; then the program ends."""
    clock: Any = Clock()
    binary = script(tmp_path / "mksquashfs", "while :; do sleep 0.1; done")
    packs = PackSite(tmp_path, threads, binary, clock)
    packing = Deferred.fromCoroutine(packs.pack(packs.layer(tar_of({"a": NOISE})), seconds=60))
    await until(lambda: running_in(packs.directory) != [])
    clock.advance(59)
    assert not packing.called
    clock.advance(1)
    with pytest.raises(ImageTooLarge, match="longer than 1 minute"):
        await packing
    assert (running_in(tmp_path), packs.names) == ([], [])


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], type[Exception]]] = {
    "cut in a header": (lambda tar: tar[:1000], LayerInvalid),
    "cut in a file": (lambda tar: tar[: len(tar) // 2], LayerInvalid),
    "no archive": (lambda _: NOISE[:5000], LayerInvalid),
    "gzip cut": (lambda tar: compress(tar)[:-100], LayerInvalid),
}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest_twisted.ensureDeferred
async def test_broken_layers_leave_nothing(packs: PackSite, kind: str, tmp_path: Path) -> None:
    """The error is that of the layer, and no part of a pack is left."""
    damage, error = DAMAGES[kind]
    with pytest.raises(error):
        await packs.pack(packs.layer(damage(tar_of({"a": NOISE[:300_000], "b": b"2"}))))
    assert (running_in(tmp_path), packs.names) == ([], [])


@pytest_twisted.ensureDeferred
async def test_the_part_of_an_early_packing_that_fails(packs: PackSite, tmp_path: Path) -> None:
    """It is removed at once: others need the disk while the rest of the layer arrives."""
    tar = tar_of({"a": NOISE[:2_500_000], "b": NOISE})
    sound_size = 512 + -(-2_500_000 // 512) * 512  # the header and the content of the first file
    layer = ComingLayer(tmp_path / "arriving", tar[:sound_size] + b"no header" * 100_000, None)
    packing = Deferred.fromCoroutine(packs.pack(layer))
    layer.arrive(sound_size)
    await until(lambda: packs.part_size(layer) > 500_000)
    layer.arrive(layer.size - 1)
    await until(lambda: packs.parts(layer) == [])
    assert not packing.called
    layer.complete()
    with pytest.raises(LayerInvalid):
        await packing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kill -9 $$", "killed from outside"),
        ("echo 'FATAL ERROR: bad' >&2; exit 1", "failed with code 1"),
        ("exit 0", "ended before|damaged pack"),
        ("cat >/dev/null", "damaged pack"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_program_that_ends_badly(
    tmp_path: Path, threads: Threads, text: str, message: str
) -> None:
    """Whatever `mksquashfs` does, there is no pack without its files."""
    packs = PackSite(tmp_path, threads, script(tmp_path / "mksquashfs", text))
    with pytest.raises(ConversionFailed, match=message):
        await packs.pack(packs.layer(tar_of({"a": NOISE})))
    assert packs.names == []


@pytest_twisted.ensureDeferred
async def test_a_program_that_leaves_a_file_out(tmp_path: Path, threads: Threads) -> None:
    """A pack with too few files is no pack, although the program was content."""
    real_program, tar = need("mksquashfs"), tmp_path / "short.tar"
    tar.write_bytes(tar_of({"00000/000": b"1"}))
    text = f'cat >/dev/null; exec {real_program} "$@" <{tar}'
    packs = PackSite(tmp_path, threads, script(tmp_path / "mksquashfs", text))
    with pytest.raises(ConversionFailed, match="damaged pack") as caught:
        await packs.pack(packs.layer(tar_of({"a": b"1", "b": b"2"})))
    assert caught.value.detail == "3 inodes, not 4"
    assert packs.names == []


@pytest_twisted.ensureDeferred
async def test_a_full_disk(packs: PackSite) -> None:
    """A disk without space for the pack ends as `NoSpace`, and nothing is left on it."""
    layer = packs.layer(tar_of({"a": NOISE}))
    with small_disk(packs.directory, "size=2m"):
        with pytest.raises(NoSpace):
            await packs.pack(layer)
        assert packs.names == []


@pytest_twisted.ensureDeferred
async def test_unused_packs_make_room(tmp_path: Path, threads: Threads) -> None:
    """A pack that no build uses is removed for a layer that has arrived, one in use is not."""
    packs = PackSite(tmp_path, threads)
    first, second = (packs.layer(tar_of({"a": bytes([n]) + NOISE})) for n in (1, 2))
    with small_disk(packs.directory, "size=5m"):
        async with AsyncExitStack() as use:
            await packs.packer().pack(first, budget(), packs.reports.append, use)
            with pytest.raises(NoSpace):
                await packs.pack(second)
            assert packs.names == [".index", ".pack"]
        pack = await packs.pack(second)
        assert files_of(pack) == {b"a": bytes([2]) + NOISE}
        assert packs.names == [".index", ".pack"]


@pytest_twisted.ensureDeferred
async def test_packs_are_swept(packs: PackSite) -> None:
    """The sweep removes packs that were last used before a time, with all that belongs to them."""
    layers = [packs.layer(tar_of({"a": b"%d" % number})) for number in range(3)]
    for layer in layers:
        await packs.pack(layer)
    remainder = packs.directory / f"{'0' * 64}-{'1' * 12}.part"
    remainder.write_bytes(b"of a process that was killed")
    for path in packs.directory.iterdir():
        os.utime(path, (0, 0))
    groups = pack_groups(packs.directory)
    assert groups.sweep(0) == 0
    await packs.pack(layers[1])  # a use; its pack is hashed, because its time has changed
    async with AsyncExitStack() as use:
        assert await packs.packer().find(layers[2].digest, None, budget(), use)
        files = packs.packer().files(layers[2].digest)
        for path in (files.pack, files.sidecar):  # the find has set back the time of the pack
            os.utime(path, (0, 0))
        assert groups.sweep(1e9) == 2
    assert packs.names == [".index", ".index", ".pack", ".pack"]
    assert groups.sweep(1e9) == 1
    assert packs.packer().files(layers[1].digest).pack.exists()


@pytest_twisted.ensureDeferred
async def test_a_part_of_a_killed_process_is_replaced(packs: PackSite) -> None:
    """What a killed process has left of a pack is no pack, and does not get into the next one."""
    layer = packs.layer(tar_of({"a": b"1"}))
    files = packs.packer().files(layer.digest)
    packs.directory.mkdir()
    files.part.write_bytes(b"remainder" * 10_000)
    files.sidecar.write_bytes(b"remainder")
    pack = await packs.pack(layer)
    assert files_of(pack) == {b"a": b"1"}
    assert packs.names == [".index", ".pack"]
