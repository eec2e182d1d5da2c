"""An image at a location and at its mirrors, and requests for it."""

from __future__ import annotations

from tests.images import (
    MadeImage,
    make_image,
    tar_of,
)
from tests.registries import FakeRegistry, Misbehave

NEW = make_image([tar_of({"big": bytes(range(256)) * 4000})], compression="plain")


OLD = make_image([tar_of({"old": b"old"})])


def asks(registry: FakeRegistry) -> list[str]:
    """Return the methods and last path segments of the requests to a registry."""
    return [f"{ask.method} {'/'.join(ask.path.split('/')[-2:])}" for ask in registry.requests]


def fails(status: int, part: str = "") -> Misbehave:
    """Return the behavior of a registry that gives this answer if a path contains `part`."""
    return lambda ask: ask.answer(status, Retry_After="600") if part in ask.path else None


def layer_path(image: MadeImage) -> str:
    """Return the end of the path of the first layer."""
    return f"blobs/{image.document['layers'][0]['digest']}"
