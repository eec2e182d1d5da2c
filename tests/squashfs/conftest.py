"""A small file whose metadata is not compressed."""

from __future__ import annotations

import pytest

from shiftergw.squashfs import writer
from tests.squashfs.damage import small_image, store
from tests.squashfs.parts import GZIP


@pytest.fixture
def stored_image(monkeypatch: pytest.MonkeyPatch) -> bytearray:
    """Return the file of `small_tree` whose metadata is not compressed."""
    monkeypatch.setattr(writer, "metadata_compressor", store)
    return bytearray(small_image(GZIP))
