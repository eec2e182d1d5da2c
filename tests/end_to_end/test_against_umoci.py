"""A converted image equals the tree that `umoci unpack` makes of it, entry by entry."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.images import entry, oci_index_layout, oci_layout, tar_of
from tests.parts import need
from tests.patience import patient
from tests.registries import DockerRegistry
from tests.trees import as_delivered, links, mount, tree, unsquash

HARD = tarfile.LNKTYPE
SOFT = tarfile.SYMTYPE


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Run a registry."""
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        yield running


def convert(reference: str, out: Path, *options: str) -> dict[str, Any]:
    """Run `shiftergw convert` and return the object that it prints."""
    program = Path(sys.executable).parent / "shiftergw"
    result = subprocess.run(
        [program, "convert", "--plain-http", *options, reference, out],
        capture_output=True,
        check=False,
        timeout=patient(100),
    )
    assert result.returncode == 0, result.stderr.decode()
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def compare(
    registry: DockerRegistry, layout: Path, work: Path, name: str, same: Path | None = None
) -> dict[str, Any]:
    """Push a layout, convert it, and compare every entry with umoci's unpacked tree.

    `same` is a layout of the same layers, for images that umoci cannot read.
    """
    need("umoci")
    registry.push(layout, f"{name}:1")
    out = work / "out.squashfs"
    answer = convert(f"{registry.host}/{name}:1", out)
    subprocess.run(
        ["umoci", "unpack", "--rootless", "--image", f"{same or layout}:latest", work / "bundle"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    rootfs = work / "bundle" / "rootfs"
    converted_tree = unsquash(out, work / "ours")
    expected = as_delivered(tree(rootfs))
    assert tree(converted_tree) == expected
    assert links(converted_tree) == links(rootfs)
    assert answer["entries"] == len(expected)
    if os.geteuid() == 0:
        with mount(out, work / "mounted") as root:
            assert tree(root) == expected
            assert links(root) == links(rootfs)
    return answer


def many_layers() -> list[bytes]:
    """Return 60 layers that add, replace, link and remove files."""
    lowest = tar_of([entry("base"), *(entry(f"base/{n}", b"%d" % n) for n in range(60))])
    return [lowest, *(changing_layer(n) for n in range(1, 60))]


def changing_layer(n: int) -> bytes:
    """Return a layer that rewrites a file, removes the one before it, and links."""
    directory = f"layer{n % 7}"
    return tar_of(
        [
            entry(f"base/{n}", b"rewritten in layer %d" % n, mode=0o600),
            entry(f"base/.wh.{n - 1}", b""),
            entry(directory),
            entry(f"{directory}/new{n}", b"x" * n, mode=0o4755),
            entry(f"{directory}/link{n}", b"", type=HARD, linkname=f"base/{n}"),
        ]
    )


def raw_names() -> bytes:
    """Return a layer of names that are not UTF-8, long, or odd."""
    names = [b"caf\xe9", b"\xff\xfe", b"new\nline", b"a -> b", b"n" * 255, b"d/" + b"l" * 200]
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8"
    ) as archive:
        for name in names:
            info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name))
    return out.getvalue()


CASES: dict[str, tuple[Callable[[], list[bytes]], str]] = {
    "sixty-layers": (many_layers, "gzip"),
    "hard-links": (
        lambda: [
            tar_of(
                [
                    entry("a", b"content"),
                    entry("b", b"", type=HARD, linkname="a"),
                    entry("c", b"", type=HARD, linkname="a"),
                ]
            ),
            tar_of([entry(".wh.a", b""), entry("d", b"", type=HARD, linkname="c")]),
            tar_of([entry("b", b"its own")]),
        ],
        "gzip",
    ),
    "opaque": (
        lambda: [
            tar_of([entry("d"), entry("d/old", b"1"), entry("d/sub"), entry("d/sub/old", b"2")]),
            tar_of([entry("d/new", b"3"), entry("d/.wh..wh..opq", b""), entry("d/sub")]),
        ],
        "gzip",
    ),
    "type-changes": (
        lambda: [
            tar_of(
                [
                    entry("usr"),
                    entry("usr/lib"),
                    entry("lib", b"", type=SOFT, linkname="usr/lib"),
                    entry("was-dir"),
                    entry("was-dir/file", b"x"),
                    entry("was-file", b"y"),
                    entry("was-link", b"", type=SOFT, linkname="usr"),
                ]
            ),
            tar_of(
                [
                    entry("lib/through-the-link", b"z"),
                    entry("was-dir", b"now a file"),
                    entry("was-file"),
                    entry("was-file/below", b"w"),
                    entry("was-link"),
                ]
            ),
        ],
        "gzip",
    ),
    "zstd": (lambda: many_layers()[:8], "zstd"),
    "plain": (lambda: many_layers()[:8], "plain"),
    "odd-names": (lambda: [raw_names()], "gzip"),
    "empty": (lambda: [tar_of([])], "gzip"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_image_equals_the_tree_of_umoci(
    registry: DockerRegistry, tmp_path: Path, name: str
) -> None:
    """Paths, types, modes, times, contents, targets and hard links are the same."""
    make, compression = CASES[name]
    layers = make()
    oci_layout(tmp_path / "layout", layers, compression=compression)
    oci_layout(tmp_path / "same", layers)
    compare(registry, tmp_path / "layout", tmp_path, name, tmp_path / "same")


def test_an_image_that_umoci_built(registry: DockerRegistry, tmp_path: Path) -> None:
    """Layers that umoci writes, with whiteouts, are converted like those of other programs."""
    need("umoci")
    layout, bundle = tmp_path / "layout", tmp_path / "build"

    def umoci(*arguments: str | Path) -> None:
        subprocess.run(["umoci", *arguments], check=True, stdout=subprocess.DEVNULL)

    umoci("init", "--layout", layout)
    umoci("new", "--image", f"{layout}:latest")
    umoci("unpack", "--rootless", "--image", f"{layout}:latest", bundle)
    root = bundle / "rootfs"
    (root / "etc").mkdir()
    (root / "etc" / "one").write_text("one")
    (root / "etc" / "two").write_text("two")
    (root / "opt" / "deep" / "tree").mkdir(parents=True)
    (root / "opt" / "deep" / "tree" / "file").write_text("deep")
    os.link(root / "etc" / "one", root / "etc" / "linked")
    umoci("repack", "--refresh-bundle", "--image", f"{layout}:latest", bundle)
    (root / "etc" / "two").unlink()
    (root / "opt" / "deep" / "tree" / "file").unlink()
    (root / "opt" / "deep" / "tree").rmdir()
    (root / "opt" / "deep" / "tree").symlink_to("/etc")
    (root / "etc" / "three").write_text("three")
    umoci("repack", "--image", f"{layout}:latest", bundle)
    compare(registry, layout, tmp_path, "umoci")


def test_an_image_that_buildah_built(registry: DockerRegistry, tmp_path: Path) -> None:
    """Layers that buildah commits are converted like those of other programs."""
    need("buildah")
    context = tmp_path / "context"
    (context / "usr" / "bin").mkdir(parents=True)
    (context / "usr" / "bin" / "tool").write_bytes(b"#!/bin/sh\n")
    (context / "usr" / "bin" / "tool").chmod(0o750)
    (context / "bin").symlink_to("usr/bin")
    os.link(context / "usr" / "bin" / "tool", context / "usr" / "bin" / "alias")
    options: list[str | Path] = ["--root", tmp_path / "storage", "--runroot", tmp_path / "run"]
    options += ["--storage-driver", "vfs"]

    def buildah(*arguments: str | Path) -> str:
        result = subprocess.run(
            ["buildah", *options, *arguments], check=True, capture_output=True, text=True
        )
        return str(result.stdout).strip()

    container = buildah("from", "scratch")
    buildah("add", container, context, "/")
    buildah("config", "--env", "A=1", "--entrypoint", '["/bin/tool"]', container)
    layout = tmp_path / "layout"
    buildah("commit", container, f"oci:{layout}:latest")
    compare(registry, layout, tmp_path, "buildah")


def test_an_index_is_resolved_to_the_requested_architecture(
    registry: DockerRegistry, tmp_path: Path
) -> None:
    """The image of the requested architecture is converted."""
    layers = {name: [tar_of({"which": name.encode()})] for name in ("amd64", "arm64")}
    digests = oci_index_layout(tmp_path / "layout", layers)
    registry.push(tmp_path / "layout", "index:1")
    answer = convert(f"{registry.host}/index:1", tmp_path / "out.squashfs")
    assert answer["id"] == digests["amd64"].hex


def test_a_conversion_that_fails_leaves_nothing(registry: DockerRegistry, tmp_path: Path) -> None:
    """The command exits with 1 and a reason, and leaves no file and no scratch directory."""
    program = Path(sys.executable).parent / "shiftergw"
    result = subprocess.run(
        [
            program,
            "convert",
            "--plain-http",
            f"{registry.host}/absent:1",
            tmp_path / "out.squashfs",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(60),
    )
    assert result.returncode == 1
    assert "absent" in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
