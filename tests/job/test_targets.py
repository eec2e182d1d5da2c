"""What lies in an image directory: metadata as the record has it, files as they were delivered."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs

from shiftergw.delivery.local import LocalDirectory
from shiftergw.errors import DeliveryFailed
from shiftergw.image import ImageConfig, Platform, SquashOptions
from shiftergw.job.targets import META_LIMIT, Target, meta_of
from shiftergw.model import ImageRecord, Session, document_of
from shiftergw.oci.manifest import parse_config
from shiftergw.oci.meta import Meta, read_meta
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import InstalledFile
from shiftergw.rules.access import Access
from tests.parts import need

# What breaks lines, lists and numbers, and what would be an ACL if it came to stand on a line.
TEXT = st.text(
    st.sampled_from("\n\r\0\\'\"[]u,:#= \t\v\fA1/ü\x85\xa0\ud800") | st.characters(), max_size=8
)
LINES = st.sampled_from(["USERACL: 7", "GROUPACL: 7", "USERACL:", "FORMAT: VFS", "\\", ""])
VALUE = st.builds("{}{}{}".format, TEXT, st.sampled_from(["", "\n", "\r\n", "\\\n"]), LINES) | TEXT
IDS = st.none() | st.lists(st.sampled_from([0, 5, 7, 2300, 2**32 - 2]), max_size=4).map(tuple)
SESSIONS = st.builds(
    Session,
    st.just("mycluster"),
    st.just("alice"),
    st.sampled_from([0, 5, 7, 8]),
    st.just("users"),
    st.just(100),
    st.frozensets(st.sampled_from([0, 5, 7, 100, 2300])),
)

Config = dict[str, Any]
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "Env": st.lists(VALUE | st.builds("A={}".format, VALUE), max_size=4),
        "Entrypoint": VALUE | st.lists(VALUE, max_size=3),
        "Cmd": VALUE | st.lists(VALUE, max_size=3),
        "WorkingDir": VALUE,
    },
)


def _record(config: Config, **acl: Any) -> ImageRecord:
    """Return what the store holds of an image with this configuration, as the registry sent it."""
    image = parse_config(json.dumps({"config": config}).encode())
    found = {"env": image.env, "entry": image.entrypoint, "cmd": image.cmd}
    document = document_of({**found, "workdir": image.workdir, **acl})
    return ImageRecord.from_document(json.loads(json.dumps(document)))


def _lets_in(meta: Meta, session: Session) -> bool:
    """Say whether the runtime starts an image for a user: without both lists it does for all."""
    if not meta.user_acl and not meta.group_acl:
        return True
    return session.uid in (meta.user_acl or ()) or not session.groups.isdisjoint(
        meta.group_acl or ()
    )


@given(CONFIGS, st.sampled_from([None, False, True]), IDS, IDS, SESSIONS)
def test_record_and_metadata_let_the_same_users_in(
    config: Config,
    private: bool | None,
    users: tuple[int, ...] | None,
    groups: tuple[int, ...] | None,
    session: Session,
) -> None:
    """Whatever the image's own values are, and whatever form of ACL its record has."""
    record = _record(config, private=private, user_acl=users, group_acl=groups)
    meta = read_meta(meta_of(record).content)
    assert _lets_in(meta, session) is record.may_be_read_by(session)
    restricted = Access.from_record(record).is_restricted
    assert meta.user_acl == ((users or ()) if restricted else None)
    assert meta.group_acl == ((groups or ()) if restricted else None)


@given(CONFIGS, IDS)
@example({"Env": ["A=\nUSERACL: 7", "A=\r"]}, None)
def test_an_image_s_values_are_read_as_they_were_meant(
    config: Config, users: tuple[int, ...] | None
) -> None:
    """As they stood, or not at all and then named; the format is always ours."""
    record = _record(config, private=True, user_acl=users)
    file = meta_of(record)
    meta = read_meta(file.content)
    assert (meta.format, meta.warnings) == ("squashfs", [])
    for name, meant, read in (
        ("ENTRY", record.entry, meta.entry),
        ("CMD", record.cmd, meta.cmd),
        ("WORKDIR", record.workdir, meta.workdir),
    ):
        assert read == (None if name in file.omissions else meant or None)
    whole = [one for one in record.env or () if one in meta.env]
    left_out = [name for name in file.omissions if name.startswith("ENV ")]
    assert len(whole) + len(left_out) >= len(record.env or ())
    assert {one.rstrip(" \t\v\f\r\n") for one in record.env or ()} >= set(meta.env)


ID = "0123456789abcdef" * 4
CONTENT = b"squashfs"
DELIVERED, TOUCHED = 1_700_000_000, 1_700_000_100
RECORD = ImageRecord(
    key="mine",
    id=ID,
    env=("A=1",),
    private=True,
    user_acl=(2001,),
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    modified=DELIVERED,
    options="gzip",
)
OF_THE_ORIGINAL = ImageRecord(key="old", id=ID)


class Directory(LocalDirectory):
    """An image directory that counts what is hashed."""

    hashed = 0
    tells_times = True

    async def exists(self, name: str) -> InstalledFile | None:
        """Look, and leave the time out where none is told."""
        found = await super().exists(name)
        return found if found is None or self.tells_times else replace(found, modified=None)

    async def digest(self, name: str) -> str:
        """Hash, and count."""
        self.hashed += 1
        return await super().digest(name)


class Place:
    """A target, and its image directory with the files of `RECORD`."""

    def __init__(self, root: Path, threads: Threads) -> None:
        """Write the files."""
        self.directory = Directory(root, threads)
        self.target = Target("images", self.directory, Platform(), SquashOptions(), ("mycluster",))
        self.image, self.meta = root / f"{ID}.squashfs", root / f"{ID}.meta"
        self.meta.write_bytes(meta_of(RECORD).content)
        self.said: list[str] = []
        self.write(CONTENT, DELIVERED)

    def write(self, content: bytes, modified: int) -> None:
        """Have other bytes in the image, last written at another time."""
        self.image.write_bytes(content)
        os.utime(self.image, (modified, modified))

    async def found(self, held: ImageRecord, *others: ImageRecord) -> ImageRecord | None:
        """Look for the image of a record."""
        return await self.target.verify_file(held, (held, *others), self.said.append)


@pytest_twisted.async_yield_fixture()
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    """Give an image directory in which everything is as it was delivered."""
    threads = Threads(reactor, 2, "test")
    threads.startService()
    yield Place(tmp_path, threads)
    await threads.stopService()


@pytest_twisted.ensureDeferred
async def test_an_image_as_it_was_delivered_is_not_read(place: Place) -> None:
    """Size and time are enough: whatever its size is, this costs nothing."""
    assert await place.found(RECORD) == RECORD
    assert (place.directory.hashed, place.said) == (0, [])


@pytest_twisted.ensureDeferred
async def test_an_image_that_was_touched_is_known_by_its_digest(place: Place) -> None:
    """Copied back from a backup, say; the record then tells the time that it has now."""
    place.write(CONTENT, TOUCHED)
    found = await place.found(RECORD)
    assert found == replace(RECORD, modified=TOUCHED)
    assert (place.directory.hashed, len(place.said)) == (1, 1)
    assert await place.found(found) == found
    assert place.directory.hashed == 1


@pytest_twisted.ensureDeferred
async def test_a_record_without_the_time_gets_it(place: Place) -> None:
    """Earlier versions did not keep it."""
    assert await place.found(replace(RECORD, modified=None)) == RECORD
    assert place.directory.hashed == 1


@pytest.mark.parametrize(("content", "there"), [(CONTENT, True), (b"squashfz", False)])
@pytest_twisted.ensureDeferred
async def test_where_no_times_are_told_the_digest_counts(
    place: Place, content: bytes, there: bool
) -> None:
    """A server that does not say when a file was written lets no file pass by its size."""
    place.write(content, DELIVERED)
    place.directory.tells_times = False
    held = replace(RECORD, modified=None)
    assert await place.found(held) == (held if there else None)
    assert place.directory.hashed == 1


@pytest.mark.parametrize(("content", "hashed"), [(b"squashfz", 1), (b"short", 0)])
@pytest_twisted.ensureDeferred
async def test_another_file_is_not_the_image(place: Place, content: bytes, hashed: int) -> None:
    """Other bytes of the same size, or another size: the log warns, the image is not there."""
    place.write(content, TOUCHED)
    with capturedLogs() as events:
        assert await place.found(RECORD) is None
    assert [event["log_level"].name for event in events] == ["warn"]
    assert place.directory.hashed == hashed


@pytest_twisted.ensureDeferred
async def test_an_image_that_is_gone(place: Place) -> None:
    """No file is no image, whoever recorded it."""
    place.image.unlink()
    assert await place.found(RECORD) is None
    assert await place.found(OF_THE_ORIGINAL) is None


@pytest_twisted.ensureDeferred
async def test_a_sister_s_delivery_is_believed(place: Place) -> None:
    """Of systems that share the files the last to deliver knows them; the others follow it."""
    content = b"squashfs, made with other options"
    place.write(content, TOUCHED)
    sister = replace(
        RECORD,
        key="sister",
        user_acl=(),
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        modified=TOUCHED,
        options="zstd",
    )
    found = await place.found(RECORD, sister)
    assert found == replace(sister, key=RECORD.key, user_acl=RECORD.user_acl)
    assert place.directory.hashed == 0
    place.write(content, TOUCHED + 1)
    found = await place.found(RECORD, sister)
    assert found is not None
    assert (found.sha256, found.modified) == (sister.sha256, TOUCHED + 1)


@pytest_twisted.ensureDeferred
async def test_an_image_of_the_original_gateway_has_to_exist(place: Place) -> None:
    """It recorded neither size nor digest; nor does its record vouch for what others say."""
    place.write(b"whatever it made", TOUCHED)
    place.meta.write_bytes(b"FORMAT: squashfs\nENTRY: [u'x']\n")
    assert await place.found(OF_THE_ORIGINAL) == OF_THE_ORIGINAL
    assert await place.target.has_metadata_of(OF_THE_ORIGINAL)
    assert await place.found(RECORD, OF_THE_ORIGINAL) is None


@pytest_twisted.ensureDeferred
async def test_an_empty_file_is_no_image(place: Place) -> None:
    """The original called it READY where the disk was full; a pull delivers it anew."""
    place.write(b"", TOUCHED)
    with capturedLogs() as log:
        assert await place.found(OF_THE_ORIGINAL) is None
    assert any("or empty" in event["log_format"] for event in log)


@pytest_twisted.ensureDeferred
async def test_a_file_that_was_cut_is_no_image(place: Place, tmp_path: Path) -> None:
    """A squashfs file of the original is as long as its superblock says, or longer by padding."""
    made = tmp_path / "made.squashfs"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(os.urandom(20_000))
    argv = [need("mksquashfs"), str(tmp_path / "tree"), str(made), "-quiet", "-no-progress"]
    await deferToThread(subprocess.run, argv, check=True, stdout=subprocess.DEVNULL)
    content = made.read_bytes()
    place.write(content, TOUCHED)
    assert await place.found(OF_THE_ORIGINAL) == OF_THE_ORIGINAL
    for size in (len(content) // 2, 50):
        place.write(content[:size], TOUCHED)
        assert await place.found(OF_THE_ORIGINAL) is None


@pytest_twisted.ensureDeferred
async def test_what_the_original_did_not_store(place: Place) -> None:
    """It is taken from the metadata that lies there, else from the registry, else not known."""
    config = ImageConfig(env=("B=2",), entrypoint=("/b",), cmd=("b",), workdir="/b")
    held = replace(OF_THE_ORIGINAL, env=("A=1",), user_acl=(2001,))
    place.meta.write_bytes(b"FORMAT: squashfs\nCMD: ['sh', '-c']\nWORKDIR: /a\nENV: A=9\n")
    for known in (None, config):
        whole = await place.target.add_missing_settings(held, known)
        assert whole == replace(held, cmd=("sh", "-c"), workdir="/a")
    for content in (b"FORMAT: squashfs\nCMD: ['sh'\n", b"#" * (META_LIMIT + 1), None):
        place.meta.unlink()
        if content is not None:
            place.meta.write_bytes(content)
        whole = await place.target.add_missing_settings(held, config)
        assert whole == replace(held, entry=("/b",), cmd=("b",), workdir="/b")
        assert await place.target.add_missing_settings(held, None) is None
        place.meta.touch()


@pytest_twisted.ensureDeferred
async def test_our_own_records_are_complete(place: Place) -> None:
    """What such a record lacks the image lacks: nothing is read for it."""
    assert await place.target.add_missing_settings(RECORD, None) is RECORD
    complete = replace(OF_THE_ORIGINAL, env=(), entry=(), cmd=(), workdir="")
    assert await place.target.add_missing_settings(complete, None) is complete


@pytest_twisted.ensureDeferred
async def test_metadata_says_what_the_record_says(place: Place) -> None:
    """Byte by byte: another reader's number is as long as the right one."""
    assert await place.target.has_metadata_of(RECORD)
    whole = place.meta.read_bytes()
    for damaged in (whole.replace(b"2001", b"2002"), whole[:-1], b""):
        place.meta.write_bytes(damaged)
        assert not await place.target.has_metadata_of(RECORD)
    place.meta.unlink()
    assert not await place.target.has_metadata_of(RECORD)
    assert not await place.target.has_metadata_of(OF_THE_ORIGINAL)


class Removals:
    """An image directory that notes what is removed, and may break before the second file."""

    def __init__(self) -> None:
        """Have removed nothing."""
        self.names: list[str] = []
        self.breaks = False

    async def remove(self, name: str) -> None:
        """Remove a file."""
        if self.breaks and self.names:
            raise DeliveryFailed("The system is away.")
        self.names.append(name)


@pytest.mark.parametrize("breaks", [False, True])
@pytest_twisted.ensureDeferred
async def test_metadata_goes_before_its_image(breaks: bool) -> None:
    """An image without metadata is not started; metadata without its image would break a job."""
    directory: Any = Removals()
    directory.breaks = breaks
    target = Target("d", directory, Platform("linux", "amd64"), SquashOptions(), ("s",))
    if breaks:
        with pytest.raises(DeliveryFailed):
            await target.remove("ab")
        assert directory.names == ["ab.meta"]
    else:
        await target.remove("ab")
        assert directory.names == ["ab.meta", "ab.squashfs"]
