"""Whiteouts, links and type changes, with real bytes from the layers to the archive."""

from __future__ import annotations

import pytest

from shiftergw.errors import LayerInvalid
from tests.images import entry, tar_of
from tests.oci.layers import Layer, groups, hard_link, image, index_tar, plan_of, symlink
from tests.oci.test_extended import record

BASE = [entry("usr/"), entry("usr/lib/"), entry("usr/lib/so", b"old"), symlink("lib", "usr/lib")]
USR: dict[str, bytes | str] = {
    "usr": "/",
    "usr/lib": "/",
    "usr/lib/so": b"old",
    "lib": "-> usr/lib",
}
GROUP = [entry("a", b"one"), hard_link("b", "a"), hard_link("c", "b")]


def whiteout(name: str) -> Layer:
    """Return a layer with one whiteout."""
    return [entry(name, b"")]


# Whiteouts.


def test_a_whiteout_hides_a_file_or_a_whole_directory() -> None:
    """The name and everything below it disappear; the whiteout itself is never visible."""
    below = [entry("a", b"1"), entry("d/x/y", b"2"), entry("keep", b"3")]
    assert image(below, [entry(".wh.a", b""), entry(".wh.d", b"")]) == {"keep": b"3"}
    assert image(below, whiteout("d/x/.wh.y")) == {"a": b"1", "d": "/", "d/x": "/", "keep": b"3"}


@pytest.mark.parametrize("place", ["first", "last"])
def test_an_opaque_directory_hides_lower_layers_only(place: str) -> None:
    """Entries of the same layer stay, wherever the whiteout is in the layer."""
    opaque = entry("d/.wh..wh..opq", b"")
    own = [entry("d/"), entry("d/new", b"2")]
    upper = [opaque, *own] if place == "first" else [*own, opaque]
    assert image([entry("d/old", b"1"), entry("e", b"3")], upper) == {
        "d": "/",
        "d/new": b"2",
        "e": b"3",
    }


def test_an_opaque_root_hides_all_lower_layers() -> None:
    """The root can be opaque, too."""
    assert image(BASE, [entry(".wh..wh..opq", b""), entry("new", b"1")]) == {"new": b"1"}


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_whiteout_and_a_new_entry_of_one_name(place: str) -> None:
    """Whiteouts act first, in any order: the new directory starts empty."""
    lower = [entry("a", b"old"), entry("d/old", b"1")]
    whiteouts = [entry(".wh.a", b""), entry(".wh.d", b"")]
    new_entries = [entry("a", b"new"), entry("d/"), entry("d/new", b"2")]
    upper = [*whiteouts, *new_entries] if place == "first" else [*new_entries, *whiteouts]
    assert image(lower, upper) == {"a": b"new", "d": "/", "d/new": b"2"}


def test_a_whiteout_can_have_any_type() -> None:
    """A hard link, a symlink or a directory can be a whiteout."""
    lower = [entry("a", b"1"), entry("b", b"2"), entry("c", b"3"), entry("z", b"4")]
    upper = [hard_link(".wh.a", "z"), symlink(".wh.b", "z"), entry(".wh.c/")]
    assert image(lower, upper) == {"z": b"4"}


def test_whiteouts_of_missing_names_do_nothing() -> None:
    """Such whiteouts do nothing in any layer, and their names never appear in the result."""
    lowest = [entry(".wh.a", b""), entry("d/.wh.b", b""), entry(".wh..wh..opq", b"")]
    assert image([*lowest, entry("a", b"1")]) == {"a": b"1"}
    missing = [entry("no/where/.wh.b", b""), entry("a/.wh.b", b""), entry(".wh.x", b"")]
    assert image([entry("a", b"1")], missing) == {"a": b"1"}


@pytest.mark.parametrize("name", [".wh...", ".wh..", "d/.wh...", "d/.wh.."])
def test_whiteouts_of_dots_do_nothing(name: str) -> None:
    """A whiteout never removes its own directory or the parent."""
    lower = [entry("d/x", b"1")]
    assert image(lower, whiteout(name)) == {"d": "/", "d/x": b"1"}


def test_a_whiteout_without_a_name_is_rejected() -> None:
    """A bare `.wh.` is an error."""
    with pytest.raises(LayerInvalid, match="without a name"):
        image(BASE, whiteout("usr/.wh."))


def test_other_metadata_of_aufs_is_ignored() -> None:
    """`.wh..wh.aufs` hides nothing; links into `.wh..wh.plnk` get their content."""
    upper = [
        entry(".wh..wh.aufs", b""),
        entry(".wh..wh.plnk/"),
        entry(".wh..wh.plnk/1.2", b"linked"),
        hard_link("x", ".wh..wh.plnk/1.2"),
    ]
    assert image([entry("aufs", b"1"), entry(".aufs", b"2")], upper) == {
        "aufs": b"1",
        ".aufs": b"2",
        "x": b"linked",
    }


def test_a_whiteout_follows_a_symlink_of_a_lower_layer() -> None:
    """`lib/.wh.so` on a base with `lib -> usr/lib` hides `usr/lib/so`."""
    expected = {name: content for name, content in USR.items() if name != "usr/lib/so"}
    assert image(BASE, whiteout("lib/.wh.so")) == expected
    assert image(BASE, whiteout("lib/.wh..wh..opq")) == expected


def test_a_whiteout_follows_symlinks_anywhere_in_its_path() -> None:
    """Relative and absolute links are followed at any component of the path."""
    lower = [
        *BASE,
        entry("opt/py/x", b"1"),
        entry("usr/lib/py/x", b"2"),
        symlink("usr/o", "../opt"),
    ]
    upper = [entry("lib/py/.wh.x", b""), entry("usr/o/py/.wh.x", b"")]
    expected = {**USR, "opt": "/", "opt/py": "/", "usr/lib/py": "/", "usr/o": "-> ../opt"}
    assert image(lower, upper) == expected


@pytest.mark.parametrize("whiteout_name", [".wh..wh..opq", ".wh.so"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_whiteout_in_a_directory_that_replaces_a_symlink_hides_nothing(
    whiteout_name: str, place: str
) -> None:
    """Overlay file systems mark new directories as opaque: the target of the old link stays."""
    opaque_layer = entry(f"lib/{whiteout_name}", b"")
    own = [entry("lib/"), entry("lib/new", b"2")]
    upper = [opaque_layer, *own] if place == "first" else [*own, opaque_layer]
    assert image(BASE, upper) == {**USR, "lib": "/", "lib/new": b"2"}


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_whiteout_does_not_follow_a_hidden_symlink(place: str) -> None:
    """The order of the two whiteouts makes no difference."""
    pair = [entry(".wh.lib", b""), entry("lib/.wh.so", b"")]
    expected = {name: content for name, content in USR.items() if name != "lib"}
    assert image(BASE, pair if place == "first" else pair[::-1]) == expected


def test_a_whiteout_below_a_circle_of_symlinks_does_nothing() -> None:
    """No file can exist there."""
    lower = [symlink("a", "b"), symlink("b", "a")]
    assert image(lower, whiteout("a/.wh.x")) == {"a": "-> b", "b": "-> a"}


# Hard links.


def test_a_link_to_a_file_of_a_lower_layer_is_the_same_inode() -> None:
    """The target is resolved in the merged view; the image has its content once."""
    layers = ([entry("d/a", b"one")], [hard_link("b", "d/a")])
    assert image(*layers) == {"d": "/", "d/a": b"one", "b": b"one"}
    plan = plan_of(*layers)
    assert groups(plan) == [{"d/a", "b"}]
    assert (plan.report.size, plan.report.entries, plan.inodes) == (3, 3, 3)


@pytest.mark.parametrize("upper", [[entry("a", b"new")], [entry(".wh.a", b"")]])
def test_a_link_survives_its_target_name(upper: Layer) -> None:
    """Links share an inode, not a name: the remaining names keep the content."""
    merged_contents = image(GROUP, upper)
    assert merged_contents["b"] == merged_contents["c"] == b"one"
    assert merged_contents.get("a") in {None, b"new"}
    assert groups(plan_of(GROUP, upper)) == [{"b", "c"}]


def test_a_rewritten_name_leaves_its_group() -> None:
    """Only the name that an upper layer writes gets the new content."""
    upper = [entry("b", b"two")]
    assert image(GROUP, upper) == {"a": b"one", "b": b"two", "c": b"one"}
    assert groups(plan_of(GROUP, upper)) == [{"a", "c"}]


@pytest.mark.parametrize("targets", [("b", "c", "d"), ("d", "d", "d")])
def test_links_before_their_target_are_resolved_after_the_layer(targets: tuple[str, ...]) -> None:
    """That includes chains of links that each come before the next one."""
    links = [hard_link(name, target) for name, target in zip("abc", targets, strict=True)]
    layer = [*links, entry("d", b"late")]
    assert image(layer) == dict.fromkeys("abcd", b"late")
    assert groups(plan_of(layer)) == [set("abcd")]


def test_a_link_uses_the_target_at_its_own_position() -> None:
    """As in an extraction, a later entry of the target's name does not change the link."""
    assert image([entry("a", b"old")], [hard_link("b", "a"), entry("a", b"new")]) == {
        "a": b"new",
        "b": b"old",
    }


@pytest.mark.parametrize("whiteout_name", [".wh.a", ".wh..wh..opq"])
def test_a_link_can_refer_to_a_hidden_file(whiteout_name: str) -> None:
    """A file can be renamed: the inode of the lower view gets the new name."""
    assert image(
        [entry("d/a", b"one")], [entry(f"d/{whiteout_name}", b""), hard_link("d/b", "d/a")]
    ) == {
        "d": "/",
        "d/b": b"one",
    }


def test_a_link_can_refer_to_a_file_in_a_hidden_directory() -> None:
    """It can do so even if the directory exists again, and through a symlink."""
    lower = [entry("d/s/a", b"one"), symlink("l", "d/s")]
    upper = [entry(".wh.d", b""), entry("d/s/"), hard_link("b", "d/s/a"), hard_link("c", "l/a")]
    assert image(lower, upper) == {
        "d": "/",
        "d/s": "/",
        "l": "-> d/s",
        "b": b"one",
        "c": b"one",
    }


@pytest.mark.parametrize("is_mark_first", [True, False])
def test_a_link_can_refer_into_an_opaque_directory_that_becomes_a_file(
    is_mark_first: bool,
) -> None:
    """The link comes before the file, so `umoci` and containerd make it, too."""
    lower = [entry("d/a", b"x")]
    changes = [entry("d/.wh..wh..opq", b""), entry("d", b"new")]
    upper = [hard_link("c", "d/a"), *(changes if is_mark_first else reversed(changes))]
    assert image(lower, upper) == {"c": b"x", "d": b"new"}


def test_a_link_into_an_opaque_directory_that_is_a_file_already_is_rejected() -> None:
    """No program that unpacks layers finds the target then."""
    upper = [entry("d", b"new"), hard_link("c", "d/a"), entry("d/.wh..wh..opq", b"")]
    with pytest.raises(LayerInvalid, match="not there"):
        image([entry("d/a", b"x")], upper)


def test_a_pending_link_that_a_later_entry_replaces_is_dropped() -> None:
    """The last of two entries of one name counts, even if the first has no target."""
    assert image([hard_link("a", "nowhere"), entry("a", b"1")]) == {"a": b"1"}


def test_a_link_replaces_its_name_and_creates_parents() -> None:
    """It replaces a file, a directory or a symlink, or creates a new name."""
    lower = [entry("f", b"1"), entry("d/x", b"2"), symlink("s", "d"), entry("t", b"target")]
    upper = [hard_link(name, "t") for name in ("f", "d", "s", "new/parent/f")]
    assert image(lower, upper) == {
        **dict.fromkeys(["f", "d", "s", "t", "new/parent/f"], b"target"),
        "new": "/",
        "new/parent": "/",
    }


def test_a_link_to_itself_changes_nothing() -> None:
    """The name exists and stays."""
    assert image([entry("a", b"1")], [hard_link("a", "a")]) == {"a": b"1"}


def test_a_link_to_a_symlink_is_that_symlink() -> None:
    """Symlinks have inodes, too; the last component is not followed."""
    assert image([symlink("s", "x"), hard_link("t", "s")]) == {"s": "-> x", "t": "-> x"}


@pytest.mark.parametrize("target", ["lib/so", "/usr/lib/so", "./usr//lib/so", "usr/x/../lib/so"])
def test_the_target_of_a_link_is_normalized_and_resolved(target: str) -> None:
    """A target in any notation is the file below the root."""
    assert image(BASE, [hard_link("b", target)]) == {**USR, "b": b"old"}
    assert groups(plan_of(BASE, [hard_link("b", target)])) == [{"b", "usr/lib/so"}]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "not there"),
        ("b", "not there"),
        ("usr/lib/so/deeper", "not there"),
        ("usr/lib", "to a directory"),
        ("../etc/passwd", "leaves the root"),
        (".", "not there"),
    ],
)
def test_links_to_impossible_targets_are_rejected(target: str, message: str) -> None:
    """A link to a missing file, itself, a directory or outside the root is an error."""
    with pytest.raises(LayerInvalid, match=message):
        plan_of(BASE, [hard_link("b", target)])


def test_circular_hard_links_are_rejected() -> None:
    """A circle of links has no content."""
    with pytest.raises(LayerInvalid, match="not there"):
        plan_of([hard_link("a", "b"), hard_link("b", "a")])


# Type changes and paths.


def test_a_type_change_removes_the_old_content() -> None:
    """A file or symlink replaces a directory, and a directory replaces a file or symlink."""
    lower = [entry("a/x", b"1"), entry("b/x", b"2"), entry("c", b"3"), *BASE]
    upper = [entry("a", b"file"), symlink("b", "a"), entry("c/"), entry("c/y", b"4"), entry("lib/")]
    assert image(lower, upper) == {
        **USR,
        "a": b"file",
        "b": "-> a",
        "c": "/",
        "c/y": b"4",
        "lib": "/",
    }


def test_a_repeated_directory_keeps_its_content() -> None:
    """A directory entry over a directory changes only its mode and time."""
    plan = plan_of([entry("d/x", b"1")], [entry("d/", mode=0o775, mtime=5)])
    assert list(plan.root.children) == [b"d"]
    assert (plan.root.children[b"d"].mode, plan.root.children[b"d"].mtime) == (0o775, 5)
    assert image([entry("d/x", b"1")], [entry("d/")]) == {"d": "/", "d/x": b"1"}


@pytest.mark.parametrize("target", ["usr/lib", "/usr/lib", "../../usr/lib", "./usr//lib/", "usr/l"])
def test_entries_below_a_symlink_follow_it_inside_the_root(target: str) -> None:
    """On a base with `lib -> usr/lib`, `lib/new` becomes `usr/lib/new`; never outside the root."""
    base = [*BASE[:3], symlink("usr/l", "lib"), symlink("lib", target)]
    merged_contents = image(base, [entry("lib/new", b"2"), entry("lib/so", b"3")])
    assert (merged_contents["usr/lib/new"], merged_contents["usr/lib/so"]) == (b"2", b"3")
    assert merged_contents["lib"] == f"-> {target}"


def test_an_entry_below_a_dangling_symlink_creates_its_target() -> None:
    """The target is created, as by a tool that creates missing parents below the root."""
    layers = ([symlink("a", "../../b/c")], [entry("a/x", b"1")])
    assert image(*layers) == {"a": "-> ../../b/c", "b": "/", "b/c": "/", "b/c/x": b"1"}


def test_entries_follow_a_symlink_of_their_own_layer_until_it_is_replaced() -> None:
    """Each entry sees the tree at its own position in the layer."""
    layer = [*BASE, entry("lib/a", b"1"), entry("lib/"), entry("lib/b", b"2")]
    assert image(layer) == {**USR, "usr/lib/a": b"1", "lib": "/", "lib/b": b"2"}


def test_chains_of_symlinks_have_the_kernels_limit() -> None:
    """Forty links are followed; one more is an error that mentions both possible causes."""

    def chain(links: int) -> Layer:
        names = [symlink(f"s{n}", f"s{n + 1}") for n in range(links)]
        return [*names, entry(f"s{links}"), entry("s0/f", b"x")]

    assert image(chain(40))["s40/f"] == b"x"
    with pytest.raises(LayerInvalid, match="more than 40 links"):
        image(chain(41))


def test_entries_below_a_circle_of_symlinks_are_rejected() -> None:
    """After a limited number of hops the path is an error."""
    with pytest.raises(LayerInvalid, match="circle"):
        image([symlink("a", "b"), symlink("b", "a"), entry("a/x", b"1")])


def test_a_file_with_entries_below_becomes_a_directory() -> None:
    """A file, or a pending link, is replaced when a later entry needs a directory."""
    assert image([entry("a", b"1")], [entry("a/x", b"2")]) == {"a": "/", "a/x": b"2"}
    assert image([hard_link("a", "z"), entry("a/x", b"2")]) == {"a": "/", "a/x": b"2"}


def test_names_are_normalized_by_components() -> None:
    """Dots and slashes are removed, similar names stay, an inner `..` is resolved."""
    layer = [entry("./"), entry("/abs", b"1"), entry("a/./b//c", b"2"), entry("foo..bar", b"3")]
    assert image([*layer, entry("x/../y", b"4")]) == {
        "abs": b"1",
        "a": "/",
        "a/b": "/",
        "a/b/c": b"2",
        "foo..bar": b"3",
        "y": b"4",
    }


@pytest.mark.parametrize("tree_of_links", [entry(".", b"file"), symlink("./", "x"), entry("", b"")])
def test_the_root_stays_a_directory(tree_of_links: tuple[object, bytes]) -> None:
    """An entry that would replace the root is an error."""
    with pytest.raises(LayerInvalid, match="replaces the root"):
        image([tree_of_links])  # type: ignore[list-item]  # a parametrized entry


def test_the_last_of_two_entries_of_one_name_wins() -> None:
    """The result has one entry of each name."""
    layer = [entry("a", b"1"), entry("a", b"2"), entry("d/"), entry("d/x", b"3"), entry("./d/")]
    assert image(layer) == {"a": b"2", "d": "/", "d/x": b"3"}


def test_the_same_layer_twice_and_empty_layers() -> None:
    """Layers are identified by their position, not by their content."""
    upper = [entry("a", b"upper"), hard_link("b", "a")]
    lower = [entry("a", b"lower")]
    assert image(lower, [], upper, lower, [], upper) == {"a": b"upper", "b": b"upper"}
    assert image(upper, lower) == {"a": b"lower", "b": b"upper"}
    assert image([], []) == {}


@pytest.mark.parametrize("name", ["n" * 256, "n" * 256 + "/x", "a/" + "n" * 256])
def test_a_component_over_255_bytes_is_rejected(name: str) -> None:
    """`mksquashfs` would truncate it silently."""
    with pytest.raises(LayerInvalid, match="255"):
        image([entry(name, b"1")])
    assert len(image([entry(name.replace("n" * 256, "n" * 255), b"1")])) <= 2


def test_targets_of_symlinks_have_1_to_4095_bytes() -> None:
    """These are the limits of the kernel."""
    assert image([symlink("a", "t" * 4095)]) == {"a": "-> " + "t" * 4095}
    with pytest.raises(LayerInvalid, match="without a target"):
        image([symlink("a", "")])


def test_names_that_are_not_utf_8_are_kept() -> None:
    """Names are bytes from the layer to the image."""
    name = b"\xff\xfe\n".decode("utf-8", "surrogateescape")
    assert image([entry(name, b"1")]) == {name: b"1"}


def test_a_target_with_a_nul_is_rejected() -> None:
    """PAX can express such a target; no file system can."""
    body = record(b"linkpath", b"a\0b")
    tar = tar_of([entry("x", body, type=b"x"), symlink("s", "t")])
    with pytest.raises(LayerInvalid, match="NUL"):
        index_tar(tar)
