"""Cleaning of paths."""

from __future__ import annotations

import pytest

from shiftergw.errors import LayerInvalid
from shiftergw.oci.paths import clean

CLEANED = {
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


@pytest.mark.parametrize("path", CLEANED)
def test_paths_are_cleaned_by_components(path: bytes) -> None:
    """Slashes, dots and the root go; names that only look like them stay."""
    assert clean(path) == CLEANED[path]
    assert clean(CLEANED[path]) == CLEANED[path]


@pytest.mark.parametrize("path", [b"..", b"../a", b"/..", b"./..", b"a/../..", b"a/../../etc/x"])
def test_what_leaves_the_root_is_refused(path: bytes) -> None:
    """A path that goes above the root is an error, not a file elsewhere."""
    with pytest.raises(LayerInvalid, match="leaves the root"):
        clean(path)
