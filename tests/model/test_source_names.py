"""Names of files, directories and pipes are distinguished from references to registries."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftergw.errors import BadRequest
from shiftergw.model.source_names import LocalSourceName, parse_source


@pytest.mark.parametrize(
    ("text", "kind", "path", "selector"),
    [
        ("oci:dir", "oci", "dir", ""),
        ("oci:/tmp/layout:24.04", "oci", "/tmp/layout", "24.04"),
        ("oci:layout:quay.io/a/b:1", "oci", "layout", "quay.io/a/b:1"),
        ("oci:layout:@1", "oci", "layout", "@1"),
        ("oci-archive:x.tar:1", "oci-archive", "x.tar", "1"),
        ("docker-archive:x.tar", "docker-archive", "x.tar", ""),
        ("docker-archive:x.tar:busybox:1", "docker-archive", "x.tar", "busybox:1"),
        ("docker-archive:x.tar:@0", "docker-archive", "x.tar", "@0"),
        ("dir:/tmp/a:b", "dir", "/tmp/a:b", ""),
        ("sif:a b.sif", "sif", "a b.sif", ""),
        ("squashfs:x", "squashfs", "x", ""),
        ("/x/y", "path", "/x/y", ""),
        ("./ubuntu", "path", "ubuntu", ""),
        ("..", "path", "..", ""),
        ("../a:b.tar", "path", "../a:b.tar", ""),
        ("file:///tmp/x.tar", "path", "/tmp/x.tar", ""),
        ("file:/tmp/x.tar", "path", "/tmp/x.tar", ""),
        ("image.tar", "path", "image.tar", ""),
        ("sub/image.TAR.gz", "path", "sub/image.TAR.gz", ""),
        ("lolcow_latest.sif", "path", "lolcow_latest.sif", ""),
        ("-", "stdin", "-", ""),
    ],
)
def test_sources_that_are_no_registry(text: str, kind: str, path: str, selector: str) -> None:
    """A prefix, a path or a usual suffix makes a name one of a file or a directory."""
    source = parse_source(text)
    assert source is not None
    assert (source.kind, source.path, source.selector) == (kind, Path(path), selector)
    assert parse_source(str(source)) == source


@pytest.mark.parametrize(
    "text",
    [
        "ubuntu",
        "ubuntu:24.04",
        "docker://ubuntu",
        "oci://ghcr.io/a/b:1",
        "oci:5000/x:1",
        "dir:5000/x",
        "sif:443/x",
        "oci",
        "docker/oci:dir",
        "ghcr.io/a/b.sif",
        "localhost/image.tar",
        "image.tar:1",
        "//ubuntu",
        "docker-daemon:ubuntu:1",
        "library://ann/x",
        "",
    ],
)
def test_names_of_registries_and_other_services(text: str) -> None:
    """All other names are left to `ImageReference`, which reads or refuses them."""
    assert parse_source(text) is None


@pytest.mark.parametrize(
    "text", ["oci:", "sif:", "docker-archive::a:1", "oci:dir:", "dir:a\nb", "/tmp/a\0b"]
)
def test_names_that_no_file_has(text: str) -> None:
    """A prefix without a path, and characters that no path should have, are explained."""
    with pytest.raises(BadRequest) as caught:
        parse_source(text)
    assert "\n" not in str(caught.value)


def test_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the home directory behind a prefix, too, where no shell replaces it."""
    monkeypatch.setenv("HOME", "/home/ann")
    assert parse_source("~/x.tar") == LocalSourceName("path", Path("/home/ann/x.tar"))
    assert parse_source("sif:~/x.sif") == LocalSourceName("sif", Path("/home/ann/x.sif"))
    with pytest.raises(BadRequest, match="home directory"):
        parse_source("~nobody-of-this-name/x")
