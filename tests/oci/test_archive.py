"""The index of an archive with an image: the places of members, and hostile archives."""

from __future__ import annotations

import io
import tarfile
from threading import Event

import pytest

from shiftergw.errors import ManifestInvalid
from shiftergw.oci import archive
from shiftergw.oci.archive import ArchiveIndex, find_members, index_archive
from shiftergw.oci.compression import StopRequested
from tests.images import entry, tar_of

LARGE = bytes(range(256)) * 1000


def index_of(content: bytes) -> ArchiveIndex:
    """Index an archive in memory."""
    return index_archive(io.BytesIO(content), len(content), Event())


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    """Return a link as an entry."""
    return entry(name, b"", type=kind, linkname=target)


@pytest.mark.parametrize(
    "tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]
)
def test_members_are_where_the_index_says(tar_format: int) -> None:
    """Offset and size of each member lead to its bytes, in every format of tar."""
    files = {"manifest.json": b"[]", "a" * 90 + "/layer.tar": LARGE, "./empty": b"", "last": b"x"}
    content = tar_of(files, tar_format)
    index = index_of(content)
    for name, data in files.items():
        member = index.find(name)
        assert member is not None
        assert content[member.offset : member.offset + member.size] == data
    assert index.find("absent") is None


def test_the_data_of_members_is_not_read() -> None:
    """Only the headers of a large archive are read."""
    content = tar_of({"large": bytes(10_000_000), "last": b"x"})
    sizes: list[int] = []

    class CountingFile(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            sizes.append(len(data))
            return data

    assert index_archive(CountingFile(content), len(content), Event()).find("last") is not None
    assert sum(sizes) < 200_000


def test_links_are_followed_inside_the_archive() -> None:
    """Symbolic links are relative to their directory, hard links to the root of the archive."""
    index = index_of(
        tar_of(
            [
                entry("one/layer.tar", b"layer"),
                link("two/layer.tar", "../one/layer.tar"),
                link("three/layer.tar", "/two/layer.tar"),
                link("four/layer.tar", "one/layer.tar", tarfile.LNKTYPE),
            ]
        )
    )
    expected = index.find("one/layer.tar")
    assert expected is not None
    assert {index.find(f"{name}/layer.tar") for name in ("two", "three", "four")} == {expected}


def test_the_last_entry_of_a_name_counts() -> None:
    """An archive to which files were appended has their last versions."""
    index = index_of(
        tar_of([entry("a", b"old"), link("b", "a"), entry("a", b"newer"), entry("b", b"")])
    )
    a, b = index.find("a"), index.find("b")
    assert a is not None
    assert b is not None
    assert (a.size, b.size) == (5, 0)


@pytest.mark.parametrize("name", ["x", "d/x"])
@pytest.mark.parametrize("target", ["../../etc/passwd", "/../etc/passwd"])
def test_links_that_lead_out_are_refused(name: str, target: str) -> None:
    """No link leads to a file outside of the archive."""
    with pytest.raises(ManifestInvalid, match="leads out of it"):
        index_of(tar_of([link(name, target)]))


def test_names_that_lead_out_are_refused() -> None:
    """Neither a member nor a request may be outside of the archive."""
    with pytest.raises(ManifestInvalid):
        index_of(tar_of([entry("../x", b"x")]))
    with pytest.raises(ManifestInvalid, match="leads out of it"):
        index_of(tar_of({"x": b""})).find("../x")


def test_links_in_a_circle_end() -> None:
    """A circle of links is an error, not a hang."""
    with pytest.raises(ManifestInvalid, match="links in a row"):
        index_of(tar_of([link("a", "b"), link("b", "a")])).find("a")


def test_an_archive_that_was_cut_short() -> None:
    """If any part is missing at the end of an archive, the error says that it is incomplete."""
    content = tar_of({"a": LARGE, "b": LARGE})
    for size in (300, 512, 100_000, 400_000):
        if size == 512:
            continue  # a header and nothing else
        with pytest.raises(ManifestInvalid, match="not a whole tar archive") as caught:
            index_of(content[:size])
        assert "incomplete" in caught.value.remedy


def test_too_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive of very many members is refused while it is read."""
    monkeypatch.setattr(archive, "MOST_MEMBERS", 3)
    index_of(tar_of(dict.fromkeys("abc", b"")))
    with pytest.raises(ManifestInvalid, match="more than 3 members"):
        index_of(tar_of(dict.fromkeys("abcd", b"")))


def test_very_long_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The total length of all names of an archive is bounded."""
    monkeypatch.setattr(archive, "NAMES_LIMIT", 1000)
    with pytest.raises(ManifestInvalid, match="very long names"):
        index_of(tar_of({f"{number}{'n' * 300}": b"" for number in range(4)}))


def test_it_stops() -> None:
    """The index ends soon after the stop flag is set."""
    stop, content = Event(), tar_of({"a": b"x"})
    stop.set()
    with pytest.raises(StopRequested):
        index_archive(io.BytesIO(content), len(content), stop)


def test_some_members_of_a_large_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of given names are found among any number of others."""
    monkeypatch.setattr(archive, "MOST_MEMBERS", 3)
    files = {str(number): b"" for number in range(50)} | {"etc/motd": b"hello"}
    content = tar_of(files)
    members = find_members(io.BytesIO(content), len(content), ["etc/motd", "absent"], Event())
    assert list(members) == ["etc/motd"]
    member = members["etc/motd"]
    assert content[member.offset : member.offset + member.size] == b"hello"
