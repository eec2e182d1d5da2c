"""Which blobs of a layout with several images are uploaded."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from shiftergw.cli import layout_blobs
from shiftergw.cli.layout_blobs import blobs_of_tag
from tests.cli.test_upload_source import open_by_name
from tests.images import entry, oci_index_layout, oci_layout, tar_of

INDEX = "index.json"
NAME = "org.opencontainers.image.ref.name"


def layout_of(path: Path, *contents: bytes) -> Path:
    """Make a layout with one image for each content, under the tags `0`, `1` and so on."""
    entries: list[Any] = []
    for number, content in enumerate(contents):
        oci_layout(path, [tar_of([entry("file", content)])])
        (one_entry,) = json.loads((path / INDEX).read_text())["manifests"]
        entries.append({**one_entry, "annotations": {NAME: str(number)}})
    (path / INDEX).write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    return path


def names_in(text: str) -> set[str]:
    """Return the names of the files that are uploaded of a source."""
    source = open_by_name(text)
    with tarfile.open(fileobj=io.BytesIO(source.read(0, source.size))) as archive:
        return set(archive.getnames())


def test_the_blobs_of_a_tag(tmp_path: Path) -> None:
    """Manifest, configuration and layers of the tag are uploaded, not those of another image."""
    path = layout_of(tmp_path / "layout", b"a" * 100, b"b" * 100)
    first, second = blobs_of_tag(path, "0"), blobs_of_tag(path, "1")
    assert first is not None
    assert second is not None
    assert len(first) == len(second) == 3
    documents = {"oci-layout", INDEX}
    assert names_in(f"oci:{path}:0") == first | documents
    assert names_in(f"oci:{path}:1") == second | documents
    assert names_in(f"oci:{path}") == names_in(f"oci:{path}:@0") == first | second | documents
    # The gateway lists the tags that there are.
    assert names_in(f"oci:{path}:absent") == first | second | documents


def test_every_platform_of_a_tag(tmp_path: Path) -> None:
    """The system's architecture is the gateway's matter, so all images of an index are sent."""
    layers = {"amd64": [tar_of([entry("a", b"1")])], "arm64": [tar_of([entry("b", b"2")])]}
    oci_index_layout(tmp_path / "layout", layers)
    assert len(blobs_of_tag(tmp_path / "layout", "latest") or ()) == 7
    files = (tmp_path / "layout" / "blobs" / "sha256").iterdir()
    assert len(list(files)) == 7


def test_without_the_file_of_the_version(tmp_path: Path) -> None:
    """A layout whose tool wrote no `oci-layout` is recognized by its index."""
    path = layout_of(tmp_path / "layout", b"a")
    (path / "oci-layout").unlink()
    assert open_by_name(str(path)).kind == "oci-archive"


@pytest.mark.parametrize(
    "content",
    ["", "[", "[]", "{}", '{"manifests": {}}', '{"manifests": [5, {"annotations": 5}]}',
     json.dumps({"manifests": [{"digest": 5, "annotations": {NAME: "t"}}]}),
     json.dumps({"manifests": [{"digest": "sha256:../../x", "annotations": {NAME: "t"}}]}),
     "[" * 100_000],
)  # fmt: skip
def test_documents_of_another_form(tmp_path: Path, content: str) -> None:
    """Without a usable index all files are sent, and the gateway names the fault of the index."""
    (tmp_path / INDEX).write_text(content)
    assert blobs_of_tag(tmp_path, "t") is None


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents that name each other, and too many blobs, end."""
    path = layout_of(tmp_path / "layout", b"a")
    monkeypatch.setattr(layout_blobs, "_LIMIT", 2)
    assert blobs_of_tag(path, "0") is None
    monkeypatch.setattr(layout_blobs, "_LIMIT", 10)
    blob = path / "blobs" / "sha256" / ("a" * 64)
    row = {"digest": "sha256:" + "a" * 64, "annotations": {NAME: "loop"}}
    blob.write_text(json.dumps({"manifests": [row]}))
    (path / INDEX).write_text(json.dumps({"manifests": [row]}))
    assert blobs_of_tag(path, "loop") == {f"blobs/sha256/{'a' * 64}"}
