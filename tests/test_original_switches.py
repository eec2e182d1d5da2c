"""The original gateway's ENABLE_LABELS and DISABLE_ACL_METADATA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.model import Ready
from shiftergw.states import State
from tests.configurations import loaded
from tests.job.workbench import CONFIG, Bench, running_bench
from tests.web.fakes import READY, FakeGateway, Wire, site_of

ALICE = 2001

LABELS = {"org.opencontainers.image.title": "app", "": "x"}

LABELLED = replace(CONFIG, labels=LABELS)


@pytest.mark.parametrize("name", ["ENABLE_LABELS", "DISABLE_ACL_METADATA"])
@pytest.mark.parametrize("value", ["1", "0", ""])
def test_the_variable_only_has_to_be_there(name: str, value: str) -> None:
    """As with the original, any value turns it on; the configuration's own key goes before it."""
    field = name.lower()
    assert getattr(loaded({}, **{name: value}).config, field) is True
    assert getattr(loaded({name: False}, **{name: value}).config, field) is False
    assert getattr(loaded({name: True}).config, field) is True
    assert getattr(loaded().config, field) is False


def test_what_it_means_is_a_warning() -> None:
    """A site that takes the readers out of the metadata is told what that opens, at each start."""
    (warning,) = loaded(DISABLE_ACL_METADATA="1").warnings
    assert "everybody who knows its id" in warning
    assert loaded(ENABLE_LABELS="1").warnings == ()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("wanted", [False, True])
async def test_labels_are_stored_where_they_are_wanted(tmp_path: Path, wanted: bool) -> None:
    """And nowhere else: they may be long, and few clients read them."""
    async with running_bench(tmp_path, ENABLE_LABELS=wanted) as bench:
        bench.source.config = LABELLED
        record = await bench.pull()
        assert record.labels == (LABELS if wanted else None)


@pytest_twisted.ensureDeferred
async def test_an_image_without_labels_has_none(tmp_path: Path) -> None:
    """Its record says so, and it is not looked at for them again and again."""
    async with running_bench(tmp_path, ENABLE_LABELS=True) as bench:
        assert (await bench.pull()).labels == {}
        bench.source.requests.clear()
        await bench.pull()
        assert bench.source.requests == ["head"]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("login", [None, "alice:secret"])
async def test_labels_come_with_the_next_pull(tmp_path: Path, login: str | None) -> None:
    """An image that was there before they were wanted gets them, and is not made again."""
    async with running_bench(tmp_path) as bench:
        bench.source.config = LABELLED
        bench.source.private = login is not None
        assert (await bench.pull(login=login)).labels is None
        later = switched(bench, tmp_path / "later", ENABLE_LABELS=True)
        assert (await later.pull(login=login)).labels == LABELS
        assert later.builder.builds == 0
        later.source.requests.clear()
        await later.pull(login=login)
        assert later.source.requests == ["head"]


def switched(bench: Bench, root: Path, **changes: object) -> Bench:
    """Return a bench with another configuration, on the store and the images of the first."""
    root.mkdir()
    return Bench(bench.store, bench.threads, root, bench, **changes)


@pytest_twisted.ensureDeferred
async def test_a_record_of_the_original_is_not_made_again_for_its_labels(tmp_path: Path) -> None:
    """Its id may be that of the index: the image would be converted under another one."""
    async with running_bench(tmp_path, ENABLE_LABELS=True) as bench:
        bench.source.config = LABELLED
        claimed = await bench.claim()
        begun = await bench.store.begin(claimed.key, "there:1", 1000.0, 60)
        assert begun is not None
        index = bench.source.index.hex
        (bench.images / f"{index}.squashfs").write_bytes(b"squashfs")
        (bench.images / f"{index}.meta").write_bytes(b"FORMAT: squashfs\n")
        ready = Ready(index, {"private": False}, 0.0, "images")
        await bench.store.finish(claimed.key, begun.attempt, ready, 1000.0)
        assert (await bench.pull()).id == index
        assert bench.source.requests == ["head"]


@pytest.mark.parametrize("shown", [False, True])
def test_labels_are_answered_where_they_are_wanted(shown: bool) -> None:
    """In lists, look-ups and pulls alike; else they are MISSING, as with the original."""
    image = replace(READY, labels=LABELS)
    gateway = FakeGateway(images=[image], pulls=[image], shows_labels=shown)
    wire = Wire(site_of(gateway))
    tag = "docker/ubuntu%3A24.04/"
    answers = [
        wire.ask("/api/list/mycluster/").json["list"][0],
        wire.ask(f"/api/lookup/mycluster/{tag}").json,
        wire.ask(f"/api/pull/mycluster/{tag}", "POST").json,
    ]
    assert [one["LABELS"] for one in answers] == [LABELS if shown else "MISSING"] * 3


@pytest_twisted.ensureDeferred
async def test_readers_stay_out_of_the_metadata(tmp_path: Path) -> None:
    """For a runtime that does not know their lines; the gateway itself knows them all the same."""
    async with running_bench(tmp_path, DISABLE_ACL_METADATA=True) as bench:
        bench.source.private = True
        record = await bench.pull(login="alice:secret", user_acl=(ALICE, 2002))
        assert (record.status, record.private) == (State.READY, True)
        assert record.user_acl == (ALICE, 2002)
        assert b"ACL" not in bench.meta_path.read_bytes()
        before = bench.meta_path.stat().st_ino
        await bench.pull(login="alice:secret")
        assert bench.meta_path.stat().st_ino == before


@pytest_twisted.ensureDeferred
async def test_the_next_pull_puts_them_back(tmp_path: Path) -> None:
    """Once the site has done without the switch, an image that is pulled again is closed again."""
    async with running_bench(tmp_path, DISABLE_ACL_METADATA=True) as bench:
        bench.source.private = True
        await bench.pull(login="alice:secret")
        later = switched(bench, tmp_path / "later")
        await later.pull(login="alice:secret")
        assert later.meta().user_acl == (ALICE,)
