"""Limits on the cost of hostile layers, and how soon work on them stops."""

from __future__ import annotations

import gzip
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest
import zstandard

from shiftergw.build.stream import stream
from shiftergw.errors import ImageTooLarge, LayerInvalid
from shiftergw.model.build_options import BuildLimits
from shiftergw.model.images import LayerFile
from shiftergw.oci import budget
from shiftergw.oci.budget import Budget, Cost, stoppable, stoppable_sorted
from shiftergw.oci.changeset import _Application, apply_layer
from shiftergw.oci.compression import StopRequested, decompress, opening_of
from shiftergw.oci.flatten import flatten
from shiftergw.oci.tar import HARDLINK, Entry, LayerIndex, index_layer
from shiftergw.oci.tree import REGULAR, SYMLINK, Directory, Leaf, walk
from tests.images import entry, tar_of
from tests.oci.layers import index_tar, plan_layers, symlink
from tests.tracing import without_tracing

SECONDS = 1.0
"""CPU time in which work ends after its stop flag was set."""

DEEP = b"/".join([b"d"] * 1900)


def entry_at(path: bytes, kind: int = REGULAR, target: bytes = b"") -> Entry:
    """Return an entry of an index."""
    parent, _, name = path.rpartition(b"/")
    return Entry(kind, parent, name, 0o644, 0, 0, target, 0, None, False)


def chain(links: int = 39) -> list[Entry]:
    """Return a chain of symlinks through a deep directory that ends at `/real`."""
    entries = [
        entry_at(DEEP + b"/s%d" % n, SYMLINK, b"/%b/s%d" % (DEEP, n + 1)) for n in range(links - 1)
    ]
    entries.append(entry_at(DEEP + b"/s%d" % (links - 1), SYMLINK, b"/real"))
    return [*entries, entry_at(b"go", SYMLINK, b"/" + DEEP + b"/s0")]


def uncached_entries(count: int) -> list[Entry]:
    """Return entries below a chain that each change a symlink, so that no path stays cached."""
    entries = chain()
    for n in range(count):
        entries += [entry_at(b"flip", SYMLINK, b"%d" % n), entry_at(b"go/x%d/f" % n)]
    return entries


def test_a_chain_of_links_is_resolved_once() -> None:
    """The resolved path is cached: each further entry below it costs one step."""
    entries = chain() + [entry_at(b"go/x%d/f" % n) for n in range(5000)]
    root = Directory()
    apply_layer(root, LayerIndex(entries), 0, Budget(BuildLimits(path_steps=600_000)))
    real = root.children[b"real"]
    assert isinstance(real, Directory)
    assert len(real.children) == 5000


@without_tracing
def test_path_steps_are_limited() -> None:
    """Entries that invalidate the cache exceed the limit on all path steps; the error names it."""
    budget = Budget(BuildLimits(path_steps=1_000_000))
    with pytest.raises(ImageTooLarge, match="more than 1000000 steps") as caught:
        flatten([LayerIndex(uncached_entries(20_000))], budget, keep_setuid=False)
    assert "`MaxPathSteps`" in caught.value.remedy


@without_tracing
def test_whiteouts_below_a_chain_count() -> None:
    """The path of each whiteout is resolved in the lower tree, every time."""
    whiteouts = [entry_at(b"go/x%d/.wh.f" % n) for n in range(5000)]
    budget = Budget(BuildLimits(path_steps=2_000_000))
    with pytest.raises(ImageTooLarge, match="steps"):
        flatten([LayerIndex(chain()), LayerIndex(whiteouts)], budget, keep_setuid=False)


@without_tracing
def test_pending_links_are_resolved_in_linear_time() -> None:
    """Many hard links before their targets do not take quadratic time."""
    count = 200_000
    links = [entry_at(b"l%d" % n, HARDLINK, b"t%d" % n) for n in range(count)]
    index = LayerIndex(links + [entry_at(b"t%d" % n) for n in range(count)])
    start_time = time.thread_time()
    apply_layer(Directory(), index, 0, Budget(BuildLimits()))
    assert time.thread_time() - start_time < 5


@pytest.mark.parametrize(
    ("limits", "key", "message"),
    [
        (BuildLimits(layers_size=20_000), "MaxLayersSize", "unpack to more than 20 kB"),
        (BuildLimits(layers_entries=3), "MaxLayersEntries", "more than 3 entries together"),
        (BuildLimits(names_size=150), "MaxNamesSize", "longer than 150 bytes"),
    ],
)
def test_layers_count_together(tmp_path: Path, limits: BuildLimits, key: str, message: str) -> None:
    """Each layer is within the limits, all together exceed one; the error names it and its key."""
    tars = [tar_of([entry(f"{n}" * 100, b""), entry(f"{n}", b"")]) for n in range(2)]
    for tar in tars:
        plan_layers(tmp_path, tar, limits=limits)
    with pytest.raises(ImageTooLarge, match=message) as caught:
        plan_layers(tmp_path, *tars, limits=limits)
    assert f"`{key}`" in caught.value.remedy


def test_the_ratio_of_unpacked_to_compressed_bytes_is_limited() -> None:
    """The limit is on all layers read so far; a layer that the image names twice is read once."""
    budget = Budget(BuildLimits(ratio=100))
    budget.layer(times=30).update(Cost(size=8 * 10**9, stored_size=1000))
    with pytest.raises(ImageTooLarge, match=r"2 kB of .* 100 times as much") as caught:
        budget.layer().update(Cost(size=10**6, stored_size=1000))
    assert "`MaxRatio`" in caught.value.remedy
    budget.layer().update(Cost(size=10**9, stored_size=10**7))


def test_a_layer_that_is_read_again_counts_once(tmp_path: Path) -> None:
    """The cost of a damaged download is subtracted."""
    path = tmp_path / "layer"
    path.write_bytes(tar_of([entry("a", b""), entry("b", b"")]))
    part = Budget(BuildLimits(layers_entries=2)).layer()
    for _ in range(2):
        assert len(index_layer(opening_of(path), None, part, Event()).entries) == 2


def test_a_failed_layer_does_not_use_up_the_budget(tmp_path: Path) -> None:
    """The bytes of a damaged download are subtracted before the layer is read again."""
    paths = [tmp_path / "large", tmp_path / "small"]
    paths[0].write_bytes(tar_of([entry(f"{n}", b"") for n in range(10)]))
    paths[1].write_bytes(tar_of([entry("a", b"")]))
    budget = Budget(BuildLimits(layers_entries=5))
    parts = [budget.layer(), budget.layer()]
    with pytest.raises(ImageTooLarge):
        index_layer(opening_of(paths[0]), None, parts[0], Event())
    parts[0].reset()
    assert len(index_layer(opening_of(paths[1]), None, parts[1], Event()).entries) == 1


def test_subtracting_never_fails() -> None:
    """It succeeds even if the subtracted compressed bytes are part of another layer's ratio."""
    budget = Budget(BuildLimits(ratio=200))
    unproven, zeros = budget.layer(), budget.layer()
    unproven.update(Cost(size=10**9, stored_size=10**9))
    zeros.update(Cost(size=12 * 10**9, stored_size=12 * 10**6))
    unproven.reset()
    unproven.update(Cost(size=10**9, stored_size=10**9))


def test_the_order_of_reading_does_not_matter() -> None:
    """A layer beyond the ratio waits until all layers have arrived; together they are within it."""
    budget = Budget(BuildLimits(ratio=200), stored_size=None)
    zeros = Cost(size=12 * 10**9, stored_size=12 * 10**6)
    assert not budget.add(zeros, 1)
    reading = Thread(target=budget.layer().update, args=(zeros,))
    reading.start()
    budget.set_stored_size(10**9)
    reading.join()
    budget.layer().update(Cost(size=150 * 10**9, stored_size=10**6))
    with pytest.raises(ImageTooLarge, match="200 times"):
        budget.layer().update(Cost(size=100 * 10**9, stored_size=10**6))


def test_a_wait_for_other_layers_can_be_stopped() -> None:
    """The other layers may never arrive."""
    stop = Event()
    stop.set()
    with pytest.raises(StopRequested):
        Budget(BuildLimits(), stored_size=None).layer().update(Cost(size=9 * 10**9), stop)


def test_long_paths_are_counted_in_the_finished_image(tmp_path: Path) -> None:
    """Short names can form long paths, and each path is written out for `mksquashfs`."""
    tar = tar_of([entry("d" * 200, None), *(entry("d" * 200 + f"/{n}", b"") for n in range(20))])
    moved_link = tar_of([symlink("s", "d" * 200), *(entry(f"s/x{n}", b"") for n in range(20))])
    limits = BuildLimits(names_size=6000)
    plan_layers(tmp_path, tar, limits=limits)
    with pytest.raises(ImageTooLarge, match="paths of the image are longer than 6 kB"):
        plan_layers(tmp_path, tar, moved_link, limits=limits)


def test_maps_of_sparse_files_count_as_names(tmp_path: Path) -> None:
    """Each piece of a map needs memory until the image is planned."""
    pieces = ",".join(f"{2 * n},1" for n in range(1000))
    headers = {"GNU.sparse.size": "3000", "GNU.sparse.map": pieces}
    tar = tar_of([entry("sparse", bytes(1000), pax_headers=headers)])
    plan_layers(tmp_path, tar)
    with pytest.raises(ImageTooLarge, match="names"):
        plan_layers(tmp_path, tar, limits=BuildLimits(names_size=50_000))


def test_extended_headers_of_one_entry_are_limited() -> None:
    """Extended headers cannot accumulate in memory."""
    header = tar_of([entry("a", b"", pax_headers={"comment": "c" * 900_000})])
    layer_part = header[: 512 + -(-int(header[124:135], 8) // 512) * 512]
    with pytest.raises(LayerInvalid, match="before one entry"):
        index_tar(layer_part * 6 + header)


# Stopping.


def blocks(count: int) -> bytes:
    """Return one zstd frame with this number of empty blocks."""
    frame = struct.pack("<IBB", 0xFD2FB528, 0, 0x58)
    return frame + bytes(3) * count + b"\1\0\0"


BARREN: dict[str, Callable[[], bytes]] = {
    "gzip, empty members": lambda: gzip.compress(b"") * 1_000_000,
    "zstd, empty frames": lambda: zstandard.ZstdCompressor().compress(b"") * 3_000_000,
    "zstd, empty blocks": lambda: blocks(10_000_000),
    "zstd, skippable frames": lambda: struct.pack("<II", 0x184D2A50, 0) * 3_000_000,
    "gzip, zeros after the end": lambda: gzip.compress(b""),
}


def stops_soon(work: Callable[[Event], object]) -> None:
    """Start work in a thread, set its stop flag, and measure the CPU time until it ends."""
    stop, cpu_seconds, endings = Event(), [0.0], []

    def run() -> None:
        try:
            work(stop)
        except StopRequested:
            endings.append("stopped")
        cpu_seconds.append(time.thread_time())

    start_seconds: list[float] = []
    thread = Thread(target=run)
    thread.start()
    clock = time.pthread_getcpuclockid(thread.ident or 0)
    while thread.is_alive() and time.clock_gettime(clock) < 0.05:
        time.sleep(0.005)
    assert thread.is_alive(), "the work is too small for this test"
    start_seconds.append(time.clock_gettime(clock))
    stop.set()
    thread.join()
    assert endings == ["stopped"]
    assert cpu_seconds[-1] - start_seconds[0] < SECONDS


@pytest.mark.parametrize("kind", BARREN)
def test_a_stream_without_output_can_be_stopped(tmp_path: Path, kind: str) -> None:
    """The flag is checked even if much input gives no output."""
    path = tmp_path / "blob"
    path.write_bytes(BARREN[kind]())
    if "zeros" in kind:
        os.truncate(path, 2_000_000_000)
    stops_soon(lambda stop: list(decompress(opening_of(path), stop)))


def test_resolving_paths_can_be_stopped() -> None:
    """Paths that are never cached, with a very high limit on steps."""
    index = LayerIndex(uncached_entries(20_000))
    limits = BuildLimits(path_steps=1 << 60)
    stops_soon(lambda stop: flatten([index], Budget(limits, stop), keep_setuid=False))


@without_tracing
def test_many_entries_can_be_stopped() -> None:
    """Many entries of one directory, including whiteouts."""
    lower = [entry_at(b"d/%d" % n) for n in range(300_000)]
    upper = [entry_at(b"d/.wh.%d" % n) for n in range(300_000)]
    indexes = [LayerIndex(lower), LayerIndex(upper)]
    stops_soon(lambda stop: flatten(indexes, Budget(BuildLimits(), stop), keep_setuid=False))


@pytest.mark.parametrize("kind", ["chain", "star"])
def test_resolving_pending_links_can_be_stopped(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Links are resolved at the end of the layer, in one long chain or in many short ones."""
    count = 20_000
    targets = [b"%d" % (n + 1 if kind == "chain" else count) for n in range(count)]
    links = [entry_at(b"%d" % n, HARDLINK, target) for n, target in enumerate(targets)]
    stop, finish = Event(), _Application.finish

    def stop_and_finish(layer: _Application) -> None:
        stop.set()
        finish(layer)

    monkeypatch.setattr(_Application, "finish", stop_and_finish)
    index = LayerIndex([*links, entry_at(b"%d" % count)])
    with pytest.raises(StopRequested):
        apply_layer(Directory(), index, 0, Budget(BuildLimits(), stop))


def test_a_sort_of_many_names_can_be_stopped() -> None:
    """The sort uses buckets instead of one call; so does the first directory of a walk."""
    names = [b"%08x" % (n * 2_654_435_761 % 2**32) for n in range(1_000_000)]
    stops_soon(lambda stop: list(stoppable_sorted(names, stop)))
    root = Directory(children=dict.fromkeys(names, Leaf(REGULAR)))
    stops_soon(lambda stop: list(walk(root, stop)))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 500])
def test_a_sort_in_buckets_sorts(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The result is sorted for any number of buckets, with and without a key."""
    monkeypatch.setattr(budget, "_BUCKET", 16)
    names = [b"%d" % (n * 7 % 331) for n in range(count)]
    assert list(stoppable_sorted(names, Event())) == sorted(names)
    assert list(stoppable_sorted(names, Event(), int)) == sorted(names, key=int)


@pytest.mark.slow
@without_tracing
def test_the_buckets_of_a_sort_are_small() -> None:
    """No single call sorts many items."""

    class Item(int):
        """A number that counts its comparisons since the last check of the stop flag."""

        comparisons = 0

        def __lt__(self, operand: int) -> bool:
            Item.comparisons += 1
            return int(self) < int(operand)

    class Flag(Event):
        """A stop flag that records the largest number of comparisons between two checks."""

        highest = 0

        def is_set(self) -> bool:
            Flag.highest = max(Flag.highest, Item.comparisons)
            Item.comparisons = 0
            return False

    numbers = [Item(n * 2_654_435_761 % 2**32) for n in range(200_000)]
    assert list(stoppable_sorted(numbers, Flag())) == sorted(map(int, numbers))
    assert Flag.highest < 3 * 2**16 * 18


def test_many_empty_directories_can_be_stopped() -> None:
    """The flag is checked for each directory, even without entries."""
    stop = Event()
    stop.set()
    with pytest.raises(StopRequested):
        list(stoppable([], stop))


def test_the_stream_can_be_stopped() -> None:
    """The stream stops even before its first byte, while a large directory is sorted."""
    index = LayerIndex([entry_at(b"d/%d" % n) for n in range(100_000)])
    plan = without_tracing(flatten)([index], Budget(BuildLimits()), keep_setuid=False)

    def write(stop: Event) -> None:
        with Path("/dev/null").open("wb") as out:
            stream(plan, [], out.fileno(), stop, lambda _, __: None)

    stops_soon(write)


def test_a_sparse_file_of_many_pieces_can_be_stopped(tmp_path: Path) -> None:
    """Writing the zeros between pieces checks the flag, too."""
    tar = tar_of(
        [entry("s", b"", pax_headers={"GNU.sparse.size": str(10**12), "GNU.sparse.map": ""})]
    )
    plan, layers = plan_layers(tmp_path, tar, limits=BuildLimits(size=10**13))
    assert isinstance(layers[0], LayerFile)

    def write(stop: Event) -> None:
        with Path("/dev/null").open("wb") as out:
            stream(plan, layers, out.fileno(), stop, lambda _, __: None)

    stops_soon(write)
