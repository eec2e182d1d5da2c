"""Tests of ENABLE_LABELS and DISABLE_ACL_METADATA, as in the original gateway."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.model.records import Ready
from shiftergw.states import State
from tests.configurations import load_config
from tests.job.workbench import CONFIG, Bench, running_bench
from tests.web.fakes import READY, FakeGateway, Wire, site_of

ALICE = 2001

LABELS = {"org.opencontainers.image.title": "app", "": "x"}

CONFIG_WITH_LABELS = replace(CONFIG, labels=LABELS)


@pytest.mark.parametrize("name", ["ENABLE_LABELS", "DISABLE_ACL_METADATA"])
@pytest.mark.parametrize("value", ["1", "0", ""])
def test_any_value_of_the_variable_switches_it_on(name: str, value: str) -> None:
    """Any value has effect, as in the original; the key of the configuration has precedence."""
    field = name.lower()
    assert getattr(load_config({}, **{name: value}).config, field) is True
    assert getattr(load_config({name: False}, **{name: value}).config, field) is False
    assert getattr(load_config({name: True}).config, field) is True
    assert getattr(load_config().config, field) is False


def test_metadata_without_readers_is_warned_about() -> None:
    """Without readers in the metadata, each start warns that the images are open to others."""
    (warning,) = load_config(DISABLE_ACL_METADATA="1").warnings
    assert "who knows an image's id can start the image" in warning
    assert load_config(ENABLE_LABELS="1").warnings == ()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("enabled", [False, True])
async def test_labels_are_stored_if_enabled(tmp_path: Path, enabled: bool) -> None:
    """Otherwise they are not stored: they may be long, and few clients read them."""
    async with running_bench(tmp_path, ENABLE_LABELS=enabled) as bench:
        bench.source.config = CONFIG_WITH_LABELS
        record = await bench.pull()
        assert record.labels == (LABELS if enabled else None)


@pytest_twisted.ensureDeferred
async def test_an_image_without_labels_has_none(tmp_path: Path) -> None:
    """The record stores that there are none, so that later pulls do not read the image for them."""
    async with running_bench(tmp_path, ENABLE_LABELS=True) as bench:
        assert (await bench.pull()).labels == {}
        bench.source.requests.clear()
        await bench.pull()
        assert bench.source.requests == ["head"]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("login", [None, "alice:secret"])
async def test_labels_come_with_the_next_pull(tmp_path: Path, login: str | None) -> None:
    """An earlier image gets its labels without another conversion."""
    async with running_bench(tmp_path) as bench:
        bench.source.config = CONFIG_WITH_LABELS
        bench.source.private = login is not None
        assert (await bench.pull(login=login)).labels is None
        second_bench = reconfigure(bench, tmp_path / "later", ENABLE_LABELS=True)
        assert (await second_bench.pull(login=login)).labels == LABELS
        assert second_bench.builder.builds == 0
        second_bench.source.requests.clear()
        await second_bench.pull(login=login)
        assert second_bench.source.requests == ["head"]


def reconfigure(bench: Bench, root: Path, **changes: object) -> Bench:
    """Return a bench with another configuration and the same store and images."""
    root.mkdir()
    return Bench(bench.store, bench.threads, root, bench, **changes)


@pytest_twisted.ensureDeferred
async def test_a_record_of_the_original_is_not_converted_for_labels(tmp_path: Path) -> None:
    """The id may be that of the index, and a conversion would give the image another id."""
    async with running_bench(tmp_path, ENABLE_LABELS=True) as bench:
        bench.source.config = CONFIG_WITH_LABELS
        claim = await bench.claim()
        attempt = await bench.store.begin(claim.key, "there:1", 1000.0, 60)
        assert attempt is not None
        index = bench.source.index.hex
        (bench.images / f"{index}.squashfs").write_bytes(b"squashfs")
        (bench.images / f"{index}.meta").write_bytes(b"FORMAT: squashfs\n")
        ready = Ready(index, {"private": False}, 0.0, "images")
        await bench.store.finish(claim.key, attempt.attempt, ready, 1000.0)
        assert (await bench.pull()).id == index
        assert bench.source.requests == ["head"]


@pytest.mark.parametrize("shows_labels", [False, True])
def test_answers_have_labels_if_enabled(shows_labels: bool) -> None:
    """Lists, look-ups and pulls have labels; otherwise these are MISSING, as in the original."""
    image = replace(READY, labels=LABELS)
    gateway = FakeGateway(images=[image], pulls=[image], shows_labels=shows_labels)
    wire = Wire(site_of(gateway))
    tag = "docker/ubuntu%3A24.04/"
    answers = [
        wire.ask("/api/list/mycluster/").json["list"][0],
        wire.ask(f"/api/lookup/mycluster/{tag}").json,
        wire.ask(f"/api/pull/mycluster/{tag}", "POST").json,
    ]
    assert [answer["LABELS"] for answer in answers] == [LABELS if shows_labels else "MISSING"] * 3


@pytest_twisted.ensureDeferred
async def test_readers_stay_out_of_the_metadata(tmp_path: Path) -> None:
    """The metadata has no lines that an old runtime rejects; the record still has the readers."""
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
async def test_the_next_pull_restores_the_readers(tmp_path: Path) -> None:
    """Without the switch, the next pull writes the readers into the metadata again."""
    async with running_bench(tmp_path, DISABLE_ACL_METADATA=True) as bench:
        bench.source.private = True
        await bench.pull(login="alice:secret")
        second_bench = reconfigure(bench, tmp_path / "later")
        await second_bench.pull(login="alice:secret")
        assert second_bench.meta().user_acl == (ALICE,)
