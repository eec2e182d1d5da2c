"""Indexes of archives in every format, and errors for damaged ones."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.errors import BlobCorrupt, ImageTooLarge, LayerInvalid
from shiftergw.model.build_options import BuildLimits
from shiftergw.model.images import Digest
from shiftergw.oci.budget import Budget
from shiftergw.oci.compression import StopRequested, opening_of
from shiftergw.oci.header import BLOCK, END, header, padding
from shiftergw.oci.tar import DIRECTORY, HARDLINK, Entry, index_layer
from shiftergw.oci.tree import REGULAR, SPECIAL, SYMLINK
from tests.images import compress, entry, tar_of
from tests.oci.layers import (
    LIMITS,
    contents,
    hard_link,
    index_tar,
    plan_layers,
    special,
    stream_plan,
    symlink,
)
from tests.oci.test_extended import record
from tests.parts import need

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
LONG = "/".join(["component" * 5] * 5)

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60)
NAMES = st.lists(TEXT.filter(lambda t: t not in {".", ".."}), min_size=1, max_size=6).map("/".join)


def path_of(result: Entry) -> bytes:
    """Return the whole path of an entry."""
    return b"/".join((result.parent, result.name)).lstrip(b"/")


def summary(tar: bytes) -> list[tuple[int, str, int, str]]:
    """Return kind, path, size and target of each entry."""
    return [
        (e.kind, os.fsdecode(path_of(e)), e.size, os.fsdecode(e.target)) for e in index_tar(tar)
    ]


@pytest.mark.parametrize("tar_format", FORMATS)
def test_every_format_reads_the_same(tar_format: int) -> None:
    """Kinds, names, sizes and targets do not depend on the format."""
    tar = tar_of(
        [
            entry("./"),
            entry("./usr/"),
            entry("usr/a", b"12345"),
            entry(LONG, b"long"),
            symlink("link", "usr/a"),
            hard_link("usr/hard", "usr/a"),
            special("char", tarfile.CHRTYPE),
            special("block", tarfile.BLKTYPE),
            special("fifo", tarfile.FIFOTYPE),
            entry("contiguous", b"c", type=tarfile.CONTTYPE),
            entry("old", b"o", type=tarfile.AREGTYPE),
            entry("olddirectory/", b"", type=tarfile.AREGTYPE),
        ],
        tar_format,
    )
    assert summary(tar) == [
        (DIRECTORY, "", 0, ""),
        (DIRECTORY, "usr", 0, ""),
        (REGULAR, "usr/a", 5, ""),
        (REGULAR, LONG, 4, ""),
        (SYMLINK, "link", 0, "usr/a"),
        (HARDLINK, "usr/hard", 0, "usr/a"),
        (SPECIAL, "char", 0, ""),
        (SPECIAL, "block", 0, ""),
        (SPECIAL, "fifo", 0, ""),
        (REGULAR, "contiguous", 1, ""),
        (REGULAR, "old", 1, ""),
        (DIRECTORY, "olddirectory", 0, ""),
    ]


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=2000), st.integers(0, 0o7777)), max_size=8),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_any_names_and_data_are_indexed(
    files: list[tuple[str, bytes, int]], tar_format: int
) -> None:
    """Names of any text, modes, and offsets with the exact bytes are in the index."""
    tar = tar_of([entry(name, data, mode=mode) for name, data, mode in files], tar_format)
    result = index_tar(tar)
    assert [(path_of(e), e.mode) for e in result] == [(n.encode(), m) for n, _, m in files]
    assert [tar[e.offset : e.offset + e.size] for e in result] == [data for _, data, _ in files]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_names_that_are_not_utf_8(tar_format: int) -> None:
    """The longest path and target, and names that are not UTF-8, are kept."""
    longest = "/".join(["n" * 255] * 15 + ["n" * 254])
    assert len(longest) == 4094
    strange = b"\xff\xfe/\x01".decode("utf-8", "surrogateescape")
    tar = tar_of([symlink(longest, "t" * 4095), hard_link(strange, longest)], tar_format)
    first, second = index_tar(tar)
    assert (path_of(first), first.target) == (longest.encode(), b"t" * 4095)
    assert (path_of(second), second.target) == (b"\xff\xfe/\x01", longest.encode())


@pytest.mark.parametrize("archive_bytes", [entry("n" * 4096, b""), symlink("link", "t" * 4096)])
def test_names_that_are_too_long_for_the_kernel_are_rejected(
    archive_bytes: tuple[tarfile.TarInfo, bytes],
) -> None:
    """A path or target of more than 4,095 bytes cannot be mounted."""
    with pytest.raises(LayerInvalid, match="4095"):
        index_tar(tar_of([archive_bytes]))


def test_the_prefix_of_ustar_belongs_to_the_name_and_that_of_gnu_does_not() -> None:
    """Old GNU headers have times where POSIX has the start of the path."""
    block = bytearray(header(b"name", 0o644, 0, b"0"))
    block[345:351] = b"prefix"
    result = []
    for magic in (b"ustar\x0000", b"ustar  \0"):
        block[257:265] = magic
        block[148:156] = b"%06o\0 " % sum(block[:148] + b" " * 8 + block[156:])
        result += index_tar(bytes(block) + END)
    assert [path_of(e) for e in result] == [b"prefix/name", b"name"]


def test_pax_headers_belong_to_one_entry() -> None:
    """A PAX header ends with its entry; global headers are ignored."""
    body = record(b"path", b"from-global") + record(b"size", b"77")
    globally = header(b"g", 0o644, 0, b"g", len(body)) + body + padding(len(body))
    xattrs = entry("with", b"1", pax_headers={"SCHILY.xattr.security.capability": "x"})
    time = entry("time", b"2", mtime=1700000000.75)
    result = index_tar(globally + tar_of([xattrs, time, entry("plain", b"3")]))
    assert [(path_of(e), e.size, e.xattrs) for e in result] == [
        (b"with", 1, True),
        (b"time", 1, False),
        (b"plain", 1, False),
    ]
    assert result[1].mtime == 1_700_000_000


@pytest.mark.parametrize("kind", [b"0", b"x"])
def test_sizes_of_pax_and_base_256_go_beyond_8_gib(kind: bytes) -> None:
    """Sizes beyond octal digits are read, and missing data is noticed."""
    size = 9 * 2**30
    if kind == b"x":
        body = record(b"size", b"%d" % size)
        tar = header(b"x", 0, 0, b"x", len(body)) + body + padding(len(body))
        tar += header(b"f", 0o644, 0, b"0")
    else:
        tar = header(b"f", 0o644, 0, b"0", size)
    with pytest.raises(LayerInvalid, match="ends within"):
        index_tar(tar + END)


def test_links_and_directories_have_no_data() -> None:
    """The size of such an entry does not move the next header; a GNU dumpdir has data."""
    names = header(b"d", 0o755, 0, b"5", 700) + header(b"l", 0o777, 0, b"1", 700, b"t")
    dump = header(b"dump", 0o755, 0, b"D", 3) + b"abc" + padding(3)
    result = index_tar(names + dump + header(b"f", 0o644, 0, b"0") + END)
    assert [path_of(e) for e in result] == [b"d", b"l", b"dump", b"f"]


def test_neighbors_share_the_bytes_of_their_directory() -> None:
    """A million files of one directory do not store its name a million times."""
    first, second = index_tar(tar_of({"usr/lib/a": b"", "usr/lib/b": b""}))
    assert first.parent is second.parent


@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
def test_the_whole_stream_is_hashed(tmp_path: Path, compression: str) -> None:
    """The `diff_id` includes the bytes after the end blocks; a different digest is an error."""
    tar = tar_of({"a": b"1"}) + b"after the end" * 50_000
    path = tmp_path / "layer"
    path.write_bytes(compress(tar, compression))
    index = index_layer(opening_of(path), Digest.of(tar), Budget(LIMITS).layer(), Event())
    assert [path_of(e) for e in index.entries] == [b"a"]
    with pytest.raises(BlobCorrupt):
        index_layer(opening_of(path), Digest.of(b""), Budget(LIMITS).layer(), Event())


@pytest.mark.parametrize("tar", [b"", END, bytes(BLOCK), bytes(10240)])
def test_empty_layers_are_empty(tar: bytes) -> None:
    """No bytes, or only zeros, are a layer without entries."""
    assert index_tar(tar) == []


def test_missing_end_blocks_are_accepted() -> None:
    """Some builders omit them."""
    tar = header(b"f", 0o644, 0, b"0")
    assert len(index_tar(tar)) == len(index_tar(tar + bytes(BLOCK))) == 1


FILE = header(b"f", 0o644, 0, b"0", 3) + b"abc" + padding(3)


@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd"])
@pytest.mark.parametrize("rest", [b"", bytes(1), bytes(500)])
def test_the_end_of_the_file_is_the_end_of_the_archive(
    tmp_path: Path, rest: bytes, compression: str
) -> None:
    """The end may lack padding, but the data of the last file must be complete."""
    tar = FILE + header(b"g", 0o644, 0, b"0", 3) + b"xyz" + rest
    plan, layers = plan_layers(tmp_path, tar, compression=compression)
    assert contents(stream_plan(plan, layers)) == {"f": b"abc", "g": b"xyz"}
    with pytest.raises(LayerInvalid, match="ends within"):
        index_tar(tar[: BLOCK * 3 + 2])


LONG_NAME = header(b"n" * 200, 0o644, 0, b"0")
DAMAGES = {
    "no archive": (b"this is no archive " * 100, "neither a tar archive"),
    "short": (b"short", "ends within"),
    "cut header": (FILE + FILE[:300], "ends within"),
    "cut data": (FILE[:513], "ends within"),
    "cut long name": (LONG_NAME[:600], "ends within"),
    "long name of nothing": (LONG_NAME[:1024], "ends within"),
    "long name before the end": (LONG_NAME[:1024] + END, "ends within"),
    "changed header": (FILE + b"x" + FILE[1:], "damaged tar header"),
    "lone zero block": (FILE + bytes(BLOCK) + FILE, "lone zero block"),
    "unknown type": (header(b"f", 0o644, 0, b"Q") + END, "a type that"),
    "huge extended header": (header(b"x", 0, 0, b"x", 2**20 + 1) + bytes(2**21), "extended"),
    "huge long name": (header(b"x", 0, 0, b"L", 2**40), "extended"),
    "leaves the root": (header(b"a/../../b", 0o644, 0, b"0") + END, "leaves the root"),
}


@pytest.mark.parametrize("why", DAMAGES)
def test_damage_is_rejected(why: str) -> None:
    """An archive that is truncated, changed or of another type is an error."""
    tar, message = DAMAGES[why]
    with pytest.raises(LayerInvalid, match=message):
        index_tar(tar)


def test_negative_sizes_are_rejected() -> None:
    """A negative size would lead backward."""
    block = bytearray(header(b"f", 0o644, 0, b"0"))
    block[124:136] = b"\xff" * 11 + b"\x00"
    block[148:156] = b"%06o\0 " % sum(block[:148] + b" " * 8 + block[156:])
    with pytest.raises(LayerInvalid, match="negative"):
        index_tar(bytes(block) + END)


@given(st.binary(max_size=3000), st.integers(0, 2600))
def test_any_bytes_are_an_index_or_a_clear_error(noise: bytes, at: int) -> None:
    """No content of an archive raises any other exception."""
    tar = bytearray(tar_of([entry(LONG + LONG, b"data"), symlink("l", LONG * 3)]))
    tar[at : at + len(noise)] = noise
    try:
        index_tar(bytes(tar))
    except LayerInvalid as error:
        assert error.what.startswith("A layer")  # noqa: PT017 - it may be an index too


def test_too_many_entries_are_rejected() -> None:
    """The limit on entries applies to a single layer, too."""
    tar = tar_of({"a": b"", "b": b""})
    assert len(index_tar(tar, BuildLimits(layers_entries=2))) == 2
    with pytest.raises(ImageTooLarge, match="more than 1 entries") as caught:
        index_tar(tar, BuildLimits(layers_entries=1))
    assert "`MaxLayersEntries`" in caught.value.remedy


def test_a_decompression_bomb_is_rejected() -> None:
    """A layer that unpacks to far more than the limits is not read to its end."""
    with pytest.raises(ImageTooLarge, match="unpack"):
        index_tar(tar_of({"a": bytes(2_000_000)}), BuildLimits(size=1000, entries=1))


def test_indexing_can_be_stopped(tmp_path: Path) -> None:
    """A set flag ends the work at the next piece; progress is reported until then."""
    path = tmp_path / "layer"
    path.write_bytes(tar_of({"a": bytes(5_000_000)}))
    stop = Event()
    positions: list[int] = []

    def report(read: int) -> None:
        positions.append(read)
        stop.set()

    with pytest.raises(StopRequested):
        index_layer(opening_of(path), None, Budget(LIMITS).layer(), stop, report)
    assert len(positions) == 1


def test_archives_of_gnu_tar_are_read(tmp_path: Path) -> None:
    """A real `tar` of a real directory, in both of its formats."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ("n" * 120)).write_bytes(b"x" * 1000)
    (tmp_path / "d" / "link").symlink_to("t" * 300)
    for kind in ("gnu", "posix"):
        argv = [need("tar"), f"--format={kind}", "-C", str(tmp_path), "-cf", "-", "./d"]
        tar = subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout
        assert sorted(summary(tar), key=lambda row: row[1]) == [
            (DIRECTORY, "d", 0, ""),
            (SYMLINK, "d/link", 0, "t" * 300),
            (REGULAR, "d/" + "n" * 120, 1000, ""),
        ]
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            offsets = {info.name: info.offset_data for info in archive if info.isreg()}
        result = next(e for e in index_tar(tar) if e.kind == REGULAR)
        assert offsets["./" + os.fsdecode(path_of(result))] == result.offset
