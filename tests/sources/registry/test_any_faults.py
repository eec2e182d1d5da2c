"""Any sequence of faults of an object store or of mirrors ends with the right bytes or an error.

A few sequences are tried; with `SHIFTERGW_LONG=1` some hundred.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import pytest_twisted

from shiftergw.cache.blob_cache import BlobFiles
from shiftergw.errors import PullError
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import within
from shiftergw.ports import BlobSink
from shiftergw.sources.registry.retry import Patience
from tests.certificates import Authority
from tests.images import make_image
from tests.patience import patient
from tests.registries import Ask, FakeRegistry
from tests.sources.registry import blob_servers
from tests.sources.registry.blob_servers import (
    BLOB,
    CONTENT,
    BlobServers,
    Step,
    broken_after,
    in_chunks,
    start_of,
    status,
    without_length,
)
from tests.sources.registry.mirror_site import site
from tests.sources.registry.network import REACTOR

SEEDS = range(300) if os.environ.get("SHIFTERGW_LONG") == "1" else range(8)
IMAGE = make_image([CONTENT], compression="plain")
SIZE = BLOB.size
SIZES = (1, 100, 65_536, 100_000, SIZE - 1)
STATUSES = (200, 204, 206, 301, 403, 404, 416, 418, 429, 500, 503)


def answer(ask: Ask, content: bytes, start: int) -> object:
    """Send these bytes as those from `start` on."""
    end = f"{start + len(content) - 1}/{SIZE}"
    fields = {"Content_Range": f"bytes {start}-{end}"} if start else {}
    return ask.answer(206 if start else 200, content, **fields)


def damage(position: int, *, is_whole: bool) -> Step:
    """Send a wrong byte at a position of the part, or of the whole blob whatever was requested."""

    def send(ask: Ask) -> object:
        start = 0 if is_whole else start_of(ask)
        content = bytearray(CONTENT[start:])
        content[min(position, len(content) - 1)] ^= 1
        return answer(ask, bytes(content), start)

    return send


def too_long(ask: Ask) -> object:
    """Send a byte behind the end of the blob."""
    return answer(ask, CONTENT[start_of(ask) :] + b"z", start_of(ask))


def short_part(size: int) -> Step:
    """Send less than was requested, and say so."""
    return lambda ask: ask.answer(
        206,
        CONTENT[start_of(ask) : start_of(ask) + size],
        Content_Range=f"bytes {start_of(ask)}-{min(SIZE, start_of(ask) + size) - 1}/{SIZE}",
    )


def any_fault(random: Random) -> Step:
    """Return a fault of a store."""
    size = random.choice(SIZES)
    faults: list[Callable[[], Step]] = [
        lambda: broken_after(size),
        lambda: broken_after(size, whole=True),
        lambda: damage(size, is_whole=False),
        lambda: damage(size, is_whole=True),
        lambda: too_long,
        lambda: short_part(size),
        lambda: status(random.choice(STATUSES), b"x" * random.choice((0, 5))),
        lambda: status(200, CONTENT[size:]),
        lambda: status(200, b"<html>sign in", Content_Type="text/html"),
        lambda: status(206, CONTENT[:9], Content_Range=f"bytes 0-8/{SIZE}"),
        lambda: without_length(size),
        lambda: in_chunks(max(size, 10_000)),
    ]
    return random.choice(faults)()


def leave_bytes(path: Path, random: Random) -> None:
    """Leave the bytes of an earlier download: none, right ones, wrong ones, or too many."""
    content = bytearray(CONTENT[: random.choice((0, 0, *SIZES, SIZE))])
    if content and random.random() < 0.5:
        content[random.randrange(len(content))] ^= 1
    if random.random() < 0.1:
        content += bytes(SIZE + 5)
    path.parent.mkdir(parents=True)
    if content:
        path.write_bytes(content)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority that the client trusts."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.mark.parametrize("seed", SEEDS)
@pytest_twisted.ensureDeferred
async def test_any_sequence(
    seed: int, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pull of a faulty store ends, and the first one behind the faults has the blob."""
    monkeypatch.setattr(blob_servers, "PATIENCE", Patience(tries=3, first=0.002, quick=1.0))
    random = Random(seed)
    steps = [any_fault(random) for _ in range(random.randint(1, 9))]
    partial = tmp_path / "sha256" / f"{BLOB.digest.hex}.partial"
    leave_bytes(partial, random)
    servers = BlobServers((), steps)
    async with servers.running(authority, tmp_path):
        for _ in range(len(steps)):
            try:
                content = await within(patient(30), REACTOR, servers.fetch(), TimeoutError)
            except PullError:
                assert not partial.exists() or partial.stat().st_size <= SIZE
            else:
                assert content == CONTENT
                return
        assert await servers.fetch() == CONTENT


@pytest.mark.parametrize("seed", SEEDS)
@pytest_twisted.ensureDeferred
async def test_any_sequence_of_mirrors(seed: int, tmp_path: Path, threads: Threads) -> None:
    """Two faulty mirrors fail no pull: the location itself sends what they could not."""
    random = Random(seed)

    def faulty_mirror() -> FakeRegistry:
        steps = [any_fault(random) for _ in range(random.randint(0, 3))]

        def misbehave(ask: Ask) -> object:
            is_layer = ask.path.endswith(str(BLOB.digest))
            return steps.pop(0)(ask) if is_layer and steps else None

        return FakeRegistry(IMAGE, misbehave=misbehave)

    leave_bytes(tmp_path / "sha256" / f"{BLOB.digest.hex}.partial", random)
    cache = BlobFiles(tmp_path, threads, REACTOR)
    async with site(FakeRegistry(IMAGE), faulty_mirror(), faulty_mirror()) as place:
        image = await place.resolve()

        async def download(offset: int, sink: BlobSink) -> None:
            await place.fetch(image, sink, offset=offset)

        async with cache.get(BLOB, download, lambda _: None, lambda _: None) as path:
            assert await threads.run(path.read_bytes) == CONTENT
