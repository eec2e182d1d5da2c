"""The sizes and budgets of this machine's caches, as the page of operators shows them."""

from __future__ import annotations

from pathlib import Path

from shiftergw.app.cache_sizes import measure_caches
from shiftergw.plumbing.files import total_space
from tests.configurations import load_config

LAYER = "ab" * 32
KEY = "0" * 12


def test_sizes(tmp_path: Path) -> None:
    """Public and private files count, and each cache may have what its disk has left."""
    names = {"CacheDirectory": f"{tmp_path}/cache", "ExpandDirectory": f"{tmp_path}/expand"}
    config = load_config(names).config
    for cache in measure_caches(config):  # the directories need not exist
        assert (cache.files, cache.size) == (0, 0)
    for name, size in (
        (f"cache/sha256/{LAYER}", 1000),
        (f"cache/private/{LAYER}/sha256/{LAYER}", 2000),
        (f"cache/packs/{LAYER}-{KEY}.pack", 400),
        (f"cache/packs/{LAYER}-{KEY}.index", 30),
        (f"expand/{LAYER}-{KEY}.squashfs", 5),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    layers, packs, converted_files = measure_caches(config)
    assert (layers.name, layers.files, layers.size) == ("Layers", 2, 3000)
    assert (packs.files, packs.size) == (1, 430)
    assert (converted_files.files, converted_files.size) == (1, 5)
    assert layers.budget is not None
    assert 3000 <= layers.budget < total_space(tmp_path)
    assert layers.keep_seconds == 30 * 86400
