"""Registries with certificates, and requests to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from twisted.internet.ssl import CertificateOptions

from shiftergw.model.images import Descriptor, Digest, ResolvedImage
from shiftergw.model.requests import RegistryLogin
from shiftergw.sources.registry.client import RegistryClient
from tests.images import make_image, tar_of
from tests.registries import FakeRegistry
from tests.sources.registry.network import Sink, quiet

IMAGE = make_image([tar_of({"a": b"a"})])


LAYER = Digest.parse(IMAGE.document["layers"][0]["digest"])


LOGIN = RegistryLogin("alice", "s3cret")


async def fetch(client: RegistryClient, login: RegistryLogin | None = None) -> bytes:
    """Return the image's layer; with a login the image is private."""
    blob = Descriptor(LAYER, len(IMAGE.blobs[LAYER]))
    private = login is not None
    image = ResolvedImage(IMAGE.digest, IMAGE.digest, blob, (blob,), "test", "team/app", private)
    sink = Sink()
    await client.blob(image, blob, login, quiet, 0, sink)
    return bytes(sink.content)


@asynccontextmanager
async def listening(
    *registries: FakeRegistry, certificates: Sequence[CertificateOptions | None] = ()
) -> AsyncIterator[list[int]]:
    """Run registries, each with its certificate; yield their ports."""
    for number, registry in enumerate(registries):
        await registry.start(certificates[number] if certificates else None)
    try:
        yield [int(registry.host.rpartition(":")[2]) for registry in registries]
    finally:
        for registry in registries:
            await registry.stop()
