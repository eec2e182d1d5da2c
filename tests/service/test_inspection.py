"""What users see of one image, on a real store."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytest_twisted

from shiftergw.errors import BadRequest, NotFound
from shiftergw.model.records import Ready
from shiftergw.model.requests import Session
from shiftergw.service.inspection import InspectedImage
from shiftergw.store.sqlite.store import SqliteStore
from tests.service.gateway_bench import ADMIN, ALICE, BOB, ID, PRIVATE, READY, Bench

SYSTEMS = ("mycluster", "shared", "apart")


def several_systems(store: SqliteStore) -> Bench:
    """Return a gateway of three systems, two of which share their image directory."""
    platforms = {
        name: {
            "mungeSocketPath": "/var/run/munge.s",
            "accesstype": "local",
            "local": {"imageDir": f"/images/{'apart' if name == 'apart' else 'both'}"},
            "admins": ["root"],
        }
        for name in SYSTEMS
    }
    return Bench(store, Platforms=platforms)


async def inspect(bench: Bench, session: Session, image: str = "app:1") -> InspectedImage:
    """Inspect an image."""
    return await bench.gateway.inspections.inspect(session, "docker", image)


async def pull_everywhere(bench: Bench, outcome: Ready) -> None:
    """Let alice pull an image on each system."""
    for system in SYSTEMS:
        await bench.pull(replace(ALICE, system=system))
        await bench.end(outcome)


@pytest_twisted.ensureDeferred
async def test_a_public_image(store: SqliteStore) -> None:
    """Everybody sees a public image and all systems that have it, and only some who pulled it."""
    bench = several_systems(store)
    await pull_everywhere(bench, replace(READY, changes={**READY.changes, "requested_by": 2001}))
    for session, owner in ((ALICE, 2001), (BOB, None), (ADMIN, 2001)):
        image = await inspect(bench, session)
        assert (image.record.id, image.record.requested_by) == (ID, owner)
        assert image.systems == ["apart", "mycluster", "shared"]


@pytest_twisted.ensureDeferred
async def test_a_private_image(store: SqliteStore) -> None:
    """Readers see the systems with the same files; for everybody else the image does not exist."""
    bench = several_systems(store)
    await pull_everywhere(bench, PRIVATE)
    assert (await inspect(bench, ALICE)).systems == ["mycluster", "shared"]
    with pytest.raises(NotFound, match="There is no image app:1 on mycluster"):
        await inspect(bench, BOB)


@pytest_twisted.ensureDeferred
async def test_an_id(bench: Bench) -> None:
    """The first digits of an id name an image, too."""
    await bench.pull(ALICE)
    await bench.end(READY)
    image = await bench.gateway.inspections.inspect(BOB, "id", ID[:12])
    assert image.record.tags == ("app:1",)


@pytest_twisted.ensureDeferred
async def test_no_image(bench: Bench) -> None:
    """An image that is not READY, a name of none, and an unknown type are refused."""
    await bench.pull(ALICE)
    for name in ("app:1", "other:1", "UPPER CASE"):
        with pytest.raises(NotFound):
            await inspect(bench, ALICE, name)
    with pytest.raises(BadRequest):
        await bench.gateway.inspections.inspect(ALICE, "local", "app:1")


@pytest_twisted.ensureDeferred
async def test_a_look_without_a_trace(bench: Bench) -> None:
    """The expiration of the image stays, since nobody has used it."""
    await bench.pull(ALICE)
    await bench.end(replace(READY, changes={**READY.changes, "expiration": 5.0}))
    assert (await inspect(bench, BOB)).record.expiration == 5.0
    assert (await inspect(bench, BOB)).record.expiration == 5.0
