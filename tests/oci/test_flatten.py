"""The finished plan: dropped, changed and counted entries; and a comparison with a model."""

from __future__ import annotations

import tarfile
from dataclasses import replace

import pytest
from hypothesis import given, settings

from shiftergw.errors import ImageTooLarge, LayerInvalid
from shiftergw.model.build_options import BuildLimits
from shiftergw.model.images import ContentReport
from shiftergw.oci.budget import Budget
from shiftergw.oci.flatten import flatten
from shiftergw.oci.tar import LayerIndex
from shiftergw.oci.tree import walk
from tests.images import entry, tar_of
from tests.matrices import examples
from tests.oci.layers import (
    LIMITS,
    Layer,
    groups,
    hard_link,
    image,
    index_tar,
    plan_of,
    special,
    symlink,
)
from tests.oci.model import LAYERS, InvalidLayers, flatten_model
from tests.tracing import without_tracing

# What is dropped.


def test_devices_and_fifos_are_dropped_and_counted() -> None:
    """The image has neither them, nor links to them, nor the files that they replace."""
    layers: list[Layer] = [
        [entry("a", b"1"), entry("keep", b"2")],
        [special("a"), special("b", tarfile.BLKTYPE), special("c", tarfile.FIFOTYPE)],
        [hard_link("link", "c"), hard_link("late", "x"), special("x")],
    ]
    assert image(*layers) == {"keep": b"2"}
    assert plan_of(*layers).report == ContentReport(entries=1, size=1, devices=6)


def test_everything_below_dev_is_dropped_and_counted() -> None:
    """The directory itself stays; its entries are dropped, through any path into it."""
    layers: list[Layer] = [
        [entry("././dev/"), special("dev/null"), entry("dev/shm/"), entry("dev/shm/x", b"1")],
        [symlink("d", "dev"), entry("d/y", b"2"), hard_link("z", "dev/y"), symlink("dev/s", "")],
        [entry("development", b"3"), hard_link("dev/keep", "development")],
    ]
    assert image(*layers) == {"dev": "/", "d": "-> dev", "development": b"3"}
    report = plan_of(*layers).report
    assert (report.under_dev, report.devices) == (7, 0)


def test_a_dev_that_is_not_a_directory_is_an_ordinary_entry() -> None:
    """A file or a symlink of that name stays."""
    assert image([entry("dev", b"1")]) == {"dev": b"1"}
    assert image([symlink("dev", "d"), entry("dev/x", b"1")]) == {
        "dev": "-> d",
        "d": "/",
        "d/x": b"1",
    }


def test_xattrs_are_counted() -> None:
    """Each inode of the result that had xattrs counts once."""
    xattr = {"SCHILY.xattr.security.capability": "x"}
    layer = [
        entry("f", b"1", pax_headers=xattr),
        entry("d/", pax_headers=xattr | {"SCHILY.xattr.user.b": "y"}),
        hard_link("g", "f"),
        entry("gone", b"2", pax_headers=xattr),
    ]
    symbolic = symlink("s", "t")
    symbolic[0].pax_headers = xattr
    plan = plan_of(layer, [symbolic, entry(".wh.gone", b"")])
    assert plan.report.xattrs == 3
    assert all(node.mode < 0o10000 for _, node in walk(plan.root))


# What is changed.

FILE_MODES = {0o0: 0o644, 0o111: 0o755, 0o600: 0o644, 0o700: 0o755, 0o640: 0o644, 0o4755: 0o755}
DIRECTORY_MODES = {0o0: 0o755, 0o700: 0o755, 0o1777: 0o1777, 0o2775: 0o775, 0o555: 0o755}


@pytest.mark.parametrize("mode", FILE_MODES)
def test_files_are_made_readable(mode: int) -> None:
    """Files get a+r, u+w, and x for all if any x is set."""
    plan = plan_of([entry("f", b"", mode=mode)])
    assert plan.root.children[b"f"].mode == FILE_MODES[mode]
    assert plan.report.modes == (mode & 0o777 != FILE_MODES[mode])


@pytest.mark.parametrize("mode", DIRECTORY_MODES)
def test_directories_are_made_readable(mode: int) -> None:
    """Directories get a+rx and u+w; the sticky bit stays."""
    plan = plan_of([entry("d/", mode=mode)])
    assert plan.root.children[b"d"].mode == DIRECTORY_MODES[mode]
    assert plan.report.modes == (mode & 0o1777 != DIRECTORY_MODES[mode])


@pytest.mark.parametrize("keep", [False, True])
def test_setuid_is_dropped_unless_the_site_keeps_it(keep: bool) -> None:
    """Each changed inode counts once."""
    layer = [entry("s", b"", mode=0o6755), hard_link("t", "s"), entry("d/", mode=0o2755)]
    plan = plan_of(layer, keep_setuid=keep)
    assert plan.report.setuid == (0 if keep else 2)
    assert plan.root.children[b"s"].mode == (0o6755 if keep else 0o755)
    assert plan.root.children[b"d"].mode == (0o2755 if keep else 0o755)
    assert plan.report.modes == 0


def test_times_are_limited_to_the_range_of_squashfs() -> None:
    """Times are 0…2³²-1 without fractions; the plan has the latest time."""
    late = 2**40
    times = {"a": -5.5, "b": 7.9, "c": late}
    plan = plan_of([entry(name, b"", mtime=time) for name, time in times.items()])
    assert {n: node.mtime for n, node in plan.root.children.items()} == {
        b"a": 0,
        b"b": 7,
        b"c": 2**32 - 1,
    }
    assert plan.latest == 2**32 - 1
    assert plan_of([entry("d/x", b"", mtime=9)]).latest == 9


def test_parents_without_an_entry_have_fixed_attributes() -> None:
    """Parents get 0755 and 1970, so that the bytes are always the same; the root is always 0755."""
    plan = plan_of([entry("./", mode=0o700), entry("a/b", b"")])
    assert (plan.root.children[b"a"].mode, plan.root.children[b"a"].mtime) == (0o755, 0)
    assert (plan.root.mode, plan.root.mtime) == (0o755, 0)


# Limits.


def test_limits_hold_for_the_whole_image() -> None:
    """One entry or one byte too many is an error that names the limit; links cost no bytes."""
    layers: list[Layer] = [[entry("a", b"12345")], [entry("b", b"123"), hard_link("c", "b")]]
    fits = BuildLimits(size=8, entries=3)
    assert plan_of(*layers, limits=fits).report == ContentReport(entries=3, size=8)
    with pytest.raises(ImageTooLarge, match="more than 2 entries"):
        plan_of(*layers, limits=replace(fits, entries=2))
    with pytest.raises(ImageTooLarge, match="more than 7 bytes"):
        plan_of(*layers, limits=replace(fits, size=7))


def test_replaced_files_do_not_count() -> None:
    """The limit is on the finished image, not on its layers."""
    limits = BuildLimits(size=5, entries=1)
    assert plan_of([entry("a", b"12345")], [entry("a", b"54321")], limits=limits).report.size == 5


def test_paths_that_cannot_be_mounted_are_rejected() -> None:
    """Such a path is an error, even if only a symlink makes it too long."""
    deep = "/".join(["d" * 250] * 15)
    plan_of([entry(f"{deep}/{'f' * 250}", b"")])
    with pytest.raises(LayerInvalid, match="4095"):
        plan_of([symlink("s", deep), entry(f"s/{'e' * 250}/{'f' * 250}", b"")])


def test_indexes_are_freed_as_they_are_applied() -> None:
    """`flatten` empties the indexes: entries and tree are not in memory twice."""
    index = LayerIndex(index_tar(tar_of({"a": b"1"})))
    assert flatten([index], Budget(LIMITS), keep_setuid=False).report.entries == 1
    assert index.entries == []


# The model.


@settings(max_examples=examples(100))
@given(LAYERS)
@without_tracing
def test_random_layers_match_the_model(layers: list[Layer]) -> None:
    """Content, links and errors of any sequence of entries are those of a simple model."""
    try:
        expected = flatten_model(layers)
    except InvalidLayers:
        with pytest.raises(LayerInvalid):
            plan_of(*layers)
        return
    assert image(*layers) == expected.contents
    plan = plan_of(*layers)
    assert sorted(map(sorted, groups(plan))) == sorted(map(sorted, expected.groups))
    assert plan.report.entries == len(expected.contents)
    assert plan.inodes == 1 + len(expected.contents) - sum(len(g) - 1 for g in expected.groups)
    assert (plan.report.devices, plan.report.under_dev) == (expected.devices, expected.under_dev)
