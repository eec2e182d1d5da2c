"""The check of a file before its upload: it agrees with the worker that reads the file later."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from shiftergw.app.upload_check import check_file
from shiftergw.errors import ManifestInvalid
from shiftergw.model.source_names import SourceKind
from shiftergw.model.uploads import UPLOAD_KINDS
from shiftergw.sources.local.forms import HEAD_BYTES, check_form, form_of_file
from tests.images import entry, tar_of
from tests.sources.saved_images import sif, sif_partition

FILES = {
    "tar": tar_of([entry("manifest.json", b"[]")]),
    "sif": sif(sif_partition(b"hsqs")),
    "squashfs": b"hsqs" + bytes(5000),
    "zip": b"PK\3\4" + bytes(5000),
    "ext3": bytes(1080) + b"\x53\xef" + bytes(5000),
    "short": b"h",
}
KINDS: dict[str, SourceKind] = {
    "": "path",
    "docker-archive": "docker-archive",
    "oci-archive": "oci-archive",
    "sif": "sif",
    "squashfs": "squashfs",
}


def error_of_worker(path: Path, kind: SourceKind) -> str:
    """Return how a worker refuses a file, "" if it does not by the begin of the file."""
    try:
        check_form(form_of_file(path)[0], kind)
    except ManifestInvalid as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", FILES)
def test_client_and_worker_agree(tmp_path: Path, name: str) -> None:
    """Client and worker refuse the same files, with the same words, for each kind of upload."""
    path = tmp_path / "file"
    path.write_bytes(FILES[name])
    for kind, source_kind in KINDS.items():
        error = ""
        try:
            check_file(FILES[name][:HEAD_BYTES], kind)
        except ManifestInvalid as refusal:
            error = str(refusal)
        assert error == error_of_worker(path, source_kind)
    assert KINDS.keys() == UPLOAD_KINDS - {"dir-archive"}


def test_files_that_are_not_known_before(tmp_path: Path) -> None:
    """What a packed file has inside, and a directory, are left to the worker."""
    archive = gzip.compress(FILES["zip"])
    for kind in KINDS:
        check_file(archive, kind)
    check_file(b"x", "dir-archive")
    path = tmp_path / "file"
    path.write_bytes(archive)
    assert "packed twice" in error_of_worker(path, "path")
