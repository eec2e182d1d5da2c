"""Normalization of paths."""

from __future__ import annotations

import pytest

from shiftergw.errors import LayerInvalid
from shiftergw.oci.paths import clean

NORMAL_PATHS = {
    b"usr/lib": b"usr/lib",
    b"./usr/lib/": b"usr/lib",
    b"/usr//lib": b"usr/lib",
    b"//usr/./lib/.": b"usr/lib",
    b"./": b"",
    b".": b"",
    b"/": b"",
    b"": b"",
    b"././/dev/x": b"dev/x",
    b"foo..bar": b"foo..bar",
    b"..foo": b"..foo",
    b".foo": b".foo",
    b"a/.foo": b"a/.foo",
    b"a/...": b"a/...",
    b"a/../b": b"b",
    b"a/b/../../c": b"c",
    b"a/..": b"",
    b"\xff\xfe/\n": b"\xff\xfe/\n",
}


@pytest.mark.parametrize("path", NORMAL_PATHS)
def test_paths_are_normalized_by_components(path: bytes) -> None:
    """Slashes, dots and the root are removed; similar names stay."""
    assert clean(path) == NORMAL_PATHS[path]
    assert clean(NORMAL_PATHS[path]) == NORMAL_PATHS[path]


@pytest.mark.parametrize("path", [b"..", b"../a", b"/..", b"./..", b"a/../..", b"a/../../etc/x"])
def test_paths_that_leave_the_root_are_rejected(path: bytes) -> None:
    """A path above the root is an error."""
    with pytest.raises(LayerInvalid, match="leaves the root"):
        clean(path)
