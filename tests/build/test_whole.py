"""The builder that converts an image as a whole: how `mksquashfs` fails, and how room is made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent

from shiftergw.build import whole
from shiftergw.build.tools import BuildTools
from shiftergw.errors import ConversionFailed, ImageTooLarge, NoSpace, RetryLater
from shiftergw.model.build_options import BuildLimits, StageLimits
from shiftergw.plumbing.locks import tried_lock
from shiftergw.plumbing.threads import Threads
from tests import images
from tests.build.parts import running_in, script
from tests.build.site import OTHER_ID, REAL, Site
from tests.parts import small_disk
from tests.work.waiting import until


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("kill -9 $$", "killed from outside"),
        ("echo broken >&2; exit 1", "failed with code 1"),
        (f'{REAL}; "$real" "$@"; truncate -s 1000 "$2"', "not what was planned"),
        (f'{REAL}; "$real" "$@"; : > "$2"', "not what was planned"),
        ("cat >/dev/null", "not what was planned"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path, threads: Threads, text: str, what: str
) -> None:
    """However `mksquashfs` fails, even with exit code 0, an error is raised and no file remains."""
    (tmp_path / "bin").mkdir()
    site = Site(tmp_path, threads, script(tmp_path / "bin" / "mksquashfs", text))
    with pytest.raises(ConversionFailed, match=what):
        await site.build_image(site.two)
    assert site.names == []
    assert running_in(tmp_path / "bin") == []


@pytest_twisted.ensureDeferred
async def test_whole_images_share_the_slots_of_the_machine(
    tmp_path: Path, threads: Threads
) -> None:
    """The image waits for a slot, and says so; then it has its part of memory and processors."""
    (tmp_path / "bin").mkdir()
    text = f'echo "$@" >> {tmp_path}/arguments; {REAL}; exec "$real" "$@"'
    site = Site(tmp_path, threads, script(tmp_path / "bin" / "mksquashfs", text))
    slots = BuildTools(site.directory, *[cast("Any", None)] * 6).slot_directory
    slots.mkdir(parents=True)
    options = {"memory": "128M", "processors": 2}
    with tried_lock(slots / "1.slot"):
        with tried_lock(slots / "0.slot"):
            waiting = Deferred.fromCoroutine(site.build_image(site.two, **options))
            await until(lambda: site.states == ["EXAMINATION", "CONVERSION", "QUEUED"])
            assert not (tmp_path / "arguments").exists()
        await waiting
    assert site.states[3:5] == ["CONVERSION", "CHECK"]
    assert "-mem 65536K -processors 1" in (tmp_path / "arguments").read_text()


@pytest_twisted.ensureDeferred
async def test_the_wait_for_a_slot_is_no_conversion(tmp_path: Path, threads: Threads) -> None:
    """An image that has waited too long is not too large: its pull is postponed."""
    site = Site(tmp_path, threads)
    slots = BuildTools(site.directory, *[cast("Any", None)] * 6).slot_directory
    slots.mkdir(parents=True)
    limits = BuildLimits(stages=StageLimits(conversion=0.2))
    with tried_lock(slots / "0.slot"), pytest.raises(RetryLater, match="for others") as caught:
        await site.build_image(site.two, limits=limits)
    assert caught.value.limit == 0.2
    assert site.states == ["EXAMINATION", "CONVERSION", "QUEUED"]
    assert site.names == []


@pytest_twisted.ensureDeferred
async def test_the_wrong_tree_is_never_delivered(tmp_path: Path, threads: Threads) -> None:
    """A `mksquashfs` that makes a sound file of another tree is an error."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "other").write_text("other")
    (tmp_path / "bin").mkdir()
    text = f'cat >/dev/null; {REAL}; exec "$real" {tmp_path}/tree "$2" -noappend -all-root -quiet'
    site = Site(tmp_path, threads, script(tmp_path / "bin" / "mksquashfs", text))
    with pytest.raises(ConversionFailed, match="not what was planned"):
        await site.build_image(site.two)
    assert site.names == []


@pytest_twisted.ensureDeferred
async def test_unused_files_make_way(tmp_path: Path, threads: Threads) -> None:
    """On a full disk, unused files of other images are removed.

    They make room for layers that have arrived, not for the size that a manifest claims.
    """
    site = Site(tmp_path, threads)
    noise = [site.layer([images.entry("noise", os.urandom(600_000))]) for _ in range(3)]
    with small_disk(site.directory, "size=2m"):
        async with site.build([noise[0]]) as used:
            old_image = await site.build_image([noise[1]], image_id=OTHER_ID)
            await site.builder.check_space(3_600_000)
            with pytest.raises(NoSpace):
                await site.builder.check_space(4_800_000)
            assert old_image.path.exists()
            await site.build_image(noise[1:], image_id="ef" * 32, limits=BuildLimits())
            assert not old_image.path.exists()
            assert used.path.exists()


@pytest.mark.parametrize("entries", [30, 31])
@pytest_twisted.ensureDeferred
async def test_a_directory_of_very_many_entries(
    tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch, entries: int
) -> None:
    """The user and the log learn why the conversion takes long, and at its limit what helps."""
    monkeypatch.setattr(whole, "MOST_QUICK_ENTRIES", 30)
    (tmp_path / "bin").mkdir()
    site = Site(tmp_path, threads, script(tmp_path / "bin" / "mksquashfs", "exec sleep 60"))
    layer = site.layer([images.entry(f"dir/{number}", b"") for number in range(entries)])
    limits = BuildLimits(stages=StageLimits(conversion=0.3))
    with capturedLogs() as log, pytest.raises(ImageTooLarge, match="Converting") as caught:
        await site.build_image([layer], limits=limits)
    is_slow = entries > 30
    texts = [formatEvent(event) for event in log]
    assert any("has 31 entries" in text for text in texts) is is_slow
    assert ("SLOW DIRECTORY" in site.states) is is_slow
    assert ('`"Builder": "packs"`' in caught.value.remedy) is is_slow
    assert "`StageLimits.conversion`" in caught.value.remedy
