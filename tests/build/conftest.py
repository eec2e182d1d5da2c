"""Fixtures of the tests of the conversion."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftergw.plumbing.threads import Threads
from tests.build.site import Site


@pytest.fixture
def site(tmp_path: Path, threads: Threads) -> Site:
    """Return a site with the real `mksquashfs`."""
    return Site(tmp_path, threads)
