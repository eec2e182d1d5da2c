"""Streams of plans: read by `tarfile` and by a real `mksquashfs`, unread, and stopped."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings

from shiftergw.build.stream import stream
from shiftergw.errors import LayerInvalid
from shiftergw.model.images import LayerFile
from shiftergw.oci.compression import PIECE, StopRequested
from shiftergw.oci.flatten import Plan
from shiftergw.oci.header import END
from shiftergw.oci.tree import REGULAR, Leaf
from tests.images import compress, entry, tar_of
from tests.oci.layers import Layer, contents, groups, hard_link, plan_layers, stream_plan, symlink
from tests.oci.model import LAYERS, InvalidLayers, flatten_model
from tests.oci.test_sparse import sparse_file
from tests.parts import need
from tests.trees import links, unsquash

NOISE = random.Random(1).randbytes(3 * PIECE + 77)


def stream_into(plan: Plan, layers: Sequence[LayerFile], fd: int, reports: list[int]) -> None:
    """Stream into a descriptor."""
    stream(plan, layers, fd, threading.Event(), lambda done, _: reports.append(done))


def squash_stream(plan: Plan, layers: Sequence[LayerFile], output: Path) -> Path:
    """Stream through a pipe into a real `mksquashfs`, which must print no message."""
    argv = [need("mksquashfs"), "-", str(output), "-tar", "-no-progress", "-quiet", "-all-root"]
    argv += ["-no-xattrs", "-root-mode", "755"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        stream(plan, layers, child.stdin.fileno(), threading.Event(), lambda _, __: None)
        child.stdin.close()
        assert child.stderr.read() == b""
    assert child.returncode == 0
    return output


def test_mksquashfs_makes_of_the_stream_what_was_planned(tmp_path: Path) -> None:
    """Every kind of entry, over layers of every compression, with its content and its links."""
    sparse = sparse_file(tmp_path / "sparse", 3, 100_000)
    argv = [need("tar"), "--sparse", "-C", str(tmp_path), "-cf", "-", "sparse"]
    holes = subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout
    long = "/".join(["n" * 255] * 3)
    strange = b"\xff\xfe \n -> x".decode("utf-8", "surrogateescape")
    lower = [
        entry("usr/lib/"),
        entry("usr/lib/big", NOISE),
        entry("usr/lib/gone", b"gone"),
        symlink("lib", "usr/lib"),
        entry("empty", b""),
        hard_link("empty2", "empty"),
        hard_link("lib/link", "z-late"),
        entry("z-late", b"late"),
    ]
    upper = [
        entry("lib/.wh.gone", b""),
        entry(long, b"long name"),
        symlink(long + "/../l", "t" * 4095),
        hard_link(long + "/../h", long),
        hard_link("a-first", "usr/lib/big"),
        entry(strange, b"strange"),
        symlink("s1", "x"),
        hard_link("s2", "s1"),
        entry("n" * 100, b"100 bytes"),
        entry("n" * 101, b"101 bytes"),
    ]
    tars = [compress(tar_of(lower), "zstd"), holes, compress(tar_of(upper), "gzip")]
    plan, layers = plan_layers(tmp_path, *tars)
    expected = contents(stream_plan(plan, layers))
    assert (expected["sparse"], expected["usr/lib/big"]) == (sparse, NOISE)
    image = squash_stream(plan, layers, tmp_path / "image")
    read = subprocess.run([need("sqfs2tar"), image], check=True, stdout=subprocess.PIPE)
    assert contents(read.stdout) == expected
    tree = unsquash(image, tmp_path / "tree")
    assert links(tree) == {frozenset(map(os.fsencode, group)) for group in groups(plan)}
    assert (tree / "a-first").read_bytes() == NOISE
    assert (tree / "usr/lib/link").read_bytes() == b"late"
    count = subprocess.run(["unsquashfs", "-s", image], check=True, stdout=subprocess.PIPE).stdout
    assert b"Number of inodes %d\n" % plan.inodes in count


@settings(max_examples=25)
@given(LAYERS)
def test_random_images_come_out_of_mksquashfs_as_the_model_says(random_layers: list[Layer]) -> None:
    """The stream drops, doubles and renames no entry, whatever the layers contain."""
    try:
        expected = flatten_model(random_layers)
    except InvalidLayers:
        return
    with tempfile.TemporaryDirectory() as directory:
        plan, layers = plan_layers(Path(directory), *(tar_of(layer) for layer in random_layers))
        image = squash_stream(plan, layers, Path(directory) / "image")
        read = subprocess.run([need("sqfs2tar"), image], check=True, stdout=subprocess.PIPE)
    assert contents(read.stdout) == expected.contents


def test_the_order_is_what_mksquashfs_needs(tmp_path: Path) -> None:
    """Directories, entries without data, data in the layers' order; links after their targets."""
    lower = [entry("z", b"1"), entry("b/x", b"2"), hard_link("a", "z"), symlink("s", "z")]
    upper = [entry("d/e/f", b"3"), entry("d/c", b""), hard_link("y", "b/x")]
    plan, layers = plan_layers(tmp_path, tar_of(lower), tar_of(upper))
    archive = stream_plan(plan, layers)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        order = [(info.name, info.type) for info in tar]
    assert order == [
        ("b", tarfile.DIRTYPE),
        ("d", tarfile.DIRTYPE),
        ("d/e", tarfile.DIRTYPE),
        ("s", tarfile.SYMTYPE),
        ("d/c", tarfile.REGTYPE),
        ("z", tarfile.REGTYPE),
        ("a", tarfile.LNKTYPE),
        ("y", tarfile.REGTYPE),
        ("b/x", tarfile.LNKTYPE),
        ("d/e/f", tarfile.REGTYPE),
    ]
    assert archive.endswith(END)
    assert stream_plan(plan, layers) == archive


def test_modes_and_times_are_those_of_the_plan(tmp_path: Path) -> None:
    """Directories, files, symlinks and links: root's, with the planned mode and time."""
    entries = [
        entry("d/", mode=0o1777, mtime=2**32 - 1),
        entry("d/f", b"1", mode=0o600, mtime=5),
        hard_link("g", "d/f"),
        symlink("s", "t"),
    ]
    plan, layers = plan_layers(tmp_path, tar_of(entries))
    with tarfile.open(fileobj=io.BytesIO(stream_plan(plan, layers))) as tar:
        headers = {info.name: (info.mode, info.mtime, info.uid, info.gid) for info in tar}
    assert headers == {
        "d": (0o1777, 2**32 - 1, 0, 0),
        "d/f": (0o644, 5, 0, 0),
        "g": (0o644, 5, 0, 0),
        "s": (0o777, 1_700_000_000, 0, 0),
    }


def test_only_what_is_needed_is_read(tmp_path: Path) -> None:
    """Layers are read to their last necessary byte, and not at all if they have none."""
    whiteout_name, used = tar_of({"a": b"old"}), tar_of({"b": b"1", "c": bytes(4 * PIECE)})
    plan, layers = plan_layers(tmp_path, whiteout_name, used, tar_of({"a": b"new", ".wh.c": b""}))
    layers[0].path.unlink()
    layers[1].path.write_bytes(used[: 2 * PIECE])
    assert contents(stream_plan(plan, layers)) == {"a": b"new", "b": b"1"}


@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
def test_a_layer_that_has_changed_is_an_error(tmp_path: Path, compression: str) -> None:
    """A layer that is shorter than its index is never padded."""
    tar = tar_of({"a": NOISE})
    plan, layers = plan_layers(tmp_path, tar, compression=compression)
    layers[0].path.write_bytes(compress(tar[: len(tar) // 2], compression))
    with pytest.raises(LayerInvalid, match="shorter"):
        stream_plan(plan, layers)


def test_progress_rises_to_the_size_of_the_files(tmp_path: Path) -> None:
    """Progress counts the bytes of the plan's files, each inode once."""
    files = {"a": NOISE, **{f"small{n}": bytes(n) for n in range(100)}}
    plan, layers = plan_layers(tmp_path, tar_of(files))
    reports: list[int] = []
    with (tmp_path / "out").open("wb") as out:
        stream_into(plan, layers, out.fileno(), reports)
    assert reports == sorted(reports)
    assert reports[-1] == plan.report.size
    assert len(reports) < 80


def test_a_reader_that_is_gone_is_a_broken_pipe(tmp_path: Path) -> None:
    """The caller gets `BrokenPipeError`, because it knows why `mksquashfs` ended."""
    plan, layers = plan_layers(tmp_path, tar_of({"a": NOISE}))
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with pytest.raises(BrokenPipeError):
        stream_into(plan, layers, write_fd, [])
    os.close(write_fd)


def test_the_flag_ends_the_stream(tmp_path: Path) -> None:
    """Soon after the flag is set no more is written, although the reader would take it."""
    plan, layers = plan_layers(tmp_path, tar_of({f"f{n}": NOISE for n in range(20)}))
    stop = threading.Event()
    path = tmp_path / "out"
    with path.open("wb") as out, pytest.raises(StopRequested):
        stream(plan, layers, out.fileno(), stop, lambda done, _: stop.set() if done else None)
    assert path.stat().st_size < 3 * len(NOISE)


def test_a_flag_that_is_set_before_writes_nothing(tmp_path: Path) -> None:
    """The flag also stops the stream of an image without data."""
    plan, layers = plan_layers(tmp_path, tar_of([entry("d/")]))
    stop = threading.Event()
    stop.set()
    path = tmp_path / "out"
    with path.open("wb") as out, pytest.raises(StopRequested):
        stream(plan, layers, out.fileno(), stop, lambda _, __: None)
    assert path.stat().st_size == 0


def test_a_slow_reader_holds_the_stream_back(tmp_path: Path) -> None:
    """Data that the pipe cannot hold waits in the layer, not in memory, and arrives."""
    plan, layers = plan_layers(tmp_path, tar_of({f"f{n}": NOISE for n in range(8)}))
    read_fd, write_fd = os.pipe()
    reports: list[int] = []
    writer = threading.Thread(target=stream_into, args=(plan, layers, write_fd, reports))
    writer.start()
    output = os.read(read_fd, 4096)
    assert (reports or [0])[-1] < len(NOISE) * 8
    assert writer.is_alive()
    while len(output) < 8 * len(NOISE) or not output.endswith(END):
        output += os.read(read_fd, 1 << 20)
    writer.join()
    os.close(read_fd)
    os.close(write_fd)
    assert contents(output) == {f"f{n}": NOISE for n in range(8)}


def test_files_of_9_gib_have_their_size_in_the_header(tmp_path: Path) -> None:
    """A sparse file of 9 GiB is announced right, and its zeros are made on the way."""
    size = 9 * 2**30
    plan, _ = plan_layers(tmp_path, tar_of({"f": b"x"}))
    leaf = plan.root.children[b"f"]
    assert isinstance(leaf, Leaf)
    leaf.kind, leaf.size, leaf.sparse = REGULAR, size, ()
    read_fd, write_fd = os.pipe()
    layers = [LayerFile(tmp_path / "layer")]
    (tmp_path / "layer").write_bytes(b"")

    def write() -> None:
        with pytest.raises(BrokenPipeError):
            stream_into(plan, layers, write_fd, [])

    writer = threading.Thread(target=write)
    writer.start()
    info = tarfile.TarInfo.frombuf(os.read(read_fd, 512), "utf-8", "strict")
    assert (info.name, info.size) == ("f", size)
    assert os.read(read_fd, 4096) == bytes(4096)
    os.close(read_fd)
    writer.join()
    os.close(write_fd)
