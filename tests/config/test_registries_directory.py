"""Tests of registries.d: which section applies to an image, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftergw.config import registries_directory
from shiftergw.config.registries_directory import read_registries_directory
from shiftergw.errors import ConfigurationError
from shiftergw.model.docker_references import DockerReference
from shiftergw.model.signatures import SignatureStorage

FIRST = """\
# The site's own registry.
docker:
    reg.example.org:
        lookaside: https://signatures.example.org/all/
        lookaside-staging: file:///srv/staging
    reg.example.org/n/app:
        sigstore: file:///srv/signatures
    "reg.example.org/n/app:special":
        use-sigstore-attachments: true
"""
SECOND = """\
default-docker:
    lookaside: http://127.0.0.1:8000
    use-sigstore-attachments: false
docker:
    docker.io/library:
"""


@pytest.mark.parametrize(
    ("text", "storage"),
    [
        ("reg.example.org/x:1", SignatureStorage("https://signatures.example.org/all")),
        ("reg.example.org/n/app:1", SignatureStorage("file:///srv/signatures")),
        ("reg.example.org/n/app:special", SignatureStorage("", uses_attachments=True)),
        ("reg.example.org:5000/n/app:1", SignatureStorage("http://127.0.0.1:8000", False)),
        ("ubuntu:24.04", SignatureStorage()),
        ("user/app:1", SignatureStorage("http://127.0.0.1:8000", False)),
    ],
)
def test_the_most_specific_section_applies(
    tmp_path: Path, text: str, storage: SignatureStorage
) -> None:
    """Sections of all files count; those of less specific scopes are ignored."""
    (tmp_path / "a.yaml").write_text(FIRST)
    (tmp_path / "b.yaml").write_text(SECOND)
    (tmp_path / "c.yml").write_text("not: [read]")
    directory = read_registries_directory(tmp_path)
    assert directory.storage_of(DockerReference.parse(text)) == storage


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("docker: [a]", "b.yaml: line 1: its value"),
        ("docker: a", "b.yaml: docker must be a mapping"),
        ("docker:\n  a.b: c", "a.b must be a mapping"),
        ("docker:\n  a.b:\n    lookaside: srv", "lookaside of a.b must be a URL"),
        ("docker:\n  a.b:\n    lookaside: ftp://x/y", "lookaside of a.b must be a URL"),
        ("docker:\n  a.b:\n    lookaside: file://host/y", "lookaside of a.b must be a URL"),
        ("docker:\n  a.b:\n    lookaside: https://u:p@x/y", "lookaside of a.b must be a URL"),
        ("docker:\n  a.b:\n    lookaside: https://x/y?z", "lookaside of a.b must be a URL"),
        ("docker:\n  a.b:\n    use-sigstore-attachments: maybe", "must be true or false"),
        ("docker:\n  reg.example.org:\n    lookaside: https://x", "is in a.yaml, too"),
        ("\xff", "b.yaml: line 1: this is not UTF-8"),
    ],
)
def test_invalid_files(tmp_path: Path, content: str, problem: str) -> None:
    """An invalid file, and a scope with two sections, are refused with the file's name."""
    (tmp_path / "a.yaml").write_text(FIRST)
    (tmp_path / "b.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigurationError) as caught:
        read_registries_directory(tmp_path)
    assert problem in caught.value.what


def test_two_defaults(tmp_path: Path) -> None:
    """Two files must not name different default registries."""
    (tmp_path / "a.yaml").write_text(SECOND)
    (tmp_path / "b.yaml").write_text("default-docker:\n  lookaside: https://x\n")
    with pytest.raises(ConfigurationError, match=r"default-docker is in a\.yaml, too"):
        read_registries_directory(tmp_path)


def test_absent_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own directory need not exist; a configured one must."""
    absent = tmp_path / "absent"
    with pytest.raises(ConfigurationError, match="there is no such directory"):
        read_registries_directory(absent)
    monkeypatch.setattr(registries_directory, "DEFAULT_DIRECTORY", absent)
    assert read_registries_directory(None).sections == {}
    absent.mkdir()
    (absent / "a.yaml").write_text(FIRST)
    assert len(read_registries_directory(None).sections) == 3


def test_an_unreadable_file(tmp_path: Path) -> None:
    """A directory in place of a file is an error, as is a device."""
    (tmp_path / "a.yaml").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_registries_directory(tmp_path)


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of files has a limit."""
    monkeypatch.setattr(registries_directory, "FILES_LIMIT", 1)
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text("")
    with pytest.raises(ConfigurationError, match="more than 1 files"):
        read_registries_directory(tmp_path)
