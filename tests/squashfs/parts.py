"""Trees on disk and in memory, squashfs files made of them, and readers of both."""

from __future__ import annotations

import os
import random
import socket
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shiftergw.squashfs.compressors import Compression, Compressor, decompress_with
from shiftergw.squashfs.inodes import NO_FRAGMENT, STORED_BLOCK, InodeKind
from shiftergw.squashfs.nodes import (
    DirectoryNode,
    FileData,
    FileNode,
    FragmentBlock,
    LeafNode,
    Node,
    SpecialNode,
    SymlinkNode,
)
from shiftergw.squashfs.reader import ListedEntry, SquashfsReader
from shiftergw.squashfs.tables import integers
from shiftergw.squashfs.writer import SquashfsOptions, write_metadata
from tests.parts import need

TIME = 1_700_000_000
GZIP = Compression(Compressor.GZIP, 9)
ZSTD = Compression(Compressor.ZSTD, 3)
XZ = Compression(Compressor.XZ)

KINDS = {
    stat.S_IFDIR: InodeKind.DIRECTORY,
    stat.S_IFREG: InodeKind.FILE,
    stat.S_IFLNK: InodeKind.SYMLINK,
    stat.S_IFBLK: InodeKind.BLOCK_DEVICE,
    stat.S_IFCHR: InodeKind.CHARACTER_DEVICE,
    stat.S_IFIFO: InodeKind.FIFO,
    stat.S_IFSOCK: InodeKind.SOCKET,
}


@dataclass(frozen=True)
class Facts:
    """What a file system says of an entry; the size of a directory is no fact of its tree."""

    kind: InodeKind
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    target: bytes
    device: int
    links: int


def facts_of_entries(entries: Sequence[ListedEntry]) -> dict[bytes, Facts]:
    """Return the facts of a listing by path."""
    return {
        entry.path: Facts(
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime,
            0 if entry.kind == InodeKind.DIRECTORY else entry.size,
            entry.target,
            entry.device,
            entry.links,
        )
        for entry in entries
    }


def facts_of_tree(root: Path, *, is_all_root: bool = False) -> dict[bytes, Facts]:
    """Return the facts of a tree on disk by path, also of a mounted one.

    The links of a directory are counted, because some file systems do not count them.
    """
    facts = {}
    for place, directories, files in os.walk(os.fsencode(root)):
        path = os.path.relpath(place, os.fsencode(root)).removeprefix(b".")
        facts[path] = _facts(place, is_all_root)
        for name in (*directories, *files):
            child = place + b"/" + name
            if not stat.S_ISDIR(os.lstat(child).st_mode):
                facts[os.path.relpath(child, os.fsencode(root))] = _facts(child, is_all_root)
    return facts


def _facts(path: bytes, is_all_root: bool) -> Facts:
    status = os.lstat(path)
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    is_directory = kind == InodeKind.DIRECTORY
    links = status.st_nlink
    if is_directory:
        with os.scandir(path) as children:
            links = 2 + sum(child.is_dir(follow_symlinks=False) for child in children)
    return Facts(
        kind,
        stat.S_IMODE(status.st_mode),
        0 if is_all_root else status.st_uid,
        0 if is_all_root else status.st_gid,
        int(status.st_mtime),
        0 if is_directory else status.st_size,
        os.readlink(path) if kind == InodeKind.SYMLINK else b"",  # noqa: PTH115 - bytes as they are
        status.st_rdev,
        links,
    )


def make_tree(root: Path) -> Path:
    """Make a tree of every kind of entry; owners, devices and xattrs only if root makes it."""
    noise = random.Random(1)
    root.mkdir()
    (root / "empty").touch()
    (root / "empty directory").mkdir()
    (root / "tail").write_bytes(b"content")
    (root / "block").write_bytes(noise.randbytes(4096))
    (root / "same block").write_bytes((root / "block").read_bytes())
    (root / "large").write_bytes(noise.randbytes(300_000) + bytes(100_000) + b"end")
    (root / "soft").write_bytes(b"abcdefgh" * 150_000)
    with (root / "sparse").open("wb") as sparse:
        sparse.seek(3 << 20)
        sparse.write(b"between holes")
        sparse.truncate(5 << 20)
    (root / "link").symlink_to("tail")
    (root / "long link").symlink_to("x" * 4000)
    (root / ("n" * 255)).write_bytes(b"long")
    (root / os.fsdecode(b"\xff\n -> \x01")).write_bytes(b"raw")
    deep = root.joinpath(*"abcdefgh")
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"deep")
    os.link(deep / "file", root / "another name")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    numbers = root / "many"
    numbers.mkdir()
    for number in range(600):
        (numbers / f"file {number}").write_bytes(b"%d" % number)
    (root / "tail").chmod(0o4755)
    numbers.chmod(0o1777)
    if os.geteuid() == 0:
        os.mknod(root / "character", 0o600 | stat.S_IFCHR, os.makedev(5, 300))
        os.mknod(root / "disk", 0o660 | stat.S_IFBLK, os.makedev(259, 70_000))
        os.chown(numbers, 1000, 70_000)
        os.chown(root / "link", 2**32 - 2, 7, follow_symlinks=False)
    for place, _, files in os.walk(root):
        for name in (*files, "."):
            os.utime(Path(place) / name, (TIME, TIME + len(name)), follow_symlinks=False)
    return root


def make_squashfs(root: Path, output: Path, *options: str) -> Path:
    """Make a squashfs file of a tree with `mksquashfs`."""
    argv = [need("mksquashfs"), str(root), str(output), "-noappend", "-no-progress", "-quiet"]
    subprocess.run([*argv, "-processors", "1", *options], check=True, stdout=subprocess.DEVNULL)
    return output


def read_file(path: Path) -> SquashfsReader:
    """Return the reader of a file, which it reads at once."""
    with path.open("rb") as file:
        return SquashfsReader(partial(os.pread, file.fileno()), path.stat().st_size)


def read_bytes(image: bytes | bytearray) -> SquashfsReader:
    """Return the reader of a file in memory."""
    return SquashfsReader(lambda length, offset: bytes(image[offset : offset + length]), len(image))


def content_of(path: Path, reader: SquashfsReader, data: FileData) -> bytes:
    """Return the content of a file, from its data blocks and its fragment."""
    tables = reader.tables
    block_size = tables.superblock.block_size
    decompress = decompress_with(tables.compression.compressor)
    content = b""
    with path.open("rb") as file:

        def unpack(start: int, word: int) -> bytes:
            file.seek(start)
            block = file.read(word & ~STORED_BLOCK)
            return block if word & STORED_BLOCK else decompress(block, block_size)

        position = data.start
        for word in integers("I", data.blocks):
            length = min(block_size, data.size - len(content))
            content += unpack(position, word) if word else bytes(length)
            position += word & ~STORED_BLOCK
        if data.fragment != NO_FRAGMENT:
            tail = unpack(*tables.fragments[data.fragment])
            content += tail[data.offset : data.offset + data.size % block_size]
    return content


def nodes_of(
    entries: Sequence[ListedEntry], distance: int = 0, fragments: int = 0
) -> DirectoryNode:
    """Return a listing as a tree that can be written.

    Its data is `distance` bytes and `fragments` fragment blocks further on.
    """
    children: dict[bytes, list[tuple[bytes, Node]]] = {b"": []}
    for entry in entries[1:]:
        parent, _, name = entry.path.rpartition(b"/")
        node: Node
        common = (entry.mode, entry.mtime, entry.uid, entry.gid)
        link = entry.number if entry.links > 1 else None
        if entry.kind == InodeKind.DIRECTORY:
            children[entry.path] = []
            node = DirectoryNode(children[entry.path], *common)
        elif entry.kind == InodeKind.FILE:
            node = FileNode(entry.data.shift(distance, fragments), *common, entry.links, link)
        elif entry.kind == InodeKind.SYMLINK:
            node = SymlinkNode(entry.target, *common, entry.links, link)
        else:
            node = SpecialNode(entry.kind, entry.device, *common, entry.links, link)
        children[parent].append((name, node))
    root = entries[0]
    return DirectoryNode(children[b""], root.mode, root.mtime, root.uid, root.gid)


def write_image(
    root: DirectoryNode,
    options: SquashfsOptions,
    data: bytes = b"",
    fragments: Sequence[FragmentBlock] = (),
) -> bytes:
    """Return a whole file of a tree; `data` is its data blocks."""
    start = options.options_block() + data
    pieces: list[bytes] = []
    position = options.data_start() + len(data)
    block = write_metadata(root, fragments, options, position, pieces.append)
    return b"".join([block.pack(), start, *pieces])


def data_of(path: Path) -> bytes:
    """Return the data blocks and fragment blocks of a squashfs file."""
    tables = read_file(path).tables
    return path.read_bytes()[tables.data_start : tables.superblock.inode_table]


def shift_fragments(path: Path, distance: int) -> list[FragmentBlock]:
    """Return the fragment blocks of a squashfs file, `distance` bytes further on."""
    fragments = read_file(path).tables.fragments
    return [FragmentBlock(start + distance, size) for start, size in fragments]


def rewrite(source: Path, output: Path) -> Path:
    """Write a squashfs file anew: the same data blocks, with metadata of our own."""
    reader = read_file(source)
    block = reader.tables.superblock
    options = SquashfsOptions(reader.tables.compression, block.block_size, block.created)
    distance = options.data_start() - reader.tables.data_start
    root = nodes_of(list(reader.entries()), distance)
    fragments = shift_fragments(source, distance)
    output.write_bytes(write_image(root, options, data_of(source), fragments))
    return output


def files_named(count: int, name: bytes = b"file %07d") -> Iterator[tuple[bytes, LeafNode]]:
    """Yield many empty files."""
    for number in range(count):
        yield name % number, FileNode(mtime=TIME)


def listing_of(squashfs: Path) -> list[bytes]:
    """Return the lines of `unsquashfs -lln -UTC`, without the sizes of directories."""
    argv = [need("unsquashfs"), "-lln", "-UTC", str(squashfs)]
    output = subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout
    return [
        b" ".join(line.split()[:2] + line.split()[3:]) if line.startswith(b"d") else line
        for line in output.splitlines()
    ]
