"""From layers that arrive to a squashfs file: the real cache and builder, observed."""

from __future__ import annotations

import os
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any, NoReturn, cast

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.logger import capturedLogs, formatEvent

from shiftergw.build import image_build
from shiftergw.cache import blobs
from shiftergw.cache.blob_cache import BlobFiles
from shiftergw.errors import (
    BlobCorrupt,
    ImageNotFound,
    ImageTooLarge,
    LayerInvalid,
    ManifestInvalid,
    NoSpace,
    PullError,
    RegistryDenied,
    RegistryUnavailable,
    RetryLater,
    TimedOut,
)
from shiftergw.image import (
    BuildLimits,
    BuiltImage,
    Descriptor,
    Digest,
    ImageConfig,
    Platform,
    ResolvedImage,
    SquashOptions,
    StageLimits,
)
from shiftergw.job.pipeline import Pipeline
from shiftergw.model import ImageReference, Progress
from shiftergw.oci import budget
from shiftergw.plumbing.shared_result import SharedResult
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobSink, Layer
from shiftergw.states import State, check_step
from tests.build.site import ABOVE, TREE, Site
from tests.images import compress, entry, tar_of
from tests.work.waiting import until

OPTIONS = SquashOptions(level=1, memory="64M")
PULLING = "Pulling layers"
real: Any = reactor

Send = Callable[[int, BlobSink], Awaitable[None]]


class RecordingWatcher:
    """A `Watcher` that records stages and progress."""

    def __init__(self) -> None:
        """Start with a pending image."""
        self.stages = [(State.PENDING, "")]
        self.progress: list[Progress] = []

    @property
    def messages(self) -> list[str]:
        """Return the messages of the stages."""
        return [message for _, message in self.stages[1:]]

    def enter_stage(self, state: State, message: str) -> None:
        """Record the stage; fail if no step leads there from the stage before."""
        check_step(self.stages[-1][0], state)
        self.stages.append((state, message))

    def report(self, progress: Progress) -> None:
        """Record the progress."""
        self.progress.append(progress)

    def notify(self, message: str) -> None:
        """Ignore the message."""


class PipelineBench:
    """A pipeline of real parts; its source sends each layer when the test wants."""

    def __init__(self, directory: Path, threads: Threads, site: Site | None = None) -> None:
        """Keep everything below `directory`, or with the builder of another site."""
        self.threads = threads
        self.site = site or Site(directory, threads)
        self.cache_place = directory / "cache" / "sha256"
        self.cache = BlobFiles(directory / "cache", threads, real)
        self.sends: dict[Digest, Send] = {}
        self.answer: ResolvedImage | None = None
        self.config = ImageConfig()
        self.pipeline = Pipeline(
            cast("Any", self), lambda _: self.cache, self.site.builder, BuildLimits(), real
        )

    async def blob(
        self, _image: Any, blob: Descriptor, _login: Any, _say: Any, offset: int, sink: BlobSink
    ) -> None:
        """Send the blob."""
        await self.sends[blob.digest](offset, sink)

    async def resolve(self, *_: Any) -> tuple[ResolvedImage | None, ImageConfig]:
        """Return the image."""
        return self.answer, ImageConfig()

    def image(self, *blobs: bytes) -> ResolvedImage:
        """Return an image of these layers, which are sent at once unless `sends` says otherwise."""
        layers = tuple(Descriptor(Digest.of(blob), len(blob)) for blob in blobs)
        for layer, blob in zip(layers, blobs, strict=True):
            self.sends.setdefault(layer.digest, sending(blob))
        identity = Digest.of("".join(str(layer.digest) for layer in layers).encode())
        return ResolvedImage(identity, identity, layers[0], layers, "registry", "lib/app", False)

    async def convert(self, image: ResolvedImage, watcher: RecordingWatcher | None = None) -> int:
        """Convert an image; return how many entries it has."""
        return (await self.build(image, watcher or RecordingWatcher())).report.entries

    async def build(self, image: ResolvedImage, watcher: RecordingWatcher) -> BuiltImage:
        """Convert an image, and end its use at once."""
        async with self.pipeline.convert(image, self.config, None, OPTIONS, watcher) as squashfs:
            return squashfs

    def cached_files(self) -> list[str]:
        """Return the names of the files in the cache."""
        place = self.cache_place
        return sorted(path.name for path in place.iterdir()) if place.exists() else []

    def reader_positions(self) -> list[int]:
        """Return the positions of all readers of partial blobs."""
        positions = []
        for path in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                if str(path.readlink()).endswith(".partial"):
                    lines = Path("/proc/self/fdinfo", path.name).read_text().splitlines()
                    info = dict(line.split() for line in lines)
                    if int(info["flags:"], 8) & os.O_ACCMODE == os.O_RDONLY:
                        positions.append(int(info["pos:"]))
        return positions


def sending(blob: bytes, gate: SharedResult[None] | None = None) -> Send:
    """Return a function that sends a blob, its second half after the gate is open."""

    async def send(offset: int, sink: BlobSink) -> None:
        sink.begin(offset)
        half = len(blob) // 2
        if offset < half:
            sink.write(blob[offset:half])
        if gate is not None:
            await gate.wait()
        sink.write(blob[max(offset, half) :])

    return send


@pytest_twisted.async_yield_fixture()
async def bench(tmp_path: Path) -> AsyncIterator[PipelineBench]:
    """Yield a pipeline whose builder runs the real `mksquashfs`."""
    threads = Threads(real, 6, "test")
    threads.startService()
    yield PipelineBench(tmp_path, threads)
    await threads.stopService()


TARS = tar_of(TREE), tar_of(ABOVE)
LOWER, UPPER = compress(TARS[0]), compress(TARS[1], "zstd")
PROVEN = ImageConfig(diff_ids=tuple(map(Digest.of, TARS)))


@pytest_twisted.ensureDeferred
async def test_a_layer_is_examined_while_it_arrives(bench: PipelineBench) -> None:
    """The progress is that of the download until its end, and then that of the build."""
    gate: SharedResult[None] = SharedResult()
    image = bench.image(LOWER, UPPER)
    bench.sends[image.layers[0].digest] = sending(LOWER, gate)
    watcher = RecordingWatcher()
    converting = Deferred.fromCoroutine(bench.build(image, watcher))
    await until(lambda: bench.reader_positions() == [len(LOWER) // 2])
    assert watcher.messages == [PULLING]
    assert {progress.stage for progress in watcher.progress} == {"fetch"}
    gate.set_result(None)
    squashfs = await converting
    assert squashfs.report.entries > len(TREE) - 2
    assert set(squashfs.seconds) == {"fetch", "index", "plan", "squash", "check"}
    assert watcher.messages == [PULLING, "Examining image", "Converting image"]
    assert bench.cached_files() == sorted(layer.digest.hex for layer in image.layers)


@pytest_twisted.ensureDeferred
async def test_a_pull_that_waits_for_another_conversion_says_so(bench: PipelineBench) -> None:
    """One of two pulls converts; the progress of the second pull names its wait."""
    image = bench.image(LOWER, UPPER)
    watchers = [RecordingWatcher(), RecordingWatcher()]
    await gatherResults(
        [Deferred.fromCoroutine(bench.convert(image, watcher)) for watcher in watchers]
    )
    assert sorted(watcher.messages for watcher in watchers) == [
        [PULLING, "Examining image", "Converting image"],
        [PULLING, "Waiting for the same conversion for another pull"],
    ]


@pytest_twisted.ensureDeferred
async def test_a_conversion_does_not_wait_for_layers_of_another_pull(
    bench: PipelineBench, tmp_path: Path
) -> None:
    """Of two pulls of one image, the quicker one converts, and the other one uses its file."""
    gate: SharedResult[None] = SharedResult()
    slow, quick = bench, PipelineBench(tmp_path / "elsewhere", bench.threads, bench.site)
    image = quick.image(LOWER)
    slow.sends[image.layers[0].digest] = sending(LOWER, gate)
    watcher = RecordingWatcher()
    converting = Deferred.fromCoroutine(slow.convert(image, watcher))
    await until(lambda: slow.reader_positions() == [len(LOWER) // 2])
    entries = await quick.convert(image)
    assert not converting.called
    gate.set_result(None)
    assert await converting == entries
    assert watcher.messages == [PULLING, "Examining image"]


@pytest_twisted.ensureDeferred
async def test_a_user_without_the_layers_gets_no_converted_file(bench: PipelineBench) -> None:
    """The converted file of another pull exists, but this user cannot fetch its layers."""
    image = bench.image(LOWER, UPPER)
    await bench.convert(image)
    (bench.cache_place / image.layers[1].digest.hex).unlink()

    async def refuse(_offset: int, _sink: BlobSink) -> None:
        raise RegistryDenied("No.")

    bench.sends[image.layers[1].digest] = refuse
    with pytest.raises(RegistryDenied):
        await bench.convert(image)
    assert bench.cached_files() == [image.layers[0].digest.hex]


@pytest_twisted.ensureDeferred
async def test_a_download_that_must_wait_keeps_its_partial_files(bench: PipelineBench) -> None:
    """The next attempt resumes the partial layers."""
    image = bench.image(LOWER, UPPER)
    offsets: list[int] = []

    async def wait(offset: int, sink: BlobSink) -> None:
        sink.begin(offset)
        sink.write(LOWER[:1000])
        raise RetryLater(1.0, "registry (rate limit)", RegistryDenied("No."))

    async def resume(offset: int, sink: BlobSink) -> None:
        offsets.append(offset)
        await sending(LOWER)(0, sink)

    bench.sends[image.layers[0].digest] = wait
    with pytest.raises(RetryLater):
        await bench.convert(image)
    bench.sends[image.layers[0].digest] = resume
    await bench.convert(image)
    assert offsets == [1000]


@pytest.mark.parametrize("error", [RegistryUnavailable, RegistryDenied, ImageNotFound])
@pytest_twisted.ensureDeferred
async def test_the_next_pull_resumes_what_a_failed_one_has_downloaded(
    bench: PipelineBench, error: type[PullError]
) -> None:
    """Partial layers stay in the cache, those of interrupted downloads beside the failed one too.

    Clients that threw them away never got a large image over a bad line (podman#7497, #14616).
    """
    image = bench.image(LOWER, UPPER)
    offsets: dict[str, int] = {}

    async def fail(offset: int, sink: BlobSink) -> None:
        sink.begin(offset)
        sink.write(LOWER[:1000])
        await until((bench.cache_place / f"{image.layers[1].digest.hex}.partial").exists)
        raise error("The registry is gone.")

    async def hesitate(offset: int, sink: BlobSink) -> None:
        sink.begin(offset)
        sink.write(UPPER[:100])
        await SharedResult[None]().wait()

    def resume(name: str, blob: bytes) -> Send:
        async def send(offset: int, sink: BlobSink) -> None:
            offsets[name] = offset
            await sending(blob)(offset, sink)

        return send

    lower, upper = (layer.digest for layer in image.layers)
    bench.sends = {lower: fail, upper: hesitate}
    with pytest.raises(error):
        await bench.convert(image)
    bench.sends = {lower: resume("lower", LOWER), upper: resume("upper", UPPER)}
    await bench.convert(image)
    assert offsets["lower"] == 1000
    assert offsets["upper"] in {0, 100}  # as much as was written before the cancellation
    assert bench.cached_files() == sorted([lower.hex, upper.hex])


@pytest_twisted.ensureDeferred
async def test_an_image_without_room_leaves_nothing(bench: PipelineBench) -> None:
    """A full disk gets its room back at once."""
    image = bench.image(LOWER)

    async def fill(offset: int, sink: BlobSink) -> None:
        sink.begin(offset)
        sink.write(LOWER[:1000])
        raise NoSpace("The disk is full.")

    bench.sends[image.layers[0].digest] = fill
    with pytest.raises(NoSpace):
        await bench.convert(image)
    assert bench.cached_files() == []


@pytest_twisted.ensureDeferred
async def test_an_invalid_layer_ends_the_other_downloads(bench: PipelineBench) -> None:
    """A blob with the right digest that is no archive fails at once; no partial layers stay."""
    bad = compress(b"this is no archive. " * 1000)
    image = bench.image(bad, LOWER)
    bench.sends[image.layers[1].digest] = sending(LOWER, SharedResult())
    with pytest.raises(LayerInvalid):
        await bench.convert(image)
    assert bench.cached_files() == [image.layers[0].digest.hex]


@pytest_twisted.ensureDeferred
async def test_a_restarted_download_is_read_again(bench: PipelineBench) -> None:
    """The first try is a valid archive of two files; the image has the file of the second try."""
    first, second = tar_of([entry("a", b""), entry("b", b"")]), tar_of([entry("a", b"1" * 512)])
    image = bench.image(second)

    async def hesitate(_: int, sink: BlobSink) -> None:
        sink.begin(0)
        sink.write(first[:1024])
        await until(lambda: bench.reader_positions() == [1024])
        await sending(second)(0, sink)

    bench.sends[image.layers[0].digest] = hesitate
    assert await bench.convert(image) == 1


@pytest.mark.parametrize("is_damaged_again", [True, False])
@pytest_twisted.ensureDeferred
async def test_wrong_bytes_are_blamed_on_the_download(
    bench: PipelineBench, is_damaged_again: bool
) -> None:
    """A layer of wrong bytes is downloaded again, and the image is not blamed."""
    tar = tar_of(TREE)
    image = bench.image(tar)
    damaged_tar = tar[:512] + b"x" * 512 + tar[1024:]

    async def send(_: int, sink: BlobSink) -> None:
        sink.begin(0)
        sink.write(tar[:512])
        await until(lambda: bench.reader_positions() == [512])
        sink.write(b"x" * 512)
        await until(lambda: bench.reader_positions() == [])
        sink.write(tar[1024:])
        bench.sends[image.layers[0].digest] = sending(damaged_tar if is_damaged_again else tar)

    bench.sends[image.layers[0].digest] = send
    if not is_damaged_again:
        assert await bench.convert(image) > 1
        return
    with pytest.raises(BlobCorrupt, match="arrived 2 times with other bytes"):
        await bench.convert(image)
    assert bench.cached_files() == []


@pytest_twisted.ensureDeferred
async def test_limits_count_only_for_verified_bytes(bench: PipelineBench) -> None:
    """Too many entries, in bytes that prove wrong, are not blamed on the image."""
    bench.pipeline._limits = BuildLimits(entries=3)
    good, large = tar_of([entry("good", b"")]), tar_of([entry(f"{n}", b"") for n in range(10)])
    image = bench.image(good)

    async def send(_: int, sink: BlobSink) -> None:
        sink.begin(0)
        sink.write(large[:512])
        await until(lambda: bench.reader_positions() == [512])
        sink.write(large[512:5120])
        await until(lambda: bench.reader_positions() == [])
        await sending(good)(0, sink)

    bench.sends[image.layers[0].digest] = send
    assert await bench.convert(image) == 1


@pytest_twisted.ensureDeferred
async def test_too_many_layers_are_refused_by_the_manifest(bench: PipelineBench) -> None:
    """A manifest with too many layers fails before any download; the error names the key."""
    bench.answer = bench.image(LOWER, UPPER, LOWER)
    bench.pipeline._limits = BuildLimits(layers=2)
    with pytest.raises(ImageTooLarge, match=r"has 3 layers, .* at most 2\.") as caught:
        await bench.pipeline.resolve(ImageReference("app"), Platform(), None, RecordingWatcher())
    assert "`MaxLayers`" in caught.value.remedy


@pytest_twisted.ensureDeferred
async def test_a_repeated_layer_is_read_once_but_counted_each_time(bench: PipelineBench) -> None:
    """Two hundred uses of a small blob take as long as one use, and count as two hundred."""
    tar = tar_of([entry("zeros", bytes(1 << 20))])
    blob = compress(tar)
    bench.pipeline._limits = BuildLimits(layers_size=200 * len(tar) - 1)
    with pytest.raises(ImageTooLarge, match="unpack to more than"):
        await bench.convert(bench.image(*[blob] * 200))
    bench.pipeline._limits = BuildLimits(layers_size=200 * len(tar))
    assert await bench.convert(bench.image(*[blob] * 200)) == 1


@pytest_twisted.ensureDeferred
async def test_a_layer_at_several_places_is_unpacked_for_each(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`MaxRatio` also limits files that symlinks of later layers move to other paths."""
    monkeypatch.setattr(budget, "RATIO_FREE", 3 << 20)
    zeros = compress(tar_of([entry("d/zeros", bytes(1 << 20))]))
    moves = [
        tar_of([entry(f"d{n}"), entry("d", type=tarfile.SYMTYPE, linkname=f"d{n}")])
        for n in range(4)
    ]
    layers = [blob for move in moves for blob in (move, zeros)]
    limits = BuildLimits(ratio=1)
    bench.pipeline._limits = limits
    with pytest.raises(ImageTooLarge, match="unpack to more than") as caught:
        await bench.convert(bench.image(*layers))
    assert "`MaxRatio`" in caught.value.remedy
    assert await bench.convert(bench.image(*layers[:4])) > 0
    assert await bench.convert(bench.image(*[zeros] * 4)) > 0


@pytest.mark.parametrize("foreign", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_layer_that_its_registry_lacks(bench: PipelineBench, foreign: bool) -> None:
    """A layer with addresses elsewhere is called foreign only if the registry does not have it."""
    image = bench.image(LOWER, UPPER)
    layers = (image.layers[0], replace(image.layers[1], has_urls=foreign))
    assert await bench.convert(replace(image, layers=layers)) > 0

    async def lack(_: int, __: BlobSink) -> None:
        raise ImageNotFound("The registry has no such layer.")

    lacking = bench.image(compress(tar_of([entry("other", b"1")])))
    bench.sends[lacking.layers[0].digest] = lack
    lacking = replace(lacking, layers=(replace(lacking.layers[0], has_urls=foreign),))
    kind = ManifestInvalid if foreign else ImageNotFound
    with pytest.raises(kind, match="foreign layer" if foreign else "no such layer"):
        await bench.convert(lacking)


@pytest.mark.parametrize("stage", ["fetch", "examination"])
@pytest_twisted.ensureDeferred
async def test_a_stage_has_a_time_limit(bench: PipelineBench, stage: str) -> None:
    """A slow download fails and names the key; an examination starts when all layers are there."""
    image = bench.image(LOWER)
    bench.sends[image.layers[0].digest] = sending(LOWER, SharedResult())
    bench.pipeline._limits = BuildLimits(stages=StageLimits(**{stage: 0.3}))
    converting = Deferred.fromCoroutine(bench.convert(image))
    if stage == "fetch":
        with pytest.raises(
            TimedOut, match=r"Fetching the image took longer than 0.3 seconds"
        ) as caught:
            await converting
        assert "`StageLimits.fetch`" in caught.value.remedy
    else:  # waiting for the layer counts as download
        await pause(0.6, real)
        assert not converting.called
        converting.cancel()
        with pytest.raises(CancelledError):
            await converting


@pytest_twisted.ensureDeferred
async def test_a_blob_may_be_several_layers(bench: PipelineBench) -> None:
    """The blob is downloaded once."""
    image = bench.image(LOWER, UPPER, LOWER)
    assert await bench.convert(image) >= await bench.convert(bench.image(LOWER, UPPER))
    assert len(bench.cached_files()) == 2


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zero(path: Path) -> None:
    """Fill a file with zeros."""
    path.write_bytes(bytes(path.stat().st_size))


def forget_converted(directory: Path) -> None:
    """Remove the converted files, as if they had not been used for long."""
    for path in directory.rglob("*.squashfs"):
        path.unlink()


def halve(path: Path) -> None:
    """Cut the second half of a file off."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("config", [PROVEN, ImageConfig()], ids=["diff_ids", "none"])
@pytest.mark.parametrize("damage", [flip, zero, halve])
@pytest_twisted.ensureDeferred
async def test_a_layer_damaged_in_the_cache_is_fetched_again(
    bench: PipelineBench, tmp_path: Path, damage: Callable[[Path], None], config: ImageConfig
) -> None:
    """The same pull continues with the right bytes, and its stages never go back."""
    bench.config = config
    image = bench.image(LOWER, UPPER)
    entries = await bench.convert(image)
    forget_converted(tmp_path)
    damage(bench.cache_place / image.layers[0].digest.hex)
    watcher = RecordingWatcher()
    with capturedLogs() as log:
        assert await bench.convert(image, watcher) == entries
    texts = [formatEvent(event) for event in log]
    # A file of another size counts as absent, unless its digest is checked first.
    is_logged = damage is not halve or config is not PROVEN
    assert any("damaged in the cache" in text for text in texts) is is_logged
    assert Digest.of((bench.cache_place / image.layers[0].digest.hex).read_bytes()) == (
        image.layers[0].digest
    )
    for (before, _), (after, _) in pairwise(watcher.stages):
        check_step(before, after)


class DiscardingCache(BlobFiles):
    """A cache whose first blob is found damaged by another process as soon as it is in use."""

    discards = 1

    @asynccontextmanager
    async def get(self, blob: Descriptor, *args: Any) -> AsyncIterator[Path]:
        """Give the file of a blob, which is gone by then."""
        async with super().get(blob, *args) as path:
            if self.discards:
                self.discards -= 1
                flip(path)
                assert await BlobFiles(self._directory, self._threads, real).discard(blob.digest)
            yield path


@pytest_twisted.ensureDeferred
async def test_a_layer_that_another_pull_discards_is_fetched_again(
    bench: PipelineBench, tmp_path: Path
) -> None:
    """A damaged file of a blob in use is removed, even just before it is opened."""
    bench.config = PROVEN
    image = bench.image(LOWER, UPPER)
    entries = await bench.convert(image)
    forget_converted(tmp_path)
    bench.cache = DiscardingCache(tmp_path / "cache", bench.threads, real)
    assert await bench.convert(image) == entries
    assert bench.cache.discards == 0


class LayerRemover(RecordingWatcher):
    """A watcher that removes a file when the conversion begins for the first time."""

    def __init__(self, path: Path) -> None:
        """Remove `path`."""
        super().__init__()
        self._path = path
        self.removals = 0

    def enter_stage(self, state: State, message: str) -> None:
        """Remove the file before `mksquashfs` starts."""
        super().enter_stage(state, message)
        if message == "Converting image" and not self.removals:
            self._path.unlink()
            self.removals += 1


@pytest_twisted.ensureDeferred
async def test_a_layer_that_is_discarded_before_the_conversion_is_fetched_again(
    bench: PipelineBench,
) -> None:
    """A layer that was examined is read again for the data of its files."""
    bench.config = PROVEN
    image = bench.image(LOWER, UPPER)
    remover = LayerRemover(bench.cache_place / image.layers[1].digest.hex)
    assert await bench.convert(image, remover) > 0
    assert remover.removals == 1


@pytest_twisted.ensureDeferred
async def test_a_cache_that_damages_layers_ends_the_pull(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged layers are fetched once more only, and the error does not blame the image."""
    image = bench.image(LOWER)
    path = bench.cache_place / image.layers[0].digest.hex
    tries: list[None] = []

    async def examine_damaged(layers: Sequence[Layer], *_: Any) -> NoReturn:
        tries.append(None)
        await layers[0].wait_for_file()
        flip(path)
        raise LayerInvalid("A layer cannot be read.")

    monkeypatch.setattr(image_build, "examine_layers", examine_damaged)
    with pytest.raises(BlobCorrupt, match="cache damages"):
        await bench.convert(image)
    assert len(tries) == 2


@pytest_twisted.ensureDeferred
async def test_a_disk_that_hangs_does_not_block_the_reactor(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull that waits for the cache's disk can be cancelled."""
    hangs, answers = Event(), Event()

    def hold(*_: Any) -> None:
        hangs.set()
        answers.wait()

    monkeypatch.setattr(blobs, "hold", hold)
    running = Deferred.fromCoroutine(bench.convert(bench.image(LOWER)))
    while not hangs.is_set():
        await pause(0.01, real)
    try:
        running.cancel()
        with pytest.raises(CancelledError):
            await running
    finally:
        answers.set()


@pytest.mark.parametrize("damage", [flip, zero, halve])
@pytest_twisted.ensureDeferred
async def test_a_damaged_converted_file_is_built_again(
    bench: PipelineBench, damage: Callable[[Path], None]
) -> None:
    """A converted file whose digest is wrong is not delivered."""
    image, watcher = bench.image(LOWER, UPPER), RecordingWatcher()
    first = await bench.build(image, RecordingWatcher())
    damage(first.path)
    with capturedLogs() as log:
        second = await bench.build(image, watcher)
    assert second.sha256 == first.sha256
    assert any("is damaged, and is made again" in formatEvent(event) for event in log)
    assert (State.CONVERSION, "Converting image") in watcher.stages


@pytest_twisted.ensureDeferred
async def test_a_pull_can_be_cancelled_while_layers_arrive(bench: PipelineBench) -> None:
    """A cancelled pull ends at once; the next pull resumes its partial layers."""
    image = bench.image(LOWER)
    bench.sends[image.layers[0].digest] = sending(LOWER, SharedResult())
    converting = Deferred.fromCoroutine(bench.convert(image))
    await until(lambda: bench.reader_positions() == [len(LOWER) // 2])
    converting.cancel()
    with pytest.raises(CancelledError):
        await converting
    assert bench.reader_positions() == []
    half = bench.cache_place / f"{image.layers[0].digest.hex}.partial"
    assert half.stat().st_size == len(LOWER) // 2
    bench.sends[image.layers[0].digest] = sending(LOWER)
    assert await bench.convert(image) > 0


@pytest.mark.parametrize("damage", [flip, zero])
@pytest.mark.parametrize("is_same_image", [True, False])
@pytest_twisted.ensureDeferred
async def test_two_pulls_recover_from_one_damaged_layer(
    bench: PipelineBench, tmp_path: Path, damage: Callable[[Path], None], is_same_image: bool
) -> None:
    """The first pull removes the layer; the second pull finds it removed or replaced."""
    bench.config = PROVEN
    image = bench.image(LOWER, UPPER)
    entries = await bench.convert(image)
    forget_converted(tmp_path)
    damage(bench.cache_place / image.layers[0].digest.hex)
    first = Deferred.fromCoroutine(bench.convert(image))
    if not is_same_image:
        image, bench.config = bench.image(LOWER), ImageConfig(diff_ids=PROVEN.diff_ids[:1])
    second = Deferred.fromCoroutine(bench.convert(image))
    numbers = await gatherResults([first, second], consumeErrors=True)
    assert entries in numbers
