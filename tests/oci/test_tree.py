"""The order of a tree."""

from __future__ import annotations

from shiftergw.oci.tree import REGULAR, Directory, Leaf, walk


def test_a_walk_goes_by_components_in_bytewise_order() -> None:
    """Parents come first, and `a/b` before `a.b` although `.` sorts before `/`."""
    leaf = Leaf(REGULAR)
    below = Directory(children={b"b": leaf, b"B": leaf, b"\xff": leaf})
    root = Directory(children={b"a.b": leaf, b"a": below, b"b": Directory(), b"A": leaf})
    assert [path for path, _ in walk(root)] == [
        b"A",
        b"a",
        b"a/B",
        b"a/b",
        b"a/\xff",
        b"a.b",
        b"b",
    ]


def test_a_walk_goes_deeper_than_python_recurses() -> None:
    """The deepest path that the kernel accepts has 2,048 components."""
    root = bottom = Directory()
    for _ in range(2048):
        below = Directory()
        bottom.children[b"d"] = below
        bottom = below
    assert sum(1 for _ in walk(root)) == 2048
