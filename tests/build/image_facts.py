"""The tree of a squashfs file as the reader of the program, `sqfs2tar`, and the kernel show it."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from shiftergw.squashfs.inodes import InodeKind
from tests.build.parts import mount
from tests.parts import lacking, need
from tests.squashfs.parts import Facts, facts_of_entries, facts_of_tree, read_file


@dataclass(frozen=True)
class ImageFacts:
    """The tree of an image: facts by path, contents as the model has them, and hard links.

    A content is the data of a file, `/` for a directory, or `-> target`.
    """

    entries: dict[bytes, Facts]
    contents: dict[str, bytes | str]
    groups: set[frozenset[str]]


def facts_of_image(image: Path) -> ImageFacts:
    """Return the facts that the reader of the program shows, and the contents of `sqfs2tar`."""
    entries = facts_of_entries(list(read_file(image).entries()))
    argv = [need("sqfs2tar"), str(image)]
    tar = subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout
    contents: dict[str, bytes | str] = {}
    groups: dict[str, set[str]] = {}
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for info in archive:
            name = info.name
            assert name not in contents
            if info.isdir():
                contents[name] = "/"
            elif info.issym():
                contents[name] = f"-> {info.linkname}"
            elif info.islnk():
                groups.setdefault(info.linkname, {info.linkname}).add(name)
                contents[name] = contents[info.linkname]
            else:
                data = archive.extractfile(info)
                assert data is not None
                contents[name] = data.read()
            _compare(entries[os.fsencode(name)], info)
    return ImageFacts(entries, contents, set(map(frozenset, groups.values())))


def _compare(facts: Facts, info: tarfile.TarInfo) -> None:
    """Check that both readers say the same of an entry."""
    if info.islnk():
        return
    assert (facts.mode, facts.uid, facts.gid) == (info.mode, info.uid, info.gid), info.name
    assert facts.mtime == info.mtime, info.name


def facts_of_mount(image: Path, point: Path) -> ImageFacts:
    """Return the facts that the kernel shows."""
    point.mkdir()
    with mount("-o", "loop,ro", str(image), str(point)) as is_mounted:
        if not is_mounted:
            lacking("mounting is not allowed here")
        entries = facts_of_tree(point)
        contents: dict[str, bytes | str] = {}
        groups: dict[int, set[str]] = {}
        for path, facts in entries.items():
            name = os.fsdecode(path)
            if facts.kind == InodeKind.DIRECTORY:
                contents[name] = "/"
            elif facts.kind == InodeKind.SYMLINK:
                contents[name] = f"-> {os.fsdecode(facts.target)}"
            else:
                contents[name] = (point / name).read_bytes()
            if facts.links > 1 and facts.kind != InodeKind.DIRECTORY:
                groups.setdefault((point / name).lstat().st_ino, set()).add(name)
    del contents[""]
    return ImageFacts(entries, contents, set(map(frozenset, groups.values())))
