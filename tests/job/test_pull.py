"""Pulls of private, shared and blocked images, on real files."""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs

from shiftergw.delivery.local import LocalDirectory
from shiftergw.errors import Unavailable
from shiftergw.ports import Verification
from shiftergw.states import State
from tests.job.pulls import ALICE, BOB, NEW_MANIFEST, ROOT, private_image
from tests.job.workbench import MANIFEST, SISTER, SYSTEM, running_bench


@pytest_twisted.ensureDeferred
async def test_a_refresh_by_a_reader_costs_one_request(tmp_path: Path) -> None:
    """The HEAD of the manifest shows that a known reader still has access."""
    async with running_bench(tmp_path) as bench:
        await private_image(bench)
        bench.source.requests.clear()
        record = await bench.pull(login="alice:secret")
        assert bench.source.requests == ["head"]
        assert record.user_acl == (ALICE,)


@pytest_twisted.ensureDeferred
async def test_a_pull_needs_no_knowledge_of_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the store cannot tell how long earlier pulls took, there is no estimate, but an image."""

    async def refuse(*_: object) -> None:
        raise Unavailable("The store is away.")

    async with running_bench(tmp_path) as bench:
        monkeypatch.setattr(bench.store, "reports", refuse)
        assert (await bench.pull("lib/app:1")).status is State.READY


@pytest_twisted.ensureDeferred
async def test_record_of_a_weaker_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record says how the delivered file was verified, why only by samples, and how long."""
    install = LocalDirectory.install

    async def with_samples(*arguments: Any) -> Verification:
        await install(*arguments)
        return Verification("samples", "the account runs no commands", seconds=2.5)

    async with running_bench(tmp_path) as bench:
        record = await bench.pull("lib/app:1")
        assert record.report is not None
        assert record.report["verification"] == {"method": "sha256", "reason": ""}
        assert {"PULLING", "TRANSFER"} <= record.report["seconds"].keys()
        assert record.report["steps"].keys() == {"fetch"}  # this builder measures nothing
        assert (record.report["layer_bytes"], record.report["layer_count"]) == (5, 1)
        assert re.fullmatch("sha256:[0-9a-f]{64}=5", record.report["layers"])
        bench.image_path.unlink()
        monkeypatch.setattr(LocalDirectory, "install", with_samples)
        record = await bench.pull("lib/app:1")
        assert record.report is not None
        assert record.report["verification"] == {
            "method": "samples",
            "reason": "the account runs no commands",
        }
        assert record.report["steps"]["remote-check"] == 2.5


@pytest_twisted.ensureDeferred
async def test_settings_that_no_runtime_can_read_are_not_in_the_record(tmp_path: Path) -> None:
    """Record and metadata agree. The report, the log and the answer name the omitted settings."""
    async with running_bench(tmp_path) as bench:
        bench.source.config = replace(
            bench.source.config, cmd=("echo", "it's"), env=("A=1", "B=a\nb")
        )
        with capturedLogs() as events:
            record = await bench.pull()
        assert (record.cmd, record.env) == (None, ("A=1",))
        assert (bench.meta().cmd, bench.meta().env) == (None, ("A=1",))
        assert record.report is not None
        assert record.report["metadata"] == ["CMD", "ENV B"]
        assert record.notice.endswith(": CMD, ENV B")
        assert [event["names"] for event in events if "names" in event] == ["CMD, ENV B"]


@pytest.mark.parametrize("is_enabled", [True, False])
@pytest_twisted.ensureDeferred
async def test_labels_that_do_not_fit(tmp_path: Path, *, is_enabled: bool) -> None:
    """The record has the labels that fit and names the omitted ones, if the site stores labels."""
    async with running_bench(tmp_path, ENABLE_LABELS=is_enabled, MaxRecordSize="1 KiB") as bench:
        labels = {"a": "x" * 2000, "b": "short"}
        bench.source.config = replace(bench.source.config, labels=labels)
        record = await bench.pull()
        assert record.labels == ({"b": "short"} if is_enabled else None)
        assert record.report is not None
        assert record.report["metadata"] == (["LABEL a"] if is_enabled else [])


@pytest_twisted.ensureDeferred
async def test_a_delivery_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery that hangs fails, may be retried, and names the configuration key."""

    async def hang(*_: Any) -> Verification:
        await Deferred[None]()
        raise AssertionError

    async with running_bench(tmp_path, StageLimits={"transfer": 0.2}) as bench:
        with monkeypatch.context() as patch:
            patch.setattr(LocalDirectory, "install", hang)
            record = await bench.pull()
        assert (record.status, record.retryable) == (State.FAILURE, True)
        assert record.cause == "Transferring the image took longer than 0.2 seconds."
        assert "`StageLimits.transfer`" in (record.remedy or "")


@pytest_twisted.ensureDeferred
async def test_a_bloated_environment_is_refused(tmp_path: Path) -> None:
    """A bloated environment fails before any download; the failure names the key."""
    async with running_bench(tmp_path) as bench:
        bench.source.config = replace(bench.source.config, env=("A=" + "\x01" * 20_000,))
        record = await bench.pull()
        assert record.status is State.FAILURE
        assert "in its record, which may have 65.5 kB" in (record.cause or "")
        assert "`MaxRecordSize`" in (record.remedy or "")
        assert bench.cache.downloads == []


@pytest_twisted.ensureDeferred
async def test_an_image_that_lost_its_tag_stays_for_a_while(tmp_path: Path) -> None:
    """An untagged image expires after `KeepUntagged` at the earliest: batch jobs use its id."""
    async with running_bench(tmp_path, KeepUntagged="30:00:00:00") as bench:
        await bench.pull()
        bench.source.manifest, bench.source.index = NEW_MANIFEST, NEW_MANIFEST
        await bench.pull()
        (old,) = await bench.store.find_id([SYSTEM], MANIFEST.hex)
        assert old.tags == ()
        assert old.expiration is not None
        assert old.expiration > reactor.seconds() + 29 * 86400
        assert (bench.images / f"{MANIFEST.hex}.squashfs").exists()


@pytest_twisted.ensureDeferred
async def test_a_blocked_image_is_not_fetched(tmp_path: Path) -> None:
    """A block applies to the id of the image and to the digest of an index that leads to it."""
    async with running_bench(tmp_path) as bench:
        for digest in (bench.source.manifest, bench.source.index):
            await bench.store.block("images", digest.hex, ROOT, 1000.0)
            record = await bench.pull()
            assert record.status is State.FAILURE
            assert "taken this image down" in (record.cause or "")
            await bench.store.allow("images", digest.hex)
        assert bench.cache.downloads == []


@pytest_twisted.ensureDeferred
async def test_an_image_blocked_during_its_delivery_is_removed(tmp_path: Path) -> None:
    """An admin may block an image between the check and the end of its pull."""
    async with running_bench(tmp_path) as bench:
        bench.builder.on_build = lambda: bench.store.block("images", MANIFEST.hex, ROOT, 1000.0)
        record = await bench.claim()
        await bench.worker.run(record.key)
        (removal,) = await bench.store.waiting(math.inf, 5)
        assert removal.status is State.EXPIRING
        await bench.worker.run(removal.key)
        assert list(bench.images.iterdir()) == []


@pytest.mark.parametrize(
    "method", ["find", "find_id", "is_blocked", "lease", "heartbeat", "set_access", "release"]
)
@pytest_twisted.ensureDeferred
async def test_a_pull_survives_a_moment_without_the_store(tmp_path: Path, method: str) -> None:
    """The pull ends READY, and the metadata agrees with the record, whichever step failed."""
    async with running_bench(tmp_path) as bench:
        await private_image(bench)
        query = getattr(bench.store, method)
        calls: list[object] = []

        async def fail_once(*arguments: Any, **keywords: Any) -> Any:
            calls.append(arguments)
            if len(calls) == 1:
                raise Unavailable("The store is away.")
            return await query(*arguments, **keywords)

        setattr(bench.store, method, fail_once)
        bench.source.manifest = bench.source.index = NEW_MANIFEST
        record = await bench.pull(uid=BOB, login="bob:other")
        assert (record.status, record.user_acl) == (State.READY, (ALICE, BOB))
        assert bench.meta().user_acl == (ALICE, BOB)
        assert calls


@pytest_twisted.ensureDeferred
async def test_a_touched_image_is_not_delivered_again(tmp_path: Path) -> None:
    """Equal bytes with another time cost no second request. The record gets the new time."""
    async with running_bench(tmp_path) as bench:
        record = await bench.pull()
        assert record.modified == int(bench.image_path.stat().st_mtime)
        os.utime(bench.image_path, (1, 1))
        bench.source.requests.clear()
        record = await bench.pull()
        assert (record.modified, bench.source.requests, bench.builder.builds) == (1, ["head"], 1)


@pytest_twisted.ensureDeferred
async def test_a_replaced_image_is_delivered_again(tmp_path: Path) -> None:
    """Other bytes of the same size are detected by their digest, once for all records."""
    async with running_bench(tmp_path) as bench:
        await bench.pull()
        await bench.pull(system=SISTER)
        bench.image_path.write_bytes(b"squashfz")
        os.utime(bench.image_path, (1, 1))
        bench.source.requests.clear()
        with capturedLogs() as events:
            record = await bench.pull()
        warnings = [event for event in events if event["log_level"] is LogLevel.warn]
        assert len(warnings) == 1
        assert bench.source.requests == ["head", "resolve"]
        assert bench.image_path.read_bytes() == b"squashfs"
        assert record.modified == int(bench.image_path.stat().st_mtime)
        assert (await bench.pull(system=SISTER)).modified == record.modified
        assert bench.builder.builds == 2


@pytest.mark.parametrize("damage", [b"USERACL: 2009\n", b"", None])
@pytest_twisted.ensureDeferred
async def test_damaged_metadata_is_written_again(tmp_path: Path, damage: bytes | None) -> None:
    """Damaged or missing metadata costs no download and no conversion, as the image exists."""
    async with running_bench(tmp_path) as bench:
        await private_image(bench)
        whole = bench.meta_path.read_bytes()
        if damage is None:
            bench.meta_path.unlink()
        else:
            bench.meta_path.write_bytes(damage)
        bench.source.requests.clear()
        record = await bench.pull(login="alice:secret")
        assert record.status is State.READY
        assert bench.meta_path.read_bytes() == whole
        assert (bench.source.requests, bench.builder.builds) == (["head"], 1)
