"""Fixtures of the tests of the conversion."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftergw.model.build_options import BuilderName, PackerName
from shiftergw.plumbing.threads import Threads
from tests.build.site import Site


@pytest.fixture(params=["whole", "packs"])
def builder(request: pytest.FixtureRequest) -> BuilderName:
    """Return each builder: what the port promises, both keep."""
    builder: BuilderName = request.param
    return builder


@pytest.fixture
def packer() -> PackerName:
    """Return `mksquashfs`; a test that is marked `with_each_packer` runs with our own, too."""
    return "mksquashfs"


@pytest.fixture
def site(tmp_path: Path, threads: Threads, builder: BuilderName, packer: PackerName) -> Site:
    """Return a site with the real `mksquashfs`, for each builder."""
    return Site(tmp_path, threads, builder=builder, packer=packer)


@pytest.fixture
def whole_site(tmp_path: Path, threads: Threads) -> Site:
    """Return a site that builds images as a whole, with the real `mksquashfs`."""
    return Site(tmp_path, threads)
