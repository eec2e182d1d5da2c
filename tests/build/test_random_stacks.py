"""Both builders make the same tree of any layers: that of a model, of umoci, and of the kernel.

Each stack is made of a number (`tests.build.random_stacks`), which a failure names. With
`SHIFTERGW_LONG=1` there are 3,000 stacks and 500 that umoci unpacks, too. `SHIFTERGW_TEST_STACKS`
runs the stacks with the numbers FIRST:COUNT instead of these.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.errors import LayerInvalid
from shiftergw.model.build_options import BuilderName, PackerName
from shiftergw.model.images import Digest, LayerFile
from shiftergw.plumbing.threads import Threads
from shiftergw.squashfs.inodes import InodeKind
from tests.build.image_facts import ImageFacts, facts_of_image, facts_of_mount
from tests.build.orderly_stacks import orderly_stack
from tests.build.random_stacks import RandomStack, random_stack
from tests.build.site import Site
from tests.build.stack_cases import CASES, stack_of_case
from tests.images import compress, oci_layout
from tests.matrices import LONG, combinations
from tests.oci.model import InvalidLayers, flatten_model
from tests.parts import need, need_root
from tests.squashfs.parts import Facts
from tests.trees import Entry, as_delivered, links, tree

MOUNTED_SHARE = 20
"""Of as many stacks one is mounted by the kernel."""

SLICE = 100
"""Stacks of one test."""


def slices(count: int, size: int) -> Sequence[range]:
    """Return the numbers of the stacks, in parts."""
    text = os.environ.get("SHIFTERGW_TEST_STACKS")
    first = 0
    if text:
        first, count = map(int, text.split(":"))
    return [
        range(start, min(start + size, first + count))
        for start in range(first, first + count, size)
    ]


def differences(first: Mapping[bytes, Facts], second: Mapping[bytes, Facts]) -> list[object]:
    """Return what two trees say of the paths for which they differ."""
    return [
        (path, first.get(path), second.get(path))
        for path in sorted(first.keys() | second.keys())
        if first.get(path) != second.get(path)
    ]


@contextmanager
def failures_named(stack: RandomStack) -> Iterator[None]:
    """Add the number of the stack to a failure."""
    try:
        yield
    except Exception as error:
        error.add_note(f"the layers are those of the stack {stack.seed}")
        raise


def packers_of(stack: RandomStack) -> Sequence[PackerName]:
    """Return the packers that are compared: in the long form all, else one by the stack's number.

    For xz there is one packer, and for gzip another one only with the library `deflate`.
    """
    compressor = stack.options["compressor"]
    if compressor == "xz" or (compressor == "gzip" and find_spec("deflate") is None):
        return ["mksquashfs"]
    packers: Sequence[PackerName] = ["mksquashfs", "direct"]
    return packers if LONG else [packers[stack.seed % 2]]


async def build(
    directory: Path,
    threads: Threads,
    stack: RandomStack,
    builder: BuilderName,
    packer: PackerName = "mksquashfs",
) -> Path:
    """Build the image of a stack, and return its file."""
    site = Site(directory / f"{builder}-{packer}", threads, builder=builder)
    layers = []
    for number, (tar, compression, is_claimed) in enumerate(
        zip(stack.tars, stack.compressions, stack.claims, strict=True)
    ):
        path = directory / f"layer-{number}"
        path.write_bytes(compress(tar, compression))
        layers.append(LayerFile(path, Digest.of(tar) if is_claimed else None))
    image = await site.build_image(layers, packer=packer, **stack.options)
    assert image.size == image.path.stat().st_size
    return image.path


async def check_stack(directory: Path, threads: Threads, stack: RandomStack) -> bool:
    """Compare the images of both builders with each other and with the model.

    Returns whether the layers are valid.
    """
    packers = packers_of(stack)
    try:
        expected = flatten_model(stack.plain_layers)
    except InvalidLayers:
        with pytest.raises(LayerInvalid):
            await build(directory, threads, stack, "whole")
        for packer in packers:
            with pytest.raises(LayerInvalid):
                await build(directory, threads, stack, "packs", packer)
        return False
    whole = facts_of_image(await build(directory, threads, stack, "whole"))
    for packer in packers:
        image = await build(directory, threads, stack, "packs", packer)
        image_facts = facts_of_image(image)
        if image_facts.entries[b""].mtime > time.time():
            # `mksquashfs` gives the root its date, but no date that is yet to come.
            whole.entries[b""] = replace(whole.entries[b""], mtime=image_facts.entries[b""].mtime)
        assert differences(image_facts.entries, whole.entries) == []
        assert image_facts == whole
        assert image_facts.contents == expected.contents
        assert image_facts.groups == set(map(frozenset, expected.groups))
        if stack.seed % MOUNTED_SHARE == 0:
            need_root()
            mount_facts = facts_of_mount(image, directory / f"mount-{packer}")
            assert differences(mount_facts.entries, image_facts.entries) == []
            assert mount_facts == image_facts
    return True


@pytest.mark.parametrize("numbers", slices(3000 if LONG else 12, SLICE))
@pytest_twisted.ensureDeferred
async def test_random_stacks(tmp_path: Path, threads: Threads, numbers: range) -> None:
    """Names, types, modes, owners, times, links and contents are the same; none has xattrs."""
    valid = 0
    for number in numbers:
        directory = tmp_path / f"{number}"
        directory.mkdir()
        stack = random_stack(number)
        with failures_named(stack):
            valid += await check_stack(directory, threads, stack)
        shutil.rmtree(directory)
    assert valid > len(numbers) // 2


@pytest.mark.parametrize(
    ("name", "compressor", "block_size"),
    combinations(list(CASES), ["gzip", "zstd", "xz"], ["4K", "4K", "128K", "4K", "1M"]),
)
@pytest_twisted.ensureDeferred
async def test_stack(
    tmp_path: Path, threads: Threads, name: str, compressor: str, block_size: str
) -> None:
    """Each rule about layers holds for both builders, and for the kernel."""
    assert await check_stack(tmp_path, threads, stack_of_case(name, compressor, block_size))


@pytest.mark.parametrize("numbers", slices(500 if LONG else 3, SLICE))
@pytest_twisted.ensureDeferred
async def test_stacks_that_umoci_unpacks(tmp_path: Path, threads: Threads, numbers: range) -> None:
    """Paths, types, modes, times of files, contents and hard links are those of `umoci unpack`."""
    need("umoci")
    need_root()
    for number in numbers:
        directory = tmp_path / f"{number}"
        directory.mkdir()
        stack = orderly_stack(number)
        with failures_named(stack):
            image = await build(directory, threads, stack, "packs")
            oci_layout(directory / "layout", stack.tars)
            rootfs = unpack(directory / "layout", directory / "bundle")
            facts = facts_of_image(image)
            assert tree_of_facts(facts) == as_delivered(tree(rootfs))
            groups = {frozenset(map(os.fsencode, group)) for group in facts.groups}
            assert groups == links(rootfs)
        shutil.rmtree(directory)


def unpack(layout: Path, bundle: Path) -> Path:
    """Unpack an image by umoci, and return its tree."""
    argv = ["umoci", "unpack", "--image", f"{layout}:latest", str(bundle)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return bundle / "rootfs"


def tree_of_facts(facts: ImageFacts) -> dict[bytes, Entry]:
    """Return facts in the form of `tests.trees.tree`."""
    entries: dict[bytes, Entry] = {}
    for path, fact in facts.entries.items():
        content = facts.contents.get(os.fsdecode(path))
        if fact.kind == InodeKind.SYMLINK:
            entries[path] = ("link", 0, 0, fact.target)
        elif fact.kind == InodeKind.DIRECTORY:
            entries[path] = ("directory", fact.mode, 0, b"")
        else:
            assert isinstance(content, bytes)
            entries[path] = ("file", fact.mode, fact.mtime, hashlib.sha256(content).digest())
    del entries[b""]
    return entries
