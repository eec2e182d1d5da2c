"""Images of a registry, and their parts, for tests."""

from __future__ import annotations

from shiftergw.model.images import Descriptor, Digest, Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.sources.registry.client import RegistryClient
from tests.images import (
    MadeImage,
    make_image,
    tar_of,
)
from tests.sources.registry.network import (
    Sink,
    quiet,
)

AMD64 = Platform()
IMAGE = make_image([tar_of({"a": b"a" * 5000}), tar_of({"b": b"b"})], config={"Cmd": ["/bin/sh"]})
LAYER = make_image([tar_of({"big": bytes(range(256)) * 4000})], compression="plain")


async def resolve(
    client: RegistryClient, reference: str = "team/app", platform: Platform = AMD64
) -> ResolvedImage:
    """Resolve a reference for an anonymous user."""
    image, _ = await client.resolve(ImageReference.parse(reference), platform, None, quiet)
    return image


def layer_of(image: MadeImage) -> tuple[Descriptor, bytes]:
    """Return the descriptor and the bytes of the first layer."""
    layer = image.document["layers"][0]
    digest = Digest.parse(layer["digest"])
    return Descriptor(digest, layer["size"], layer["mediaType"]), image.blobs[digest]


async def fetch(client: RegistryClient, image: MadeImage, sink: Sink, offset: int = 0) -> None:
    """Download the first layer of an image."""
    blob, _ = layer_of(image)
    resolved_image = ResolvedImage(image.digest, image.digest, blob, (blob,), "test", "team/app")
    await client.blob(resolved_image, blob, None, quiet, offset, sink)
