"""Users, and a private image, for tests of pulls."""

from __future__ import annotations

from shiftergw.model.images import Digest
from shiftergw.model.records import ImageRecord
from tests.job.workbench import Bench

ALICE, BOB, CAROL, ROOT = 2001, 2002, 2003, 0
NEW_MANIFEST = Digest.of(b"another manifest")


async def private_image(bench: Bench, **members: object) -> ImageRecord:
    """Let Alice pull her private image."""
    bench.source.private = True
    return await bench.pull(login="alice:secret", **members)
