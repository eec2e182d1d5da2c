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
        {"enroot_files": True},
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


def test_options_of_earlier_versions_keep_their_key() -> None:
    """Converted files of versions without packs are used by this one."""
    assert SquashOptions(builder="whole").key == "8810fa321dbe"


@pytest.mark.parametrize("compressor", ["gzip", "xz", "zstd"])
def test_composed_files_have_a_key_of_their_own(compressor: str) -> None:
    """An image that is composed of packs has other bytes than one that `mksquashfs` has made."""
    packs = SquashOptions(compressor, builder="packs")
    assert packs.uses_packs
    assert packs.key != SquashOptions(compressor, builder="whole").key


@pytest.mark.parametrize(
    "change", [{"compressor": "lz4"}, {"compressor": "lzo"}, {"extra": ("-no-fragments",)}]
)
def test_options_that_packs_cannot_keep(change: dict[str, Any]) -> None:
    """They have the whole builder, and its converted files, whichever builder is configured."""
    options = SquashOptions(**change, builder="packs")
    assert options.needs_whole_builder
    assert not options.uses_packs
    assert options.key == SquashOptions(**change, builder="whole").key


@pytest.mark.parametrize(
    ("compressor", "is_direct"), [("gzip", True), ("zstd", True), ("xz", False)]
)
def test_images_of_direct_packs_have_a_key_of_their_own(compressor: str, is_direct: bool) -> None:
    """They have other bytes; where `mksquashfs` makes the packs in any case, they are the same."""
    direct = SquashOptions(compressor, builder="packs", packer="direct")
    assert direct.packs_directly == is_direct
    assert (direct.key != SquashOptions(compressor, builder="packs").key) == is_direct
    keys = {
        SquashOptions(compressor, builder="whole", packer=packer).key
        for packer in ("direct", "mksquashfs")
    }
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("memory", "size"), [("900K", 900 << 10), ("512M", 512 << 20), ("2G", 2 << 30)]
)
def test_memory_in_bytes(memory: str, size: int) -> None:
    """The memory of `mksquashfs` is a number and K, M or G."""
    assert SquashOptions(memory=memory).memory_bytes == size


def test_default_limits() -> None:
    """By default an image may have 200 GB and five million entries."""
    assert BuildLimits() == BuildLimits(200_000_000_000, 5_000_000)
