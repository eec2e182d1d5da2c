"""The members of the answer about one image, for the description of the interface."""

from __future__ import annotations

from pydantic import Field

from shiftergw.web.answer_models import OPTIONAL, AnswerModel, Count, ListedImage, Time


class ImageOrigin(AnswerModel):
    """Where an image comes from."""

    location: str
    """The name of the registry in the configuration, or what stands for a user's file."""
    repository: str
    digest: str
    """The digest of what the name meant there: an index, or the manifest."""


class ImageLayer(AnswerModel):
    """A layer of an image."""

    digest: str
    size: Count
    """Bytes of the compressed layer."""


class ImageDetails(ListedImage):
    """All that is known of an image. `systems` is always there."""

    cmd: tuple[str, ...] = Field(OPTIONAL, alias="CMD")
    """The command."""
    architecture: str = OPTIONAL
    os: str = OPTIONAL
    sha256: str = OPTIONAL
    """The hexadecimal digest of the squashfs file."""
    origin: ImageOrigin = OPTIONAL
    layers: tuple[ImageLayer, ...] = OPTIONAL
    """The first 200 layers."""
    layer_count: Count = OPTIONAL
    """The number of all layers."""
    layer_bytes: Count = OPTIONAL
    """Bytes of all distinct layers."""
    report: dict[str, Count] = OPTIONAL
    """The entries of the image, and how many were dropped or changed."""
    omitted_settings: tuple[str, ...] = OPTIONAL
    """Settings that the `.meta` file cannot hold."""
    seconds: dict[str, Time] = OPTIONAL
    """How long each stage of the last delivery took."""
    copied_bytes: Count = OPTIONAL
    """Bytes that the system copied from another image."""
    sent_bytes: Count = OPTIONAL
    """Bytes that were sent to the system."""
    systems: tuple[str, ...]
    """The systems that have the image; of a private image those that share its files."""
