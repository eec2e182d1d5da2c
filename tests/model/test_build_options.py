"""Tests of the options and limits of a build."""

from __future__ import annotations

from typing import Any

import pytest

from shiftergw.model.build_options import BuildLimits, SquashOptions


@pytest.mark.parametrize(
    "change",
    [
        {"compressor": "zstd"},
        {"level": 9},
        {"level": None},
        {"block_size": "1M"},
        {"keep_setuid": True},
        {"extra": ("-no-fragments",)},
        {"extra": ("-no-fragments", "-b")},
    ],
)
def test_options_key_differs(change: dict[str, Any]) -> None:
    """Options that change the bytes of the file change the key."""
    assert SquashOptions(**change).key != SquashOptions().key


@pytest.mark.parametrize("change", [{"memory": "2G"}, {"processors": 3}])
def test_options_key_ignores_resources(change: dict[str, Any]) -> None:
    """Memory and processors do not change the bytes of the file, nor the key."""
    assert SquashOptions(**change).key == SquashOptions().key


def test_options_key_fits_into_a_file_name() -> None:
    """The key is short, hexadecimal, and the same in every process."""
    assert SquashOptions().key == SquashOptions().key
    assert len(SquashOptions().key) == 12
    assert set(SquashOptions().key) <= set("0123456789abcdef")


def test_default_limits() -> None:
    """By default an image may have 200 GB and five million entries."""
    assert BuildLimits() == BuildLimits(200_000_000_000, 5_000_000)
