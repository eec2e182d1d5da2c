"""A registry and a site, for tests of explanations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shiftergw.model.images import Digest
from tests.app.explain_site import LAYER, Site
from tests.images import oci_layout
from tests.registries import DockerRegistry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DockerRegistry, Digest]]:
    """Run a private registry that has `team/app:1`."""
    root = tmp_path_factory.mktemp("registry")
    digest = oci_layout(root / "image", [LAYER])
    with DockerRegistry(root / "data", private=True) as server:
        server.push(root / "image", "team/app:1")
        yield server, digest


@pytest.fixture
def site(tmp_path: Path, registry: tuple[DockerRegistry, Digest]) -> Site:
    """Return a site for one test."""
    return Site(tmp_path, *registry)
