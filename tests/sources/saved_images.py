"""Make archives of several versions of `docker save`, and SIF files, byte by byte."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from struct import pack
from typing import Any

from shiftergw.model.images import Digest
from tests.images import CONFIG, INDEX, LAYER, MANIFEST, descriptor, entry, json_bytes, tar_of

Members = list[tuple[tarfile.TarInfo, bytes]]


def config_bytes(
    layers: Sequence[bytes], architecture: str = "amd64", env: Sequence[str] = ()
) -> bytes:
    """Return the configuration of an image of these uncompressed layers."""
    return json_bytes(
        {
            "architecture": architecture,
            "os": "linux",
            "created": "2024-01-02T03:04:05Z",
            "config": {"Env": list(env)},
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(tar)) for tar in layers]},
        }
    )


def _link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, b"", type=tarfile.SYMTYPE, linkname=target)


def _v1_ids(layers: Sequence[bytes], salt: str) -> list[str]:
    return [
        hashlib.sha256(f"{salt}{number}".encode() + tar).hexdigest()
        for number, tar in enumerate(layers)
    ]


def docker_1_9(
    layers: Sequence[bytes], names: Sequence[str], env: Sequence[str] = (), salt: str = ""
) -> Members:
    """Return an archive of before Docker 1.10: `repositories`, and a directory for each layer."""
    members: Members = []
    parent = ""
    for number, (v1_id, tar) in enumerate(zip(_v1_ids(layers, salt), layers, strict=True)):
        document: dict[str, Any] = {
            "id": v1_id,
            "created": f"2014-01-02T03:04:0{number}Z",
            "container_config": {"Cmd": ["/bin/sh", "-c", f"#(nop) layer {number}"]},
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": list(env)},
            "Size": len(tar),
        }
        if parent:
            document["parent"] = parent
        members += [
            entry(f"{v1_id}/"),
            entry(f"{v1_id}/VERSION", b"1.0"),
            entry(f"{v1_id}/json", json_bytes(document)),
            entry(f"{v1_id}/layer.tar", tar),
        ]
        parent = v1_id
    repositories: dict[str, dict[str, str]] = {}
    for name in names:
        repository, _, tag = name.rpartition(":")
        repositories.setdefault(repository, {})[tag] = parent
    return [*members, entry("repositories", json_bytes(repositories))]


def docker_1_10(
    layers: Sequence[bytes], config: bytes, names: Sequence[str], salt: str = ""
) -> Members:
    """Return an archive of Docker 1.10 to 24; a repeated layer is a link to the first one."""
    members: Members = []
    paths: list[str] = []
    first: dict[bytes, str] = {}
    for v1_id, tar in zip(_v1_ids(layers, salt), layers, strict=True):
        path = f"{v1_id}/layer.tar"
        members += [entry(f"{v1_id}/"), entry(f"{v1_id}/VERSION", b"1.0")]
        members.append(_link(path, f"../{first[tar]}") if tar in first else entry(path, tar))
        first.setdefault(tar, path)
        paths.append(path)
    config_name = f"{Digest.of(config).hex}.json"
    manifest = [{"Config": config_name, "RepoTags": list(names) or None, "Layers": paths}]
    return [
        *members,
        entry(config_name, config),
        entry("manifest.json", json_bytes(manifest)),
        entry("repositories", b"{}"),
    ]


def docker_25(layers: Sequence[bytes], config: bytes, names: Sequence[str]) -> Members:
    """Return an archive of Docker 25 or later: an OCI layout with a `manifest.json`."""
    manifest = json_bytes(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(config, CONFIG),
            "layers": [descriptor(tar, LAYER) for tar in layers],
        }
    )
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [
            descriptor(manifest, MANIFEST, annotations={"org.opencontainers.image.ref.name": name})
            for name in names
        ],
    }
    blobs = dict.fromkeys([config, manifest, *layers])
    docker = [
        {
            "Config": f"blobs/sha256/{Digest.of(config).hex}",
            "RepoTags": list(names),
            "Layers": [f"blobs/sha256/{Digest.of(tar).hex}" for tar in layers],
        }
    ]
    return [
        entry("blobs/"),
        entry("blobs/sha256/"),
        *(entry(f"blobs/sha256/{Digest.of(blob).hex}", blob) for blob in blobs),
        entry("index.json", json_bytes(index)),
        entry("manifest.json", json_bytes(docker)),
        entry("oci-layout", json_bytes({"imageLayoutVersion": "1.0.0"})),
    ]


def podman(layers: Sequence[bytes], config: bytes, names: Sequence[str]) -> Members:
    """Return an archive as podman and skopeo write it: layers by digest, and links to them."""
    members: Members = []
    paths = []
    for v1_id, tar in zip(_v1_ids(layers, "podman"), layers, strict=True):
        path = f"{Digest.of(tar).hex}.tar"
        if path not in paths:
            members.append(entry(path, tar))
        members.append(_link(f"{v1_id}/layer.tar", f"../{path}"))
        paths.append(path)
    config_name = f"{Digest.of(config).hex}.json"
    manifest = [{"Config": config_name, "RepoTags": list(names), "Layers": paths}]
    return [
        *members,
        entry(config_name, config),
        entry("manifest.json", json_bytes(manifest)),
        entry("repositories", b"{}"),
    ]


def join_archives(*archives: Members) -> bytes:
    """Return one archive with the images of several archives of `docker_1_9` or `docker_1_10`."""
    manifests: list[Any] = []
    repositories: dict[str, Any] = {}
    members: Members = []
    for archive in archives:
        for info, content in archive:
            if info.name == "manifest.json":
                manifests += json.loads(content)
            elif info.name == "repositories":
                repositories |= json.loads(content)
            else:
                members.append((info, content))
    if manifests:
        members.append(entry("manifest.json", json_bytes(manifests)))
    return tar_of([*members, entry("repositories", json_bytes(repositories))])


def sif(*objects: bytes, architecture: bytes = b"02", total: int | None = None) -> bytes:
    """Return a SIF file of data objects that `sif_object` has made."""
    total = 48 if total is None else total
    table_offset, data_offset = 4096, 32768
    table, data = b"", b""
    for number, item in enumerate(objects, 1):
        kind, content, extra = item[:4], item[388:], item[4:388]
        offset = data_offset + len(data)
        table += kind + b"\1" + pack("<III", number, 0xF0000001, 0)
        table += pack("<qqq", offset, len(content), len(content))
        table += pack("<qqqq", 1_700_000_000, 1_700_000_000, 0, 0) + bytes(128) + extra
        data += content + bytes(-len(content) % 4096)
    header = b"#!/usr/bin/env run-singularity\n\0" + b"SIF_MAGIC\0" + b"01\0" + architecture + b"\0"
    header += bytes(16) + pack(
        "<qqqqqqqq",
        *(1_700_000_000, 1_700_000_000, total - len(objects), total),
        *(table_offset, total * 585, data_offset, len(data)),
    )
    return header.ljust(table_offset, b"\0") + table.ljust(data_offset - table_offset, b"\0") + data


def sif_object(kind: int, content: bytes, extra: bytes = b"") -> bytes:
    """Return a data object for `sif`."""
    return pack("<i", kind) + extra.ljust(384, b"\0") + content


def sif_partition(
    content: bytes, *, file_system: int = 1, role: int = 2, architecture: bytes = b"02"
) -> bytes:
    """Return a partition for `sif`: by default a squashfs that is the primary system."""
    return sif_object(0x4004, content, pack("<ii3s", file_system, role, architecture))
