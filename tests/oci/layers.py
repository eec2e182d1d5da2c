"""Build layers of real bytes, and convert them as the gateway does."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

from shiftergw.build.stream import stream
from shiftergw.model.build_options import BuildLimits
from shiftergw.model.images import LayerFile
from shiftergw.oci.budget import Budget
from shiftergw.oci.compression import opening_of
from shiftergw.oci.flatten import Plan, flatten
from shiftergw.oci.tar import Entry, index_layer
from shiftergw.oci.tree import Leaf, walk
from tests.images import compress, entry, tar_of

Layer = Sequence[tuple[tarfile.TarInfo, bytes]]
LIMITS = BuildLimits()


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """Return a symlink entry."""
    return entry(name, b"", type=tarfile.SYMTYPE, linkname=target, mode=0o777)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """Return a hard link entry."""
    return entry(name, b"", type=tarfile.LNKTYPE, linkname=target)


def special(name: str, kind: bytes = tarfile.CHRTYPE) -> tuple[tarfile.TarInfo, bytes]:
    """Return an entry of a device node or a FIFO."""
    return entry(name, b"", type=kind)


def index_tar(tar: bytes, limits: BuildLimits = LIMITS) -> list[Entry]:
    """Return the index of an uncompressed tar."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(tar)
        file.flush()
        return index_layer(
            opening_of(Path(file.name)), None, Budget(limits).layer(), Event()
        ).entries


def plan_layers(
    directory: Path,
    *tars: bytes,
    limits: BuildLimits = LIMITS,
    keep_setuid: bool = False,
    compression: str = "plain",
) -> tuple[Plan, list[LayerFile]]:
    """Write tars as layers below `directory`; return the plan of the image and the layers."""
    layers = []
    for tar in tars:
        with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
            file.write(compress(tar, compression))
        layers.append(LayerFile(Path(file.name)))
    budget = Budget(limits)
    indexes = (
        index_layer(opening_of(layer.path), None, budget.layer(), Event()) for layer in layers
    )
    return flatten(indexes, budget, keep_setuid), layers


def stream_plan(plan: Plan, layers: Sequence[LayerFile]) -> bytes:
    """Return the archive that the gateway streams for a plan."""
    with tempfile.TemporaryFile() as file:
        stream(plan, layers, file.fileno(), Event(), lambda _, __: None)
        file.seek(0)
        return file.read()


def contents(archive: bytes) -> dict[str, bytes | str]:
    """Return the content as `tarfile` reads it: data of files, `/` for directories, `-> target`."""
    entries_by_name: dict[str, bytes | str] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for info in tar:
            assert info.name not in entries_by_name, f"{info.name} twice"
            if info.isdir():
                entries_by_name[info.name] = "/"
            elif info.issym():
                entries_by_name[info.name] = f"-> {info.linkname}"
            elif info.islnk():
                entries_by_name[info.name] = entries_by_name[info.linkname]  # which has come before
            else:
                data = tar.extractfile(info)
                assert data is not None
                entries_by_name[info.name] = data.read()
    return entries_by_name


def image(*layers: Layer, **options: Any) -> dict[str, bytes | str]:
    """Return the contents of the image of layers with these entries."""
    with tempfile.TemporaryDirectory() as directory:
        plan, files = plan_layers(
            Path(directory), *(tar_of(layer_entries) for layer_entries in layers), **options
        )
        return contents(stream_plan(plan, files))


def plan_of(*layers: Layer, **options: Any) -> Plan:
    """Return the plan of layers with these entries."""
    with tempfile.TemporaryDirectory() as directory:
        plan, _ = plan_layers(
            Path(directory), *(tar_of(layer_entries) for layer_entries in layers), **options
        )
        return plan


def groups(plan: Plan) -> list[set[str]]:
    """Return the names of each inode that has several."""
    names: dict[Leaf, set[str]] = {}
    for path, node in walk(plan.root):
        if isinstance(node, Leaf):
            names.setdefault(node, set()).add(os.fsdecode(path))
    assert all(len(group) == leaf.names for leaf, group in names.items())
    return [group for group in names.values() if len(group) > 1]
