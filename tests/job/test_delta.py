"""Deliveries name an image of their system that has the same data, and need none."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent

from shiftergw.delivery.delta import segments_of
from shiftergw.delivery.local import LocalDirectory
from shiftergw.errors import (
    DeliveryFailed,
    GatewayError,
    NoSpace,
    RetryLater,
    TimedOut,
    Unavailable,
)
from shiftergw.job import delta
from shiftergw.job.attempt import Attempt
from shiftergw.job.delta import SEARCH_SECONDS, Deltas, may_use_base, shared_ranges
from shiftergw.model.images import BuiltImage, ContentReport, Digest
from shiftergw.model.packed_data import SHORTEST_RANGE, DataRange, PackedData
from shiftergw.model.records import ImageRecord
from shiftergw.ports import DeltaSource, SharedRange
from shiftergw.states import State
from tests.job.workbench import SISTER, SYSTEM, Bench

BASE_DATA, NEW_DATA = "a" * 64, "b" * 64
UNIT = SHORTEST_RANGE
COMMON_BYTES = 1 << 18
"""Bytes of one range that suffice in these tests."""


@st.composite
def packed_files(draw: st.DrawFn) -> PackedData:
    """Draw ranges of a file, in any order of their packs, without overlaps."""
    parts: list[tuple[str, list[tuple[int, int, int]]]] = []
    position = draw(st.integers(0, 100))
    for name in draw(st.permutations([BASE_DATA, NEW_DATA])):
        offset, ranges = 0, []
        for gap, length, distance in draw(
            st.lists(
                st.tuples(st.integers(0, UNIT), st.integers(1, 3 * UNIT), st.integers(0, 50)),
                max_size=6,
            )
        ):
            offset, position = offset + gap, position + distance
            ranges.append((offset, position, length))
            offset, position = offset + length, position + length
        parts.append((name, ranges))
    return PackedData.collect(parts)


DATA = {name: random.Random(name).randbytes(30 * UNIT) for name in (BASE_DATA, NEW_DATA)}
PACKS = {name: os.urandom(9 * COMMON_BYTES) for name in DATA}
"""The data of the packs of delivered images."""


def content_of(data: PackedData) -> bytearray:
    """Return a file with these ranges; all other bytes are zeros."""
    content = bytearray(80 * UNIT)
    for name, ranges in data.ranges.items():
        for offset, position, length in ranges:
            content[position : position + length] = DATA[name][offset : offset + length]
    return content


@given(packed_files(), packed_files())
def test_shared_ranges_have_equal_bytes(file: PackedData, base: PackedData) -> None:
    """What two files share is equal in both, in order, without overlaps, and is all there is."""
    content, base_content = content_of(file), content_of(base)
    ranges = shared_ranges(file, base)
    for part in ranges:
        copy = base_content[part.source_offset : part.source_offset + part.length]
        assert content[part.offset : part.offset + part.length] == copy
    source = DeltaSource("base", len(base_content), ranges)
    assert sum(segment.length for segment in segments_of(source, len(content))) == len(content)
    overlaps = [
        min(part.offset + part.length, base_part.offset + base_part.length)
        - max(part.offset, base_part.offset)
        for name, parts in file.ranges.items()
        for part in parts
        for base_part in base.ranges.get(name, ())
    ]
    assert sorted(length for length in overlaps if length >= UNIT) == sorted(
        part.length for part in ranges
    )


@dataclass
class Site:
    """A worker whose deliveries are observed; `deltas` are those of all of them."""

    bench: Bench
    deltas: list[DeltaSource | None] = field(default_factory=list)

    async def try_to_pull(self, number: int, *sizes: int, system: str = SYSTEM) -> ImageRecord:
        """Pull an image whose file has this much of the base's data, then of other data."""
        builder, digest = self.bench.builder, Digest.of(b"%d" % number)
        content, parts = os.urandom(96), []
        for name, size in zip((BASE_DATA, NEW_DATA), sizes, strict=False):
            parts.append((name, [(0, len(content), size)]))
            content += PACKS[name][:size]
        builder.data = PackedData.collect(parts)
        builder.content = content + os.urandom(number)
        self.bench.source.manifest = self.bench.source.index = digest
        return await self.bench.pull(f"lib/image:{number}", system=system)

    async def pull(self, number: int, *sizes: int, system: str = SYSTEM) -> ImageRecord:
        """Pull an image as `try_to_pull`, and check that it is READY."""
        record = await self.try_to_pull(number, *sizes, system=system)
        assert record.status is State.READY, record.status_message
        return record

    def path(self, number: int) -> Path:
        """Return the path of a delivered file."""
        return self.bench.images / f"{Digest.of(b'%d' % number).hex}.squashfs"

    def source(self, number: int, *ranges: SharedRange) -> DeltaSource:
        """Return the source that a delivered file is."""
        path = self.path(number)
        return DeltaSource(path.name, path.stat().st_size, ranges)


@pytest.fixture
def site(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a site without images."""
    site = Site(bench)
    install = LocalDirectory.install

    async def observe(*arguments: Any) -> Any:
        site.deltas.append(arguments[-1])
        return await install(*arguments)

    monkeypatch.setattr(LocalDirectory, "install", observe)
    monkeypatch.setattr(delta, "LEAST_BYTES", COMMON_BYTES - delta.RANGE_COST)
    return site


@pytest_twisted.ensureDeferred
async def test_the_image_that_shares_most_is_the_base(site: Site) -> None:
    """Of the images on the system that have the same data, that with most of it is named.

    Of two with equally much of it, that with fewer ranges is.
    """
    await site.pull(1, COMMON_BYTES)
    await site.pull(2, 3 * COMMON_BYTES)
    await site.pull(3, 2 * COMMON_BYTES, COMMON_BYTES)
    await site.pull(4, 4 * COMMON_BYTES, COMMON_BYTES)
    assert site.deltas[:2] == [None, site.source(1, SharedRange(96, 96, COMMON_BYTES))]
    assert site.deltas[2] == site.source(2, SharedRange(96, 96, 2 * COMMON_BYTES))
    assert site.deltas[3] == site.source(2, SharedRange(96, 96, 3 * COMMON_BYTES))


@pytest_twisted.ensureDeferred
async def test_a_system_with_the_same_directory_shares_bases(site: Site) -> None:
    """An image that another system has put into the directory is a base, too."""
    await site.pull(1, COMMON_BYTES, system=SISTER)
    await site.pull(2, COMMON_BYTES, COMMON_BYTES)
    assert site.deltas == [None, site.source(1, SharedRange(96, 96, COMMON_BYTES))]


@pytest_twisted.ensureDeferred
async def test_few_bytes_are_sent(site: Site) -> None:
    """An image with little in common is no base, and a whole-built image has no data at all."""
    await site.pull(1, COMMON_BYTES - UNIT, 9 * COMMON_BYTES)
    await site.pull(2, COMMON_BYTES)
    await site.pull(3)
    assert site.deltas == [None] * 3


@pytest_twisted.ensureDeferred
async def test_the_image_itself_is_no_base(site: Site) -> None:
    """A file that is delivered again is sent whole: what is in its place may be damaged."""
    await site.pull(1, COMMON_BYTES)
    site.path(1).unlink()
    await site.pull(1, COMMON_BYTES)
    assert site.deltas == [None, None]


def remove(path: Path) -> None:
    """Remove a file."""
    path.unlink()


def shorten(path: Path) -> None:
    """Cut a file short, at the same time."""
    status = path.stat()
    os.truncate(path, 1000)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def touch(path: Path) -> None:
    """Give a file another time."""
    os.utime(path, (1, 1))


@pytest.mark.parametrize("damage", [remove, shorten, touch])
@pytest_twisted.ensureDeferred
async def test_a_changed_file_is_no_base(site: Site, damage: Callable[[Path], None]) -> None:
    """A file that is not as it was delivered is passed over, and the next one is the base."""
    await site.pull(1, COMMON_BYTES)
    await site.pull(2, 2 * COMMON_BYTES)
    damage(site.path(2))
    await site.pull(3, 2 * COMMON_BYTES)
    assert site.deltas[-1] == site.source(1, SharedRange(96, 96, COMMON_BYTES))


@pytest_twisted.ensureDeferred
async def test_a_damaged_base_is_tried_once(site: Site) -> None:
    """If the result has the wrong digest, the next delivery uses another base."""
    await site.pull(1, 2 * COMMON_BYTES)
    path = site.path(1)
    status = path.stat()
    path.write_bytes(os.urandom(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    await site.pull(2, COMMON_BYTES)
    await site.pull(3, 2 * COMMON_BYTES)
    shared_range = SharedRange(96, 96, COMMON_BYTES)
    assert site.deltas[1:] == [site.source(1, shared_range), site.source(2, shared_range)]


FAILURES = {
    DeliveryFailed("The disk is broken."): State.READY,
    RetryLater(0, "the system", DeliveryFailed("The disk hangs.")): State.READY,
    TimedOut("The limit was reached."): State.READY,
    NoSpace("The disk is full."): State.FAILURE,
}
"""Errors of deliveries from a base, and the state after the next attempt."""


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest_twisted.ensureDeferred
async def test_a_base_that_fails_a_delivery_is_avoided(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: GatewayError
) -> None:
    """The next attempt sends the whole file; a full disk says nothing of the base."""
    await site.pull(1, COMMON_BYTES)
    install = LocalDirectory.install

    async def fail(*arguments: Any) -> Any:
        if arguments[-1] is not None:
            raise error
        return await install(*arguments)

    monkeypatch.setattr(LocalDirectory, "install", fail)
    assert (await site.try_to_pull(2, COMMON_BYTES)).status in {State.FAILURE, State.PENDING}
    assert (await site.try_to_pull(2, COMMON_BYTES)).status is FAILURES[error]


@pytest_twisted.ensureDeferred
async def test_a_pull_that_waited_for_its_system_uses_no_base(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker, which does not know why the pull waits, sends the whole file, too."""
    await site.pull(1, COMMON_BYTES)
    install = LocalDirectory.install

    async def hang(*arguments: Any) -> Any:
        if arguments[-1] is not None:
            raise RetryLater(0, SYSTEM, DeliveryFailed("The disk hangs."), system=SYSTEM)
        return await install(*arguments)

    monkeypatch.setattr(LocalDirectory, "install", hang)
    monkeypatch.setattr(Deltas, "avoid", lambda *_: None)
    assert (await site.try_to_pull(2, COMMON_BYTES)).status is State.PENDING
    await site.pull(2, COMMON_BYTES)
    assert (await site.try_to_pull(3, COMMON_BYTES, 1)).status is State.PENDING


@pytest.mark.parametrize(
    ("record", "is_allowed"),
    [
        (ImageRecord(attempt=3, waited=60.0, waited_for_pulls=60.0), True),
        (ImageRecord(attempt=2, waited_for_system=1.0), False),
        (ImageRecord(attempt=2, deaths=1), False),
    ],
)
def test_which_pulls_use_bases(record: ImageRecord, is_allowed: bool) -> None:
    """Pulls may, unless an earlier attempt may have failed because of its base."""
    assert may_use_base(record) is is_allowed


@pytest_twisted.ensureDeferred
async def test_an_image_that_is_removed_is_no_base(site: Site) -> None:
    """An image that is about to go is not used, though its file is still there."""
    record = await site.pull(1, COMMON_BYTES)
    await site.bench.store.expire(record.key)
    await site.pull(2, COMMON_BYTES)
    assert site.deltas == [None, None]


@pytest.mark.parametrize("error", [Unavailable("The store is away."), ValueError("a fault")])
@pytest_twisted.ensureDeferred
async def test_a_failed_search_fails_no_pull(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Without an answer of the store the whole file is sent; the log has the reason."""
    await site.pull(1, COMMON_BYTES)

    async def fail(*_: object) -> Any:
        raise error

    monkeypatch.setattr(site.bench.store, "find_bases", fail)
    with capturedLogs() as events:
        await site.pull(2, COMMON_BYTES)
    assert site.deltas == [None, None]
    levels = (LogLevel.warn, LogLevel.critical)
    (text,) = [formatEvent(event) for event in events if event["log_level"] in levels]
    assert "the search" in text


@pytest_twisted.ensureDeferred
async def test_ranges_that_cannot_be_recorded_fail_no_pull(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is READY, and later ones do not know what it shares with them."""

    async def fail(*_: object) -> None:
        raise Unavailable("The store is away.")

    monkeypatch.setattr(site.bench.store, "save_ranges", fail)
    with capturedLogs() as events:
        await site.pull(1, COMMON_BYTES)
    assert any("is not recorded: The store is away." in formatEvent(event) for event in events)
    await site.pull(2, COMMON_BYTES)
    assert site.deltas == [None, None]


@pytest_twisted.ensureDeferred
async def test_a_slow_store_is_not_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search ends after its limit, and so does the recording."""
    clock = Clock()

    async def hang(*_: object) -> Any:
        await Deferred[None]()

    store = site.bench.store
    for method in ("find_bases", "save_ranges"):
        monkeypatch.setattr(store, method, hang)
    deltas = Deltas(store, clock)
    data = PackedData({BASE_DATA: (DataRange(0, 96, COMMON_BYTES),)})
    file = BuiltImage(Path("file"), 1, "c" * 64, ContentReport(), data=data)
    target = site.bench.targets[SYSTEM]
    searching = Deferred.fromCoroutine(deltas.find(target, "b" * 64, file))
    recording = Deferred.fromCoroutine(deltas.record("b" * 64, file))
    clock.advance(SEARCH_SECONDS - 1)
    assert not searching.called
    assert not recording.called
    with capturedLogs() as events:
        clock.advance(1)
    assert await searching is None
    await recording
    assert len(events) == 2


def delivered_bytes(record: ImageRecord) -> tuple[int, int]:
    """Return the bytes that the system has copied, and those that were sent."""
    assert record.report is not None
    return record.report["copied_bytes"], record.report["sent_bytes"]


@pytest_twisted.ensureDeferred
async def test_the_record_reports_what_was_sent(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the bytes that were copied, and those that were sent; both are 0 for a link.

    The user reads when the bytes that were copied are compared.
    """
    messages: list[str] = []
    monkeypatch.setattr(Attempt, "notify", lambda _, message: messages.append(message))
    record = await site.pull(1, COMMON_BYTES)
    assert delivered_bytes(record) == (0, record.size)
    builder, base = site.bench.builder, site.path(1).read_bytes()

    async def write() -> None:
        builder.content = os.urandom(96) + base[96 : 96 + COMMON_BYTES] + os.urandom(999)

    builder.on_build = write
    record = await site.pull(2, COMMON_BYTES)
    copied_bytes, sent_bytes = delivered_bytes(record)
    assert copied_bytes + sent_bytes == record.size == 96 + COMMON_BYTES + 999
    assert COMMON_BYTES - 2 * 4096 <= copied_bytes <= COMMON_BYTES
    assert "Comparing the image on the system" in messages
    mask = os.umask(0o077)
    try:
        assert delivered_bytes(await site.pull(3, COMMON_BYTES)) == (0, 0)
    finally:
        os.umask(mask)
