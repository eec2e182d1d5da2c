"""Packs of layers: what they hold, when they are made, and what is left when they are not."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.build import pack_feed
from shiftergw.build.pack_feed import BUFFER_LIMIT, NO_DIGEST
from shiftergw.build.pack_files import Pack
from shiftergw.errors import BlobCorrupt, ImageTooLarge, LayerInvalid
from shiftergw.model.build_options import BuildLimits, PackerName
from shiftergw.model.images import Digest
from shiftergw.plumbing.locks import tried_lock
from shiftergw.plumbing.threads import Threads
from tests.build.packing import PackSite, budget, files_of, stored_contents
from tests.build.parts import open_descriptors, running_in, script
from tests.images import entry, tar_of
from tests.oci.layers import hard_link, special, symlink
from tests.oci.test_sparse import FORMATS, pax, sparse_file
from tests.parts import need
from tests.work.waiting import until

real: Any = reactor
LONG = os.environ.get("SHIFTERGW_LONG") == "1"
NOISE = random.Random(1).randbytes(3_000_000)


@pytest.fixture(params=["mksquashfs", "direct"])
def packs(request: pytest.FixtureRequest, tmp_path: Path, threads: Threads) -> Iterator[PackSite]:
    """Return each packer: the real `mksquashfs`, and our own."""
    site = PackSite(tmp_path, threads, packer=request.param)
    yield site
    site.end()


def output_of(*argv: str) -> bytes:
    """Return what a program prints."""
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout


def digest_of(content: bytes) -> bytes:
    """Return the digest that a pack has of a content: only that of one that is buffered."""
    return hashlib.sha256(content).digest() if len(content) <= BUFFER_LIMIT else NO_DIGEST


LARGEST = {
    "a": NOISE[:BUFFER_LIMIT],
    "b": NOISE[:BUFFER_LIMIT],
    "c": NOISE[: BUFFER_LIMIT + 1],
}
TARS: dict[str, tuple[bytes, dict[str, bytes], int]] = {
    "empty": (tar_of([]), {}, 0),
    "directories and links": (tar_of([entry("d"), symlink("s", "d"), special("c")]), {}, 0),
    "one file": (tar_of({"a": b"content"}), {"a": b"content"}, 1),
    "empty files": (tar_of({"a": b"", "b": b"x", "c": b""}), {"a": b"", "b": b"x", "c": b""}, 1),
    "hard link": (tar_of([entry("a", b"1"), hard_link("b", "a")]), {"a": b"1"}, 1),
    "large file": (tar_of({"a": NOISE, "b": b"2"}), {"a": NOISE, "b": b"2"}, 2),
    "duplicates": (
        tar_of({"a": b"1" * 700, "b": b"2", "c": b"1" * 700, "d": b"2"}),
        {"a": b"1" * 700, "b": b"2", "c": b"1" * 700, "d": b"2"},
        2,
    ),
    "block sizes": (
        tar_of({f"f{size}": NOISE[:size] for size in (1, 511, 512, 131_071, 131_072, 131_073)}),
        {f"f{size}": NOISE[:size] for size in (1, 511, 512, 131_071, 131_072, 131_073)},
        6,
    ),
    "largest that is buffered": (tar_of(LARGEST), LARGEST, 2),
    "a path twice": (tar_of([entry("a", b"1"), entry("a", b"2")]), {"a": b"2"}, 2),
}


@pytest.mark.parametrize("kind", TARS)
@pytest_twisted.ensureDeferred
async def test_a_pack_has_the_contents_of_its_layer(packs: PackSite, kind: str) -> None:
    """Every file leads to its bytes by its number, and each content is there once."""
    tar, files, count = TARS[kind]
    pack = await packs.pack(packs.layer(tar))
    assert files_of(pack) == {name.encode(): data for name, data in files.items()}
    contents = stored_contents(pack)
    assert len(contents) == count
    assert list(map(digest_of, contents)) == list(pack.digests)
    assert pack.diff_id == Digest.of(tar)
    assert packs.names == [".index", ".pack"]


@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd"])
@pytest_twisted.ensureDeferred
async def test_layers_of_every_compression(packs: PackSite, compression: str) -> None:
    """A layer gives the same pack, however it was compressed; all its bytes are reported."""
    layer = packs.layer(tar_of({"a": NOISE[:200_000]}), compression)
    pack = await packs.pack(layer)
    assert files_of(pack) == {b"a": NOISE[:200_000]}
    assert packs.reports[-1] == layer.size


@pytest.mark.parametrize("pieces", [0, 1, 9])
@pytest.mark.parametrize("kind", FORMATS)
@pytest_twisted.ensureDeferred
async def test_sparse_files_keep_their_data(
    tmp_path: Path, packs: PackSite, kind: str, pieces: int
) -> None:
    """Only blocks with data are in the pack, and the file is whole with zeros between them."""
    data = sparse_file(tmp_path / "holes", pieces, 1_234_567)
    (tmp_path / "after").write_bytes(b"after")
    argv = [need("tar"), "--sparse", *FORMATS[kind], "-C", str(tmp_path), "-cf", "-"]
    tar = output_of(*argv, "holes", "after")
    pack = await packs.pack(packs.layer(tar))
    assert files_of(pack) == {b"holes": data, b"after": b"after"}
    assert sum(map(len, stored_contents(pack))) < len(data) - 1_000_000


@pytest_twisted.ensureDeferred
async def test_a_file_of_holes_costs_nothing(packs: PackSite) -> None:
    """A sparse file of 8 EiB with one byte at its end takes one block."""
    size = 2**63 - 1
    members = {b"size": b"%d" % size, b"map": b"%d,1" % (size - 1)}
    pack = await packs.pack(packs.layer(pax(members, b"x")))
    (content,) = stored_contents(pack)
    assert content == bytes(size % (1 << 17) - 1) + b"x"


@pytest_twisted.ensureDeferred
async def test_zeros_between_the_pieces_of_a_block_count_as_unpacked(packs: PackSite) -> None:
    """Pieces that are far apart make much of few bytes: a limit on the layers ends that."""
    pairs = b",".join(b"%d,1" % (number << 17) for number in range(1000))
    layer = packs.layer(pax({b"size": b"%d" % (1000 << 17), b"map": pairs}, bytes(1000)))
    with pytest.raises(ImageTooLarge, match="unpack to more than"):
        await packs.pack(layer, BuildLimits(layers_size=100_000_000))
    assert packs.names == []


@pytest_twisted.ensureDeferred
async def test_a_file_larger_than_linux_can_open_is_refused(packs: PackSite) -> None:
    """A sparse file of more than 8 EiB is an error of the layer."""
    layer = packs.layer(pax({b"size": b"%d" % 2**63, b"map": b"0,1"}, b"x"))
    with pytest.raises(LayerInvalid, match="larger than Linux"):
        await packs.pack(layer)


@pytest.mark.parametrize("count", [1000, *([70_000] if LONG else [])])
@pytest_twisted.ensureDeferred
async def test_many_files_of_one_size(packs: PackSite, count: int) -> None:
    """Files of one size with different contents keep their order over all directories."""
    files = {f"f{number:05}": b"%05d" % number for number in range(count)}
    pack = await packs.pack(packs.layer(tar_of(files)))
    assert stored_contents(pack) == list(files.values())
    assert [entry.number for entry in pack.index.entries] == list(range(count))


@pytest_twisted.ensureDeferred
async def test_more_contents_than_numbers(packs: PackSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of directories have five digits; more contents than they allow are too many."""
    monkeypatch.setattr(pack_feed, "MOST_CONTENTS", 2)
    with pytest.raises(ImageTooLarge, match="more than 2 different files"):
        await packs.pack(packs.layer(tar_of({"a": b"1", "b": b"2", "c": b"3"})))


@pytest.mark.parametrize("packer", ["mksquashfs", "direct"])
@pytest_twisted.ensureDeferred
async def test_the_same_layer_gives_the_same_bytes(
    tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch, packer: PackerName
) -> None:
    """Neither the processors, the memory, the directory, nor the environment shapes a pack."""
    tar = tar_of({**{f"f{number}": b"%d" % number * 3000 for number in range(300)}, "n": NOISE})
    packs: list[Pack] = []
    for members in ({"processors": 1}, {"processors": 3, "memory": "128M"}):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", f"{len(packs)}")
        directory = tmp_path / f"{len(packs)}"
        directory.mkdir()
        site = PackSite(directory, threads, packer=packer)
        packs.append(await site.pack(site.layer(tar, "gzip"), **members))
    first, second = packs
    assert first.path.read_bytes() == second.path.read_bytes()
    assert (first.path.name, first.data_sha256) == (second.path.name, second.data_sha256)


@pytest_twisted.ensureDeferred
async def test_a_pack_is_made_once(packs: PackSite) -> None:
    """The second packing finds the pack, its index and its cost, and runs no program."""
    layer = packs.layer(tar_of({"d/a": b"1", "b": b"2"}))
    first = await packs.pack(layer)
    packs.tools = PackSite(packs.directory.parent, packs.tools.threads, "no-program").tools
    limits = BuildLimits(layers_entries=2)
    present = await packs.pack(layer, limits)
    assert [*map(str, present.index.entries)] == [*map(str, first.index.entries)]
    assert (present.digests, present.index.cost) == (first.digests, first.index.cost)
    assert present.index.cost.entries == 2
    with pytest.raises(ImageTooLarge, match="more than 1 entries"):
        await packs.pack(layer, BuildLimits(layers_entries=1))


@pytest_twisted.ensureDeferred
async def test_a_claim_of_another_diff_id_is_refused(packs: PackSite) -> None:
    """A wrong `diff_id` is found while the pack is made, and when it exists."""
    layer = packs.layer(tar_of({"a": b"1"}))
    claim = packs.layer(tar_of({"a": b"1"}), diff_id=Digest.of(b"another"))
    for names in ([], [".index", ".pack"]):
        with pytest.raises(BlobCorrupt, match="unpacks to other bytes"):
            await packs.pack(claim)
        assert packs.names == names
        await packs.pack(layer)


@pytest_twisted.ensureDeferred
async def test_a_claim_by_another_algorithm_is_proven_anew(packs: PackSite) -> None:
    """A pack that was proven by SHA-256 proves no SHA-512: it is made again."""
    tar = tar_of({"a": b"1"})
    await packs.pack(packs.layer(tar))
    wrong = packs.layer(tar, diff_id=Digest("sha512", "0" * 128))
    async with AsyncExitStack() as use:
        assert await packs.packer().find(wrong.digest, wrong.diff_id, budget(), use) is None
    with pytest.raises(BlobCorrupt):
        await packs.pack(wrong)
    right = packs.layer(tar, diff_id=Digest("sha512", hashlib.sha512(tar).hexdigest()))
    assert (await packs.pack(right)).diff_id == right.diff_id


@pytest_twisted.ensureDeferred
async def test_a_layer_is_packed_while_it_arrives(tmp_path: Path, packs: PackSite) -> None:
    """Contents are compressed before the layer is complete; the pack appears afterwards."""
    layer = packs.coming_layer(tar_of({"a": NOISE, "b": b"2"}), "plain")
    packing = Deferred.fromCoroutine(packs.pack(layer))
    layer.arrive(1_500_000)
    await until(lambda: packs.part_size(layer) > 500_000)
    assert ".pack" not in packs.names
    layer.complete()
    assert files_of(await packing) == {b"a": NOISE, b"b": b"2"}
    assert running_in(tmp_path) == []


@pytest_twisted.ensureDeferred
async def test_the_early_part_of_a_dead_process(packs: PackSite) -> None:
    """What a killed process has packed of an arriving layer is removed with the next packing."""
    layer = packs.layer(tar_of({"a": b"1"}))
    part = packs.packer().files(layer.digest).part
    part.parent.mkdir(parents=True)
    part.write_bytes(b"incomplete")
    await packs.pack(layer)
    assert packs.names == [".index", ".pack"]


@pytest_twisted.ensureDeferred
async def test_a_download_that_begins_anew(tmp_path: Path, packs: PackSite) -> None:
    """The pack is then made from the file, and what has made the first one has ended."""
    layer = packs.coming_layer(tar_of({"a": NOISE}), "plain")
    packing = Deferred.fromCoroutine(packs.pack(layer))
    layer.arrive(1_500_000)
    await until(lambda: packs.part_size(layer) > 500_000)
    layer.begin_anew()
    assert files_of(await packing) == {b"a": NOISE}
    assert (running_in(tmp_path), packs.names) == ([], [".index", ".pack"])


@pytest_twisted.ensureDeferred
async def test_a_stop_in_the_middle(tmp_path: Path, packs: PackSite) -> None:
    """A cancelled packing leaves neither a process, nor a thread, nor a file, nor a lock."""
    before = open_descriptors()
    layer = packs.coming_layer(tar_of({"a": NOISE}), "plain")
    packing = Deferred.fromCoroutine(packs.pack(layer))
    layer.arrive(1_500_000)
    await until(lambda: packs.part_size(layer) > 500_000)
    packing.cancel()
    with pytest.raises(CancelledError):
        await packing
    assert (running_in(tmp_path), packs.names) == ([], [])
    assert open_descriptors() == before


@pytest_twisted.ensureDeferred
async def test_a_slow_download_holds_up_no_other_packing(packs: PackSite) -> None:
    """A layer that is complete is packed while the same layer still arrives from elsewhere."""
    tar = tar_of({"a": NOISE})
    slow = packs.coming_layer(tar, "plain")
    packing = Deferred.fromCoroutine(packs.pack(slow))
    slow.arrive(1_500_000)
    await until(lambda: packs.part_size(slow) > 500_000)
    pack = await packs.pack(packs.layer(tar))
    assert files_of(pack) == {b"a": NOISE}
    assert not packing.called
    inode = pack.path.stat().st_ino
    slow.complete()
    assert (await packing).path.stat().st_ino == inode
    assert packs.names == [".index", ".pack"]


@pytest_twisted.ensureDeferred
async def test_the_pack_that_was_begun_early_is_used(tmp_path: Path, threads: Threads) -> None:
    """A build whose layer arrives at the same time waits for the one that has read it early."""
    runs = tmp_path / "runs"
    program = script(tmp_path / "mksquashfs", f'echo >>{runs}; exec {need("mksquashfs")} "$@"')
    packs = PackSite(tmp_path, threads, program)
    tar = tar_of({"a": NOISE})
    layer = packs.coming_layer(tar, "plain")
    packing = Deferred.fromCoroutine(packs.pack(layer))
    layer.arrive(1_500_000)
    await until(lambda: packs.part_size(layer) > 500_000)
    layer.complete()
    second_pack = await packs.pack(packs.layer(tar))
    assert second_pack.path == (await packing).path
    assert runs.read_text() == "\n"


@pytest_twisted.ensureDeferred
async def test_a_second_packing_waits_for_the_first(packs: PackSite) -> None:
    """One process at a time packs a layer; the other one then finds the pack."""
    layer = packs.layer(tar_of({"a": b"1"}))
    packs.directory.mkdir()
    with tried_lock(packs.packer().files(layer.digest).lock):
        packing = Deferred.fromCoroutine(packs.pack(layer))
        await until(lambda: packs.names == [".lock", ".lock"])
        assert not packing.called
    assert files_of(await packing) == {b"a": b"1"}
