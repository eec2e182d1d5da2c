"""The files of an image directory: metadata as in the record, images as delivered."""

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
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs

from shiftergw.delivery.local import LocalDirectory
from shiftergw.errors import DeliveryFailed
from shiftergw.job.targets import META_LIMIT, Target, meta_of
from shiftergw.model.build_options import SquashOptions
from shiftergw.model.images import ImageConfig, Platform
from shiftergw.model.records import ImageRecord, document_of
from shiftergw.model.requests import Session
from shiftergw.oci.manifest import parse_config
from shiftergw.oci.meta import Meta, read_meta
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import InstalledFile
from shiftergw.rules.access import Access
from tests.parts import need

# Texts that break lines, lists and numbers, or would be an ACL at the start of a line.
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
    """Return the stored record of an image with this configuration at the registry."""
    image = parse_config(json.dumps({"config": config}).encode())
    settings = {"env": image.env, "entry": image.entrypoint, "cmd": image.cmd}
    document = document_of({**settings, "workdir": image.workdir, **acl})
    return ImageRecord.from_document(json.loads(json.dumps(document)))


def _lets_in(meta: Meta, session: Session) -> bool:
    """Return whether the runtime starts an image for a user; without both lists it does for all."""
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
    """Metadata can be read for all values of the image and all forms of access lists."""
    record = _record(config, private=private, user_acl=users, group_acl=groups)
    meta = read_meta(meta_of(record).content)
    assert _lets_in(meta, session) is record.may_be_read_by(session)
    is_restricted = Access.from_record(record).is_restricted
    assert meta.user_acl == ((users or ()) if is_restricted else None)
    assert meta.group_acl == ((groups or ()) if is_restricted else None)


@given(CONFIGS, IDS)
@example({"Env": ["A=\nUSERACL: 7", "A=\r"]}, None)
def test_values_of_an_image_are_read_unchanged_or_omitted(
    config: Config, users: tuple[int, ...] | None
) -> None:
    """An omitted value is named; the FORMAT line is always that of the gateway."""
    record = _record(config, private=True, user_acl=users)
    file = meta_of(record)
    meta = read_meta(file.content)
    assert (meta.format, meta.warnings) == ("squashfs", [])
    for name, value, read in (
        ("ENTRY", record.entry, meta.entry),
        ("CMD", record.cmd, meta.cmd),
        ("WORKDIR", record.workdir, meta.workdir),
    ):
        assert read == (None if name in file.omissions else value or None)
    complete = [value for value in record.env or () if value in meta.env]
    left_out = [name for name in file.omissions if name.startswith("ENV ")]
    assert len(complete) + len(left_out) >= len(record.env or ())
    assert {value.rstrip(" \t\v\f\r\n") for value in record.env or ()} >= set(meta.env)


ID = "0123456789abcdef" * 4
CONTENT = b"squashfs"
DELIVERY_TIME, TOUCH_TIME = 1_700_000_000, 1_700_000_100
RECORD = ImageRecord(
    key="mine",
    id=ID,
    env=("A=1",),
    private=True,
    user_acl=(2001,),
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    modified=DELIVERY_TIME,
    options="gzip",
)
OF_THE_ORIGINAL = ImageRecord(key="old", id=ID)


class Directory(LocalDirectory):
    """An image directory that counts the computed digests."""

    digests = 0
    tells_times = True

    async def exists(self, name: str) -> InstalledFile | None:
        """Return the file; without its time if the server tells none."""
        result = await super().exists(name)
        return result if result is None or self.tells_times else replace(result, modified=None)

    async def digest(self, name: str) -> str:
        """Compute and count."""
        self.digests += 1
        return await super().digest(name)


class Place:
    """A target, and its image directory with the files of `RECORD`."""

    def __init__(self, root: Path, threads: Threads) -> None:
        """Write the files."""
        self.directory = Directory(root, threads)
        self.target = Target("images", self.directory, Platform(), SquashOptions(), ("mycluster",))
        self.image, self.meta = root / f"{ID}.squashfs", root / f"{ID}.meta"
        self.meta.write_bytes(meta_of(RECORD).content)
        self.messages: list[str] = []
        self.write(CONTENT, DELIVERY_TIME)

    def write(self, content: bytes, seconds: int) -> None:
        """Replace the content of the image and its time."""
        self.image.write_bytes(content)
        os.utime(self.image, (seconds, seconds))

    async def verify(self, record: ImageRecord, *sisters: ImageRecord) -> ImageRecord | None:
        """Verify the image file of a record."""
        return await self.target.verify_file(record, (record, *sisters), self.messages.append)


@pytest_twisted.async_yield_fixture()
async def place(tmp_path: Path, threads: Threads) -> AsyncIterator[Place]:
    """Yield an image directory whose files are as delivered."""
    yield Place(tmp_path, threads)


@pytest_twisted.ensureDeferred
async def test_an_image_as_it_was_delivered_is_not_read(place: Place) -> None:
    """Size and time are enough, so the check does not depend on the image's size."""
    assert await place.verify(RECORD) == RECORD
    assert (place.directory.digests, place.messages) == (0, [])


@pytest_twisted.ensureDeferred
async def test_a_touched_image_is_verified_by_its_digest(place: Place) -> None:
    """A file with a new time, as after a restore, is verified; the record gets the new time."""
    place.write(CONTENT, TOUCH_TIME)
    result = await place.verify(RECORD)
    assert result == replace(RECORD, modified=TOUCH_TIME)
    assert (place.directory.digests, len(place.messages)) == (1, 1)
    assert await place.verify(result) == result
    assert place.directory.digests == 1


@pytest_twisted.ensureDeferred
async def test_a_record_without_the_time_gets_it(place: Place) -> None:
    """A record of an earlier version, which has no time, gets that of the file."""
    assert await place.verify(replace(RECORD, modified=None)) == RECORD
    assert place.directory.digests == 1


@pytest.mark.parametrize(("content", "is_valid"), [(CONTENT, True), (b"squashfz", False)])
@pytest_twisted.ensureDeferred
async def test_without_times_the_digest_decides(
    place: Place, content: bytes, is_valid: bool
) -> None:
    """If the server does not tell when a file was written, its size is not enough."""
    place.write(content, DELIVERY_TIME)
    place.directory.tells_times = False
    record = replace(RECORD, modified=None)
    assert await place.verify(record) == (record if is_valid else None)
    assert place.directory.digests == 1


@pytest.mark.parametrize(("content", "digests"), [(b"squashfz", 1), (b"short", 0)])
@pytest_twisted.ensureDeferred
async def test_another_file_is_not_the_image(place: Place, content: bytes, digests: int) -> None:
    """Other bytes of the same size, or another size: the log warns, and the image is missing."""
    place.write(content, TOUCH_TIME)
    with capturedLogs() as events:
        assert await place.verify(RECORD) is None
    assert [event["log_level"].name for event in events] == ["warn"]
    assert place.directory.digests == digests


@pytest_twisted.ensureDeferred
async def test_a_missing_image(place: Place) -> None:
    """Without a file there is no image, whichever gateway recorded it."""
    place.image.unlink()
    assert await place.verify(RECORD) is None
    assert await place.verify(OF_THE_ORIGINAL) is None


@pytest_twisted.ensureDeferred
async def test_a_delivery_by_a_sister_system_counts(place: Place) -> None:
    """Of systems that share files, the last to deliver has the facts.

    The other records adopt them.
    """
    content = b"squashfs, made with other options"
    place.write(content, TOUCH_TIME)
    sister = replace(
        RECORD,
        key="sister",
        user_acl=(),
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        modified=TOUCH_TIME,
        options="zstd",
    )
    result = await place.verify(RECORD, sister)
    assert result == replace(sister, key=RECORD.key, user_acl=RECORD.user_acl)
    assert place.directory.digests == 0
    place.write(content, TOUCH_TIME + 1)
    result = await place.verify(RECORD, sister)
    assert result is not None
    assert (result.sha256, result.modified) == (sister.sha256, TOUCH_TIME + 1)


@pytest_twisted.ensureDeferred
async def test_an_image_of_the_original_gateway_has_to_exist(place: Place) -> None:
    """The original gateway recorded neither size nor digest.

    Its record does not confirm those of another record.
    """
    place.write(b"whatever it made", TOUCH_TIME)
    place.meta.write_bytes(b"FORMAT: squashfs\nENTRY: [u'x']\n")
    assert await place.verify(OF_THE_ORIGINAL) == OF_THE_ORIGINAL
    assert await place.target.has_metadata_of(OF_THE_ORIGINAL)
    assert await place.verify(RECORD, OF_THE_ORIGINAL) is None


@pytest_twisted.ensureDeferred
async def test_an_empty_file_is_no_image(place: Place) -> None:
    """The original made such files READY when the disk was full; a pull delivers them again."""
    place.write(b"", TOUCH_TIME)
    with capturedLogs() as log:
        assert await place.verify(OF_THE_ORIGINAL) is None
    assert any("or empty" in event["log_format"] for event in log)


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_cut_short_is_no_image(place: Place, tmp_path: Path) -> None:
    """A squashfs file is at least as long as its superblock says; padding may follow."""
    squashfs = tmp_path / "made.squashfs"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(os.urandom(20_000))
    argv = [need("mksquashfs"), str(tmp_path / "tree"), str(squashfs), "-quiet", "-no-progress"]
    await deferToThread(subprocess.run, argv, check=True, stdout=subprocess.DEVNULL)
    content = squashfs.read_bytes()
    place.write(content, TOUCH_TIME)
    assert await place.verify(OF_THE_ORIGINAL) == OF_THE_ORIGINAL
    for size in (len(content) // 2, 50):
        place.write(content[:size], TOUCH_TIME)
        assert await place.verify(OF_THE_ORIGINAL) is None


@pytest_twisted.ensureDeferred
async def test_values_that_the_original_did_not_store(place: Place) -> None:
    """A value that is not stored comes from the metadata file, else from the registry."""
    config = ImageConfig(env=("B=2",), entrypoint=("/b",), cmd=("b",), workdir="/b")
    record = replace(OF_THE_ORIGINAL, env=("A=1",), user_acl=(2001,))
    place.meta.write_bytes(b"FORMAT: squashfs\nCMD: ['sh', '-c']\nWORKDIR: /a\nENV: A=9\n")
    for registry_config in (None, config):
        whole = await place.target.add_missing_settings(record, registry_config)
        assert whole == replace(record, cmd=("sh", "-c"), workdir="/a")
    for content in (b"FORMAT: squashfs\nCMD: ['sh'\n", b"#" * (META_LIMIT + 1), None):
        place.meta.unlink()
        if content is not None:
            place.meta.write_bytes(content)
        whole = await place.target.add_missing_settings(record, config)
        assert whole == replace(record, entry=("/b",), cmd=("b",), workdir="/b")
        assert await place.target.add_missing_settings(record, None) is None
        place.meta.touch()


@pytest_twisted.ensureDeferred
async def test_records_of_this_gateway_are_complete(place: Place) -> None:
    """A setting that such a record lacks does not exist: nothing is read for it."""
    assert await place.target.add_missing_settings(RECORD, None) is RECORD
    complete = replace(OF_THE_ORIGINAL, env=(), entry=(), cmd=(), workdir="")
    assert await place.target.add_missing_settings(complete, None) is complete


@pytest_twisted.ensureDeferred
async def test_metadata_agrees_with_the_record(place: Place) -> None:
    """Metadata are compared by digest, as another uid may have the same number of digits."""
    assert await place.target.has_metadata_of(RECORD)
    whole = place.meta.read_bytes()
    for damage in (whole.replace(b"2001", b"2002"), whole[:-1], b""):
        place.meta.write_bytes(damage)
        assert not await place.target.has_metadata_of(RECORD)
    place.meta.unlink()
    assert not await place.target.has_metadata_of(RECORD)
    assert not await place.target.has_metadata_of(OF_THE_ORIGINAL)


class Removals:
    """An image directory that records removals, and may fail before the second one."""

    def __init__(self) -> None:
        """Begin with no removals."""
        self.names: list[str] = []
        self.breaks = False

    async def remove(self, name: str) -> None:
        """Remove a file."""
        if self.breaks and self.names:
            raise DeliveryFailed("The system is away.")
        self.names.append(name)


@pytest.mark.parametrize("breaks", [False, True])
@pytest_twisted.ensureDeferred
async def test_metadata_is_removed_before_its_image(breaks: bool) -> None:
    """No runtime starts an image without metadata. Metadata without its image would break a job."""
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
