"""Whiteouts, links and type changes, each with real bytes from the layers to the archive."""

from __future__ import annotations

import pytest

from shiftergw.errors import LayerInvalid
from tests.images import entry, tar_of
from tests.oci.layers import Layer, groups, hard_link, image, indexed, plan_of, symlink
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
    """Return a layer of one whiteout."""
    return [entry(name, b"")]


# Whiteouts.


def test_a_whiteout_hides_a_file_or_a_whole_directory() -> None:
    """The name goes with all that is below it, and the whiteout itself is never seen."""
    below = [entry("a", b"1"), entry("d/x/y", b"2"), entry("keep", b"3")]
    assert image(below, [entry(".wh.a", b""), entry(".wh.d", b"")]) == {"keep": b"3"}
    assert image(below, whiteout("d/x/.wh.y")) == {"a": b"1", "d": "/", "d/x": "/", "keep": b"3"}


@pytest.mark.parametrize("place", ["first", "last"])
def test_an_opaque_directory_hides_lower_layers_only(place: str) -> None:
    """What the same layer puts there stays, wherever the whiteout stands."""
    opaque = entry("d/.wh..wh..opq", b"")
    own = [entry("d/"), entry("d/new", b"2")]
    upper = [opaque, *own] if place == "first" else [*own, opaque]
    assert image([entry("d/old", b"1"), entry("e", b"3")], upper) == {
        "d": "/",
        "d/new": b"2",
        "e": b"3",
    }


def test_an_opaque_root_hides_everything_below() -> None:
    """The root may be opaque too."""
    assert image(BASE, [entry(".wh..wh..opq", b""), entry("new", b"1")]) == {"new": b"1"}


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_whiteout_and_the_same_name_again_is_the_new_one(place: str) -> None:
    """Whiteouts act on lower layers first, in any order: a directory starts empty."""
    lower = [entry("a", b"old"), entry("d/old", b"1")]
    whiteouts = [entry(".wh.a", b""), entry(".wh.d", b"")]
    again = [entry("a", b"new"), entry("d/"), entry("d/new", b"2")]
    upper = [*whiteouts, *again] if place == "first" else [*again, *whiteouts]
    assert image(lower, upper) == {"a": b"new", "d": "/", "d/new": b"2"}


def test_a_whiteout_is_known_by_its_name_whatever_its_type() -> None:
    """A hard link, a symlink or a directory can be a whiteout."""
    lower = [entry("a", b"1"), entry("b", b"2"), entry("c", b"3"), entry("z", b"4")]
    upper = [hard_link(".wh.a", "z"), symlink(".wh.b", "z"), entry(".wh.c/")]
    assert image(lower, upper) == {"z": b"4"}


def test_whiteouts_in_the_lowest_layer_and_of_nothing_do_nothing() -> None:
    """There is nothing to hide; the names are never in the result."""
    lowest = [entry(".wh.a", b""), entry("d/.wh.b", b""), entry(".wh..wh..opq", b"")]
    assert image([*lowest, entry("a", b"1")]) == {"a": b"1"}
    nothing = [entry("no/where/.wh.b", b""), entry("a/.wh.b", b""), entry(".wh.x", b"")]
    assert image([entry("a", b"1")], nothing) == {"a": b"1"}


@pytest.mark.parametrize("name", [".wh...", ".wh..", "d/.wh...", "d/.wh.."])
def test_whiteouts_of_dots_are_whiteouts_of_nothing(name: str) -> None:
    """A whiteout never reaches its own directory or the one above."""
    lower = [entry("d/x", b"1")]
    assert image(lower, whiteout(name)) == {"d": "/", "d/x": b"1"}


def test_a_whiteout_without_a_name_is_refused() -> None:
    """A bare `.wh.` means nothing."""
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


def test_a_whiteout_follows_symlinks_on_the_way_and_relative_ones() -> None:
    """Wherever on the path the link stands, and from wherever it leads."""
    lower = [
        *BASE,
        entry("opt/py/x", b"1"),
        entry("usr/lib/py/x", b"2"),
        symlink("usr/o", "../opt"),
    ]
    upper = [entry("lib/py/.wh.x", b""), entry("usr/o/py/.wh.x", b"")]
    expected = {**USR, "opt": "/", "opt/py": "/", "usr/lib/py": "/", "usr/o": "-> ../opt"}
    assert image(lower, upper) == expected


@pytest.mark.parametrize("hidden", [".wh..wh..opq", ".wh.so"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_whiteout_in_a_directory_that_replaces_a_symlink_hides_nothing(
    hidden: str, place: str
) -> None:
    """Overlay file systems mark new directories as opaque: the link's target must not suffer."""
    marked = entry(f"lib/{hidden}", b"")
    own = [entry("lib/"), entry("lib/new", b"2")]
    upper = [marked, *own] if place == "first" else [*own, marked]
    assert image(BASE, upper) == {**USR, "lib": "/", "lib/new": b"2"}


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_symlink_that_is_hidden_itself_leads_no_whiteout(place: str) -> None:
    """The order of two whiteouts makes no difference."""
    pair = [entry(".wh.lib", b""), entry("lib/.wh.so", b"")]
    expected = {name: content for name, content in USR.items() if name != "lib"}
    assert image(BASE, pair if place == "first" else pair[::-1]) == expected


def test_a_whiteout_below_a_circle_of_symlinks_is_one_of_nothing() -> None:
    """Nothing can lie there."""
    lower = [symlink("a", "b"), symlink("b", "a")]
    assert image(lower, whiteout("a/.wh.x")) == {"a": "-> b", "b": "-> a"}


# Hard links.


def test_a_link_to_a_file_of_a_lower_layer_is_the_same_inode() -> None:
    """The target is looked up in the merged view; the content is there once."""
    layers = ([entry("d/a", b"one")], [hard_link("b", "d/a")])
    assert image(*layers) == {"d": "/", "d/a": b"one", "b": b"one"}
    plan = plan_of(*layers)
    assert groups(plan) == [{"d/a", "b"}]
    assert (plan.report.size, plan.report.entries, plan.inodes) == (3, 3, 3)


@pytest.mark.parametrize("upper", [[entry("a", b"new")], [entry(".wh.a", b"")]])
def test_a_link_survives_the_name_that_it_was_made_of(upper: Layer) -> None:
    """Links share an inode, not a name: those that stay carry the content."""
    found = image(GROUP, upper)
    assert found["b"] == found["c"] == b"one"
    assert found.get("a") in {None, b"new"}
    assert groups(plan_of(GROUP, upper)) == [{"b", "c"}]


def test_a_rewritten_name_leaves_its_group() -> None:
    """Only the name that a higher layer writes gets the new content."""
    upper = [entry("b", b"two")]
    assert image(GROUP, upper) == {"a": b"one", "b": b"two", "c": b"one"}
    assert groups(plan_of(GROUP, upper)) == [{"a", "c"}]


@pytest.mark.parametrize("targets", [("b", "c", "d"), ("d", "d", "d")])
def test_links_before_their_target_are_resolved_after_the_layer(targets: tuple[str, ...]) -> None:
    """Also a chain of links that each come before the next."""
    links = [hard_link(name, target) for name, target in zip("abc", targets, strict=True)]
    layer = [*links, entry("d", b"late")]
    assert image(layer) == dict.fromkeys("abcd", b"late")
    assert groups(plan_of(layer)) == [set("abcd")]


def test_a_link_to_what_is_there_takes_it_although_the_layer_rewrites_it_later() -> None:
    """As extraction would: the view at that moment counts."""
    assert image([entry("a", b"old")], [hard_link("b", "a"), entry("a", b"new")]) == {
        "a": b"new",
        "b": b"old",
    }


@pytest.mark.parametrize("hidden", [".wh.a", ".wh..wh..opq"])
def test_a_link_may_name_what_its_layer_hides(hidden: str) -> None:
    """A renamed file: the inode of the lower view lives on under the new name."""
    assert image([entry("d/a", b"one")], [entry(f"d/{hidden}", b""), hard_link("d/b", "d/a")]) == {
        "d": "/",
        "d/b": b"one",
    }


def test_a_link_may_name_what_lay_in_a_hidden_directory() -> None:
    """Also where the directory is there anew, and through a symlink."""
    lower = [entry("d/s/a", b"one"), symlink("l", "d/s")]
    upper = [entry(".wh.d", b""), entry("d/s/"), hard_link("b", "d/s/a"), hard_link("c", "l/a")]
    assert image(lower, upper) == {
        "d": "/",
        "d/s": "/",
        "l": "-> d/s",
        "b": b"one",
        "c": b"one",
    }


def test_a_waiting_link_that_a_later_entry_replaces_is_forgotten() -> None:
    """The last of two entries of one name wins, even if the first could not be resolved."""
    assert image([hard_link("a", "nowhere"), entry("a", b"1")]) == {"a": b"1"}


def test_a_link_replaces_what_is_there_and_makes_its_parents() -> None:
    """Over a file, over a directory, over a symlink, and where nothing was."""
    lower = [entry("f", b"1"), entry("d/x", b"2"), symlink("s", "d"), entry("t", b"target")]
    upper = [hard_link(name, "t") for name in ("f", "d", "s", "new/parent/f")]
    assert image(lower, upper) == {
        **dict.fromkeys(["f", "d", "s", "t", "new/parent/f"], b"target"),
        "new": "/",
        "new/parent": "/",
    }


def test_a_link_to_itself_changes_nothing() -> None:
    """The name is there and stays."""
    assert image([entry("a", b"1")], [hard_link("a", "a")]) == {"a": b"1"}


def test_a_link_to_a_symlink_is_that_symlink() -> None:
    """Symlinks have inodes too; the last component is not followed."""
    assert image([symlink("s", "x"), hard_link("t", "s")]) == {"s": "-> x", "t": "-> x"}


@pytest.mark.parametrize("target", ["lib/so", "/usr/lib/so", "./usr//lib/so", "usr/x/../lib/so"])
def test_a_links_target_is_cleaned_and_follows_symlinked_parents(target: str) -> None:
    """However the target is written, it is the file below the root."""
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
def test_links_to_what_cannot_be_are_refused(target: str, message: str) -> None:
    """A link to nothing, to itself, to a directory or outside is an error, never left out."""
    with pytest.raises(LayerInvalid, match=message):
        plan_of(BASE, [hard_link("b", target)])


def test_links_that_wait_for_one_another_are_refused() -> None:
    """A circle of links has no content."""
    with pytest.raises(LayerInvalid, match="not there"):
        plan_of([hard_link("a", "b"), hard_link("b", "a")])


# Type changes and paths.


def test_a_type_change_removes_what_was_below() -> None:
    """File over directory, symlink over directory, directory over file and over symlink."""
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


def test_a_directory_again_keeps_what_is_in_it() -> None:
    """A directory entry over a directory changes its mode and time alone."""
    plan = plan_of([entry("d/x", b"1")], [entry("d/", mode=0o775, mtime=5)])
    assert list(plan.root.children) == [b"d"]
    assert (plan.root.children[b"d"].mode, plan.root.children[b"d"].mtime) == (0o775, 5)
    assert image([entry("d/x", b"1")], [entry("d/")]) == {"d": "/", "d/x": b"1"}


@pytest.mark.parametrize("target", ["usr/lib", "/usr/lib", "../../usr/lib", "./usr//lib/", "usr/l"])
def test_entries_below_a_symlink_follow_it_inside_the_root(target: str) -> None:
    """On a base with `lib -> usr/lib` a layer's `lib/new` lands in `usr/lib`; never outside."""
    base = [*BASE[:3], symlink("usr/l", "lib"), symlink("lib", target)]
    found = image(base, [entry("lib/new", b"2"), entry("lib/so", b"3")])
    assert (found["usr/lib/new"], found["usr/lib/so"]) == (b"2", b"3")
    assert found["lib"] == f"-> {target}"


def test_a_symlink_to_nothing_leads_to_a_new_directory() -> None:
    """As it does for a tool that makes missing parents below the root."""
    layers = ([symlink("a", "../../b/c")], [entry("a/x", b"1")])
    assert image(*layers) == {"a": "-> ../../b/c", "b": "/", "b/c": "/", "b/c/x": b"1"}


def test_entries_follow_a_symlink_of_their_own_layer_only_as_long_as_it_is_there() -> None:
    """The view at that moment counts: then the symlink becomes a directory."""
    layer = [*BASE, entry("lib/a", b"1"), entry("lib/"), entry("lib/b", b"2")]
    assert image(layer) == {**USR, "usr/lib/a": b"1", "lib": "/", "lib/b": b"2"}


def test_chains_of_symlinks_have_the_kernels_limit() -> None:
    """Forty links are followed; one more is refused, and not called a circle alone."""

    def chain(links: int) -> Layer:
        names = [symlink(f"s{n}", f"s{n + 1}") for n in range(links)]
        return [*names, entry(f"s{links}"), entry("s0/f", b"x")]

    assert image(chain(40))["s40/f"] == b"x"
    with pytest.raises(LayerInvalid, match="more than 40 links"):
        image(chain(41))


def test_entries_below_a_circle_of_symlinks_are_refused() -> None:
    """A bounded number of hops, then an error."""
    with pytest.raises(LayerInvalid, match="circle"):
        image([symlink("a", "b"), symlink("b", "a"), entry("a/x", b"1")])


def test_what_has_entries_below_gives_way_to_a_directory() -> None:
    """A file, and a link that waits, where a later entry needs a directory."""
    assert image([entry("a", b"1")], [entry("a/x", b"2")]) == {"a": "/", "a/x": b"2"}
    assert image([hard_link("a", "z"), entry("a/x", b"2")]) == {"a": "/", "a/x": b"2"}


def test_names_are_cleaned_and_compared_by_components() -> None:
    """Dots and slashes go, names that only look like them stay, `..` inside is resolved."""
    layer = [entry("./"), entry("/abs", b"1"), entry("a/./b//c", b"2"), entry("foo..bar", b"3")]
    assert image([*layer, entry("x/../y", b"4")]) == {
        "abs": b"1",
        "a": "/",
        "a/b": "/",
        "a/b/c": b"2",
        "foo..bar": b"3",
        "y": b"4",
    }


@pytest.mark.parametrize("made", [entry(".", b"file"), symlink("./", "x"), entry("", b"")])
def test_the_root_stays_a_directory(made: tuple[object, bytes]) -> None:
    """An entry that would replace the root is an error."""
    with pytest.raises(LayerInvalid, match="replaces the root"):
        image([made])  # type: ignore[list-item]  # a parametrized entry


def test_the_last_of_two_entries_of_one_name_wins() -> None:
    """One entry each in the result."""
    layer = [entry("a", b"1"), entry("a", b"2"), entry("d/"), entry("d/x", b"3"), entry("./d/")]
    assert image(layer) == {"a": b"2", "d": "/", "d/x": b"3"}


def test_the_same_layer_twice_and_empty_layers() -> None:
    """Layers are known by their position, not by their content."""
    upper = [entry("a", b"upper"), hard_link("b", "a")]
    lower = [entry("a", b"lower")]
    assert image(lower, [], upper, lower, [], upper) == {"a": b"upper", "b": b"upper"}
    assert image(upper, lower) == {"a": b"lower", "b": b"upper"}
    assert image([], []) == {}


@pytest.mark.parametrize("name", ["n" * 256, "n" * 256 + "/x", "a/" + "n" * 256])
def test_a_component_over_255_bytes_is_refused(name: str) -> None:
    """`mksquashfs` would cut it without a word."""
    with pytest.raises(LayerInvalid, match="255"):
        image([entry(name, b"1")])
    assert len(image([entry(name.replace("n" * 256, "n" * 255), b"1")])) <= 2


def test_symlinks_without_a_target_are_refused_and_the_longest_is_kept() -> None:
    """The kernel takes 1 to 4,095 bytes."""
    assert image([symlink("a", "t" * 4095)]) == {"a": "-> " + "t" * 4095}
    with pytest.raises(LayerInvalid, match="without a target"):
        image([symlink("a", "")])


def test_names_that_are_no_text_are_kept() -> None:
    """Bytes all the way."""
    name = b"\xff\xfe\n".decode("utf-8", "surrogateescape")
    assert image([entry(name, b"1")]) == {name: b"1"}


def test_a_target_with_a_nul_is_refused() -> None:
    """PAX could say one; no file system can."""
    body = record(b"linkpath", b"a\0b")
    tar = tar_of([entry("x", body, type=b"x"), symlink("s", "t")])
    with pytest.raises(LayerInvalid, match="NUL"):
        indexed(tar)
