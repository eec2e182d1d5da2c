"""One job, on a real store and directory; source and builder are fakes."""

from __future__ import annotations

import pytest_twisted

from shiftergw.errors import (
    BlobCorrupt,
    ConfigurationError,
    LayerInvalid,
    RegistryUnavailable,
)
from shiftergw.model.records import Ready
from shiftergw.states import State
from tests.job.workbench import INDEX, LAYER, MANIFEST, SYSTEM, Bench
from tests.store.places import remove_record


@pytest_twisted.ensureDeferred
async def test_a_pull_delivers_and_records(bench: Bench) -> None:
    """Image and metadata are delivered, and the record has all members that the original wrote."""
    record = await bench.pull()
    assert (record.status, record.id, record.tags) == (State.READY, MANIFEST.hex, ("lib/app:1",))
    assert (bench.images / f"{MANIFEST.hex}.squashfs").read_bytes() == b"squashfs"
    assert bench.meta().env == ("A=1",)
    assert (record.format, record.arch, record.os, record.remotetype) == (
        "squashfs", "amd64", "linux", "dockerv2",
    )  # fmt: skip
    assert (record.private, record.user_acl, record.size) == (False, (), 8)
    assert record.origin is not None
    assert record.origin.source_digest == str(INDEX)
    assert record.report is not None
    assert record.report["setuid"] == 1
    assert record.expiration is not None
    assert not record.in_flight


@pytest_twisted.ensureDeferred
async def test_the_log_names_the_job_in_work(bench: Bench) -> None:
    """During a job the worker tells which record and attempt it works on, before and after none."""
    traces = [bench.worker.trace()]

    async def note_trace() -> None:
        traces.append(bench.worker.trace())

    bench.builder.on_build = note_trace
    await bench.pull()
    idle_trace, work_trace = traces
    assert (idle_trace, bench.worker.trace()) == ({}, {})
    assert (len(str(work_trace["job"])), work_trace["attempt"]) == (24, 1)


@pytest_twisted.ensureDeferred
async def test_the_record_names_the_kind_of_source(bench: Bench) -> None:
    """The source says of which kind it is, and the record repeats it as `remotetype`."""
    bench.source.kind = "archive"
    assert (await bench.pull()).remotetype == "archive"


@pytest_twisted.ensureDeferred
async def test_an_unchanged_tag_costs_one_request(bench: Bench) -> None:
    """A repeated pull asks the registry for the tag's digest only."""
    await bench.pull()
    bench.source.requests.clear()
    inode = (bench.images / f"{MANIFEST.hex}.meta").stat().st_ino
    record = await bench.pull()
    assert record.status is State.READY
    assert bench.source.requests == ["head"]
    assert bench.builder.builds == 1
    assert (bench.images / f"{MANIFEST.hex}.meta").stat().st_ino == inode


@pytest_twisted.ensureDeferred
async def test_a_missing_file_is_delivered_again(bench: Bench) -> None:
    """Although the record is READY, a file that is missing or has another size is built again."""
    await bench.pull()
    (bench.images / f"{MANIFEST.hex}.squashfs").unlink()
    await bench.pull()
    assert bench.builder.builds == 2
    (bench.images / f"{MANIFEST.hex}.squashfs").write_bytes(b"short")
    await bench.pull()
    assert bench.builder.builds == 3


@pytest_twisted.ensureDeferred
async def test_another_tag_of_a_delivered_image_is_added(bench: Bench) -> None:
    """The record gets the second tag; nothing is downloaded or built."""
    await bench.pull("lib/app:1")
    record = await bench.pull("lib/app:2")
    assert sorted(record.tags) == ["lib/app:1", "lib/app:2"]
    assert (bench.builder.builds, len(bench.cache.downloads)) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_a_private_image_belongs_to_its_puller(bench: Bench) -> None:
    """The record and the metadata name the puller from the first moment."""
    bench.source.private = True
    record = await bench.pull(login="alice:secret")
    assert (record.private, record.user_acl) == (True, (2001,))
    assert bench.meta().user_acl == (2001,)


@pytest_twisted.ensureDeferred
async def test_a_second_user_with_access_is_added(bench: Bench) -> None:
    """The record and the metadata get a second reader, and nothing is built again."""
    bench.source.private = True
    await bench.pull(login="alice:secret")
    record = await bench.pull(uid=2002, login="bob:other")
    assert record.user_acl == (2001, 2002)
    assert bench.meta().user_acl == (2001, 2002)
    assert bench.builder.builds == 1


@pytest_twisted.ensureDeferred
async def test_a_user_without_access_is_refused_alone(bench: Bench) -> None:
    """Only this user sees the failure; the private image stays as it was."""
    bench.source.private = True
    await bench.pull(login="alice:secret")
    record = await bench.pull(uid=2002)
    assert (record.status, record.own_failure) == (State.FAILURE, True)
    assert record.cause == "The registry refused the image."
    image = await bench.store.find(SYSTEM, "docker", ["lib/app:1"])
    assert image is not None
    assert image.user_acl == (2001,)


@pytest_twisted.ensureDeferred
async def test_a_copied_manifest_gives_no_access_to_a_private_image(bench: Bench) -> None:
    """An equal manifest in another repository is built from the blobs of that repository."""
    bench.source.private = True
    await bench.pull("lib/app:1", login="alice:secret")
    bench.cache.downloads.clear()
    bench.source.repository = "bob/copy"
    await bench.pull("bob/copy:1", uid=2002, login="bob:other")
    assert bench.cache.downloads == [LAYER.digest]


@pytest_twisted.ensureDeferred
async def test_a_public_image_stays_public(bench: Bench) -> None:
    """An equal image in a private repository does not make the public one private."""
    await bench.pull("lib/app:1")
    bench.source.private = True
    bench.source.repository = "alice/copy"
    record = await bench.pull("alice/copy:1", login="alice:secret")
    assert (record.private, record.user_acl) == (False, ())
    assert bench.meta().user_acl is None


@pytest_twisted.ensureDeferred
async def test_a_record_of_the_original_counts_as_current(bench: Bench) -> None:
    """The original stored the digest of the index as the id, and no origin."""
    first = await bench.pull()
    for name in ("squashfs", "meta"):
        path = bench.images / f"{MANIFEST.hex}.{name}"
        path.rename(bench.images / f"{INDEX.hex}.{name}")
    await remove_record(bench.store, first.key)
    old = await bench.claim()
    work = await bench.store.begin(old.key, "here:1", 1000.0, 60)
    assert work is not None
    await bench.store.finish(old.key, work.attempt, Ready(INDEX.hex, {"private": False}), 1000.0)
    bench.source.requests.clear()
    record = await bench.pull()
    assert record.id == INDEX.hex
    assert bench.source.requests == ["head"]


@pytest_twisted.ensureDeferred
async def test_errors_become_failures(bench: Bench) -> None:
    """The record gets cause, remedy and retryability, but no unexpected error and no setting."""
    bench.source.refuses = RegistryUnavailable("The registry is away.", remedy="Wait.")
    record = await bench.pull()
    assert (record.status, record.cause, record.remedy, record.retryable, record.own_failure) == (
        State.FAILURE, "The registry is away.", "Wait.", True, False,
    )  # fmt: skip
    assert record.sealed is None
    bench.source.refuses = None
    for error in (
        RuntimeError("a surprise with /secret/path"),
        ConfigurationError("clientKey cannot be read: /secret/path."),
    ):
        bench.builder.fails = error
        record = await bench.pull()
        assert record.status is State.FAILURE
        assert "secret" not in f"{record.cause} {record.remedy}"
    assert not bench.images.joinpath(f"{MANIFEST.hex}.squashfs").exists()


@pytest_twisted.ensureDeferred
async def test_an_image_that_cannot_fit_is_not_downloaded(bench: Bench) -> None:
    """If the gateway's disk is too small, the pull fails before any download."""
    bench.cache.full = True
    record = await bench.pull()
    assert (record.status, record.cause) == (State.FAILURE, "The gateway's cache is full.")
    assert bench.cache.downloads == []


@pytest_twisted.ensureDeferred
async def test_layers_that_fail_are_verified_in_the_cache(bench: Bench) -> None:
    """An unreadable layer may be damaged; a layer without `diff_id` is verified before, too."""
    for error in (BlobCorrupt("bad"), LayerInvalid("worse")):
        bench.builder.fails = error
        await bench.pull()
    assert bench.cache.discards == 4 * [LAYER.digest]
