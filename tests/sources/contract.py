"""The promises of every `ImageSource`.

A test class inherits `ImageSourceContract` and defines the fixture `sample`: a source with an image
for amd64 of the layers `LAYERS`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from io import BytesIO
from threading import Event

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import ImageNotFound, NoMatchingPlatform
from shiftergw.model.images import Descriptor, Digest, Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.oci.compression import decompress
from shiftergw.plumbing.timing import pause
from shiftergw.ports import ImageSource
from tests.images import entry, tar_of
from tests.sources.registry.network import REACTOR, Sink

NOISE = os.urandom(3_000_000)
LAYERS = [
    tar_of([entry("etc"), entry("etc/motd", b"hello\n")]),
    tar_of([entry("data"), entry("data/noise", NOISE)]),
]
"""The second layer has several pieces, however it is compressed."""

ENV = "GREETING=hello world"


@dataclass(frozen=True)
class Sample:
    """A source under test, and the reference of its image.

    `diff_ids` are those of `LAYERS` unless the source makes layers of its own.
    """

    source: ImageSource
    reference: ImageReference
    diff_ids: tuple[Digest, ...] = tuple(map(Digest.of, LAYERS))


def quiet(_: str) -> None:
    """Ignore a message."""


class HaltingSink(Sink):
    """A sink that pauses its producer at the first bytes."""

    def write(self, data: bytes) -> None:
        """Append the bytes, and pause."""
        super().write(data)
        self.producer.pauseProducing()


class BrokenSink(Sink):
    """A sink whose disk is full."""

    def write(self, data: bytes) -> None:
        """Fail."""
        raise OSError("the disk is full")


async def _resolve(sample: Sample) -> ResolvedImage:
    image, _ = await sample.source.resolve(sample.reference, Platform(), None, quiet)
    return image


def _largest(image: ResolvedImage) -> Descriptor:
    return max(image.layers, key=lambda layer: layer.size)


class ImageSourceContract:
    """The tests of the promises in the docstrings of the port."""

    @pytest_twisted.ensureDeferred
    async def test_an_image_is_resolved(self, sample: Sample) -> None:
        """A reference resolves to an image with an id, layers, and a configuration."""
        image, config = await sample.source.resolve(sample.reference, Platform(), None, quiet)
        assert len(image.id) == 64
        assert len(image.layers) == len(sample.diff_ids)
        assert image.layers
        assert config.diff_ids == sample.diff_ids
        assert not image.private
        assert (await _resolve(sample)).digest == image.digest

    @pytest_twisted.ensureDeferred
    async def test_the_configuration(self, sample: Sample) -> None:
        """The environment of the image, its architecture and its date are known."""
        _, config = await sample.source.resolve(sample.reference, Platform(), None, quiet)
        assert ENV in config.env
        assert (config.architecture, config.os) == ("amd64", "linux")
        assert config.created > 0

    @pytest_twisted.ensureDeferred
    async def test_head(self, sample: Sample) -> None:
        """The digest of a reference is that from which the image is resolved."""
        digest = await sample.source.head(sample.reference, None, quiet)
        assert digest == (await _resolve(sample)).source_digest

    @pytest_twisted.ensureDeferred
    async def test_a_digest(self, sample: Sample) -> None:
        """The digest in a reference resolves to the same image; another digest is not found."""
        image = await _resolve(sample)
        by_digest = replace(sample.reference, digest=image.source_digest)
        assert (await _resolve(replace(sample, reference=by_digest))).digest == image.digest
        absent = replace(sample.reference, digest=Digest("sha256", "0" * 64))
        with pytest.raises(ImageNotFound):
            await _resolve(replace(sample, reference=absent))

    @pytest_twisted.ensureDeferred
    async def test_another_platform(self, sample: Sample) -> None:
        """An image for another platform is refused; the error names that platform."""
        with pytest.raises(NoMatchingPlatform, match="amd64"):
            await sample.source.resolve(sample.reference, Platform("arm64"), None, quiet)

    @pytest_twisted.ensureDeferred
    async def test_proof(self, sample: Sample) -> None:
        """The proof succeeds if all layers can be read, and fails if a layer is missing."""
        image = await _resolve(sample)
        await sample.source.prove(image, None, quiet)
        absent = Descriptor(Digest("sha256", "0" * 64), 1)
        with pytest.raises(ImageNotFound):
            await sample.source.prove(replace(image, layers=(absent,)), None, quiet)

    @pytest_twisted.ensureDeferred
    async def test_blobs(self, sample: Sample) -> None:
        """Each layer has its digest and size, and unpacks to the bytes of its `diff_id`."""
        image = await _resolve(sample)
        for layer, diff_id in zip(image.layers, sample.diff_ids, strict=True):
            sink = Sink()
            await sample.source.blob(image, layer, None, quiet, 0, sink)
            content = bytes(sink.content)
            assert (Digest.of(content), len(content)) == (layer.digest, layer.size)
            assert sink.offsets[-1:] in ([0], [])
            assert sink.producer is None
            assert Digest.of(_unpack(content)) == diff_id

    @pytest_twisted.ensureDeferred
    async def test_the_rest_of_a_blob(self, sample: Sample) -> None:
        """A blob continues from an offset, or the source says that it starts again."""
        image = await _resolve(sample)
        layer = _largest(image)
        whole = Sink()
        await sample.source.blob(image, layer, None, quiet, 0, whole)
        for offset in (1, layer.size // 2, layer.size - 1):
            sink = Sink(bytes(whole.content[:offset]))
            await sample.source.blob(image, layer, None, quiet, offset, sink)
            assert sink.offsets in ([offset], [0])
            assert sink.content == whole.content

    @pytest_twisted.ensureDeferred
    async def test_an_absent_blob(self, sample: Sample) -> None:
        """A missing blob is an error, and the sink gets no bytes."""
        image = await _resolve(sample)
        absent, sink = Descriptor(Digest("sha256", "0" * 64), 1), Sink()
        with pytest.raises(ImageNotFound):
            await sample.source.blob(image, absent, None, quiet, 0, sink)
        assert (bytes(sink.content), sink.offsets) == (b"", [])

    @pytest_twisted.ensureDeferred
    async def test_back_pressure(self, sample: Sample) -> None:
        """A sink that pauses its producer gets the rest only after it has resumed it."""
        image = await _resolve(sample)
        layer, sink = _largest(image), HaltingSink()
        arriving = Deferred.fromCoroutine(sample.source.blob(image, layer, None, quiet, 0, sink))
        while not sink.content:
            await pause(0.01, REACTOR)
        await pause(0.1, REACTOR)
        assert 0 < len(sink.content) < layer.size
        while not arriving.called:
            if sink.producer is not None:
                sink.producer.resumeProducing()
            await pause(0, REACTOR)
        await arriving
        assert Digest.of(bytes(sink.content)) == layer.digest

    @pytest_twisted.ensureDeferred
    async def test_cancellation(self, sample: Sample) -> None:
        """A canceled stream ends, and releases its sink."""
        image = await _resolve(sample)
        sink = HaltingSink()
        arriving = Deferred.fromCoroutine(
            sample.source.blob(image, _largest(image), None, quiet, 0, sink)
        )
        while not sink.content:
            await pause(0.01, REACTOR)
        arriving.cancel()
        with pytest.raises(CancelledError):
            await arriving
        assert sink.producer is None

    @pytest_twisted.ensureDeferred
    async def test_a_sink_that_fails(self, sample: Sample) -> None:
        """The error of a sink ends the stream."""
        image, sink = await _resolve(sample), BrokenSink()
        with pytest.raises(OSError, match="disk is full"):
            await sample.source.blob(image, _largest(image), None, quiet, 0, sink)
        assert sink.producer is None


def _unpack(content: bytes) -> bytes:
    """Return the uncompressed bytes of a layer."""
    return b"".join(decompress(lambda _: BytesIO(content), Event()))
