"""A worker that is killed at any point of a pull leaves nothing wrong, and nothing is done twice.

Each point is an operation on files, in a stage of the pull, so it does not depend on the machine.
With `SHIFTERGW_LONG=1` there are 20 random points in each stage, for each kind of delivery; the
name of a test has its point.
"""

from __future__ import annotations

import math
import random
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.delivery.local import LocalDirectory
from shiftergw.model.build_options import PackerName
from shiftergw.plumbing.threads import Threads
from tests.end_to_end.doomed_worker import STAGES
from tests.end_to_end.killed_site import ORPHAN_SECONDS, KilledSite
from tests.images import entry, oci_layout, tar_of
from tests.matrices import LONG
from tests.parts import small_disk
from tests.running_service import until
from tests.sshd import Sshd

BASE, IMAGE, SIBLING = "team/base:1", "team/app:1", "team/sibling:1"
NOISE = random.Random(1)
LAYERS = [
    tar_of([entry(f"{number}/{size}", NOISE.randbytes(size)) for size in (10, 5000, 900_000)])
    for number in range(4)
]
CHANGES = tar_of([entry("0/.wh.10", b""), entry("1/5000", b"new"), entry("2/10", b"")])

KINDS = ("link", "copy", "remote", "direct") if LONG else ("copy",)
"""Kinds of deliveries, and packs by the packer of our own."""

POINTS = [
    (stage, NOISE.random())
    for stage in (STAGES if LONG else ("pack", "deliver"))
    for _ in range(20 if LONG else 1)
]

SHARES = [NOISE.random() for _ in range(20 if LONG else 1)]
"""Points in the packing of layers that another worker packs at the same time."""


@dataclass(frozen=True)
class Reference:
    """A site on which nothing was killed: before the pull of `IMAGE`, and after it.

    `counts` are the operations of each stage of this pull.
    """

    before: KilledSite
    after: KilledSite
    counts: Counter[str]

    def site(self, name: str) -> KilledSite:
        """Return another site as it was before the pull."""
        images = self.before.images.parent / name
        if self.before.images.is_relative_to(self.before.root):
            images = self.before.root.parent / name / "images"
        site = replace(self.before, root=self.before.root.parent / name, images=images)
        self.before.copy_to(site)
        return site


@pytest.fixture(scope="module", params=KINDS)
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reference]:
    """Pull an image, and then another one on the same base, for each kind of delivery."""
    where = tmp_path_factory.mktemp(request.param)
    oci_layout(where / "layouts" / "team" / "base", LAYERS[:2], tag="1")
    oci_layout(where / "layouts" / "team" / "app", [*LAYERS, CHANGES], tag="1")
    oci_layout(where / "layouts" / "team" / "sibling", [*LAYERS[1:], LAYERS[0]], tag="1")
    with ExitStack() as stack:
        images, sshd = where / "before" / "images", None
        if request.param == "copy":
            stack.enter_context(small_disk(where / "disk", "size=500m"))
            images = where / "disk" / "before"
        if request.param == "remote":
            sshd = stack.enter_context(Sshd())
        packer: PackerName = "direct" if request.param == "direct" else "mksquashfs"
        before = KilledSite(where / "before", where / "layouts", images, sshd, packer)
        before.prepare()
        pytest_twisted.blockon(Deferred.fromCoroutine(pull(before, BASE)))
        start = Reference(before, before, Counter())
        after = start.site("after")
        counts = pytest_twisted.blockon(Deferred.fromCoroutine(pull(after, IMAGE)))
        assert counts.keys() >= set(STAGES)
        assert len(after.packs) == len(LAYERS) + 1
        pytest_twisted.blockon(Deferred.fromCoroutine(pull(after, SIBLING)))
        yield Reference(before, after, counts)


async def pull(site: KilledSite, name: str) -> Counter[str]:
    """Pull an image; return the operations of each stage."""
    code, counts = site.work(await site.claim(name))
    assert code == 0, (site.root / "log").read_text()
    assert {document["status"] for document in site.documents().values()} == {"READY"}
    return counts


@pytest.mark.parametrize(("stage", "share"), POINTS)
@pytest_twisted.ensureDeferred
async def test_worker_that_is_killed(
    reference: Reference, threads: Threads, stage: str, share: float
) -> None:
    """What is visible is whole, no program goes on, and the next worker makes only the rest."""
    site = reference.site(f"{stage}-{share:.6f}")
    key = await site.claim(IMAGE)
    number = 1 + int(share * reference.counts[stage])
    code, _ = site.work(key, f"{stage}:{number}")
    assert code == -signal.SIGKILL
    until(lambda: not site.running_programs(), ORPHAN_SECONDS, "the end of all programs")
    site.check(reference.after)
    packs = site.whole_packs()
    if not site.is_ready(key):
        await site.requeue(key)
        code, _ = site.work(key)
        assert code == 0
        site.check(reference.after)
    assert site.is_ready(key), (site.root / "log").read_text()
    assert site.whole_packs().items() >= packs.items()  # none is made again
    assert len(site.packs) == len(LAYERS) + 1
    assert site.partial_data() == []
    await LocalDirectory(site.images, threads).sweep(math.inf)
    site.sweep()
    assert site.temporaries() == []
    site.remove()


@pytest.mark.parametrize("share", SHARES)
@pytest_twisted.ensureDeferred
async def test_worker_that_packs_the_layers_of_one_that_is_killed(
    reference: Reference, share: float
) -> None:
    """Locks and early parts of a dead worker hold up no other worker, and mislead none."""
    site = reference.site(f"both-{share:.6f}")
    keys = [await site.claim(name) for name in (IMAGE, SIBLING)]
    number = 1 + int(share * reference.counts["pack"])
    with ThreadPoolExecutor(2) as workers:
        victim = workers.submit(site.work, keys[0], f"pack:{number}")
        survivor = workers.submit(site.work, keys[1])
        assert victim.result()[0] == -signal.SIGKILL
        assert survivor.result()[0] == 0
    site.check(reference.after)
    assert site.is_ready(keys[1]), (site.root / "log").read_text()
    await site.requeue(keys[0])
    assert site.work(keys[0])[0] == 0
    site.check(reference.after)
    assert site.is_ready(keys[0])
    assert site.delivered_files.keys() == reference.after.delivered_files.keys()
    assert site.partial_data() == []
    site.remove()
