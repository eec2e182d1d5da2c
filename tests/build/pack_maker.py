"""Packs of layers made without the program, and images of them by both ways of building."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from shiftergw.build.compose import Composition, compose
from shiftergw.model.build_options import BuildLimits, SquashOptions
from shiftergw.model.images import LayerFile
from shiftergw.oci.budget import Budget
from shiftergw.oci.compression import opening_of
from shiftergw.oci.flatten import Plan, flatten
from shiftergw.oci.sparse import data_extents
from shiftergw.oci.tar import LayerIndex, index_layer
from shiftergw.oci.tree import REGULAR
from shiftergw.squashfs.columns import FileColumns
from tests.build.parts import squash_tar
from tests.images import tar_of
from tests.oci.layers import Layer, stream_plan
from tests.parts import need
from tests.squashfs.parts import read_file

IMAGE_DATE = 1_710_000_000
GZIP = SquashOptions(memory="64M", processors=1)
ZSTD = SquashOptions("zstd", 3, memory="64M", processors=1)
XZ = SquashOptions("xz", None, memory="64M", processors=1)


@dataclass(frozen=True)
class MadePack:
    """A pack on a disk."""

    path: Path
    digests: list[bytes]
    columns: FileColumns

    def open(self) -> int:
        """Open the file for reading."""
        return os.open(self.path, os.O_RDONLY)


def make_pack(path: Path, contents: Sequence[bytes], options: SquashOptions) -> MadePack:
    """Make a pack of these contents with `mksquashfs`."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for number, content in enumerate(contents):
            info = tarfile.TarInfo(f"{number >> 9:05}/{number & 511:03}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    argv = [need("mksquashfs"), "-", str(path), "-tar", "-noappend", "-no-progress", "-quiet"]
    argv += ["-all-root", "-no-xattrs", "-no-duplicates", "-mkfs-time", "0", "-all-time", "0"]
    argv += options.arguments
    subprocess.run(argv, input=tar.getvalue(), check=True, stderr=subprocess.PIPE)
    digests = [hashlib.sha256(content).digest() for content in contents]
    return MadePack(path, digests, read_file(path).files())


def number_contents(tar: bytes, index: LayerIndex, block_size: int) -> list[bytes]:
    """Give the files of a layer the numbers of their contents; return the contents.

    Equal contents of a layer have one number. Of a sparse file only blocks with data are content.
    """
    numbers: dict[bytes, int] = {}
    for entry in index.entries:
        if entry.kind != REGULAR or not entry.size:
            continue
        content = tar[entry.offset : entry.offset + entry.size]
        if entry.sparse is not None:
            content = b""
            position = entry.offset
            whole = bytearray(entry.size)
            for offset, length in entry.sparse:
                whole[offset : offset + length] = tar[position : position + length]
                position += length
            for start, end in data_extents(entry.sparse, entry.size, block_size):
                content += whole[start:end]
            if not content:
                continue
        entry.number = numbers.setdefault(content, len(numbers))
    return list(numbers)


@dataclass(frozen=True)
class Stack:
    """The layers of an image: their files, their packs, and the plan of the image."""

    plan: Plan
    layers: list[LayerFile]
    packs: list[MadePack]
    options: SquashOptions

    def compose(
        self,
        output: Path,
        report: Callable[[int, int], None] = lambda _, __: None,
        **changes: Any,
    ) -> Composition:
        """Compose the image; `changes` are other arguments of `compose`."""
        arguments = {
            "plan": self.plan,
            "packs": self.packs,
            "options": self.options,
            "created": IMAGE_DATE,
            "output": output,
            "stop": Event(),
            "report": report,
            **changes,
        }
        return compose(**arguments)

    def build_whole(self, output: Path) -> Path:
        """Build the image as the builder of whole images does."""
        tar = stream_plan(self.plan, self.layers)
        epoch = max(IMAGE_DATE, self.plan.latest)
        return squash_tar(tar, output, *self.options.arguments, epoch=epoch)


def stack_tars(
    directory: Path, *tars: bytes, options: SquashOptions = ZSTD, keep_setuid: bool = False
) -> Stack:
    """Write tars as layers below `directory`, and make their packs."""
    layers: list[LayerFile] = []
    packs: list[MadePack] = []
    indexes: list[LayerIndex] = []
    budget = Budget(BuildLimits())
    for number, tar in enumerate(tars):
        layer = directory / f"layer-{number}"
        layer.write_bytes(tar)
        layers.append(LayerFile(layer))
        index = index_layer(opening_of(layer), None, budget.layer(), Event())
        contents = number_contents(tar, index, options.block_bytes)
        indexes.append(index)
        packs.append(make_pack(directory / f"pack-{number}", contents, options))
    return Stack(flatten(indexes, budget, keep_setuid), layers, packs, options)


def stack(directory: Path, *layers: Layer, options: SquashOptions = ZSTD) -> Stack:
    """Return the stack of layers with these entries."""
    return stack_tars(directory, *(tar_of(layer) for layer in layers), options=options)
