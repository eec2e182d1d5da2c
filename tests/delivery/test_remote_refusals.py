"""Deliveries to another machine that the system refuses, or whose files somebody else touches."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.delivery.proof import remote_sha256, time_limit
from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.delivery.scp_files import ScpFiles
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.errors import DeliveryFailed, NoSpace
from shiftergw.model import Progress
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import Verification
from shiftergw.sftp.outgoing_file import REACH
from shiftergw.ssh.openssh import OpensshAccount
from tests.delivery.contract import CONTENT, IMAGE, META, SHA256, ignore, names
from tests.delivery.far import (
    NOBODY,
    account_on,
    connection,
    far_directory,
    reactor,
    without_ssh,
)
from tests.parts import need, need_root
from tests.sshd import Sshd, public

LONG = CONTENT * 3
LONG_SHA256 = hashlib.sha256(LONG).hexdigest()
PART = f"{IMAGE}.partial.{LONG_SHA256[:16]}"
assert len(LONG) > REACH
WAYS = pytest.mark.parametrize("open_files", [SftpFiles.begin, ScpFiles.begin], ids=["sftp", "scp"])


@pytest.fixture
def long(tmp_path: Path, root: Path) -> Path:
    """Give a converted file of which all but the last byte lies there."""
    (root / PART).write_bytes(LONG[:-1])
    path = tmp_path / "long"
    path.write_bytes(LONG)
    return path


Opens = Callable[..., RemoteDirectory]


@pytest.fixture
def opens(threads: Threads) -> Iterator[Opens]:
    """Give what makes adapters that are closed afterwards."""
    made: list[RemoteDirectory] = []

    def far(account: OpensshAccount, root: Path, **more: Any) -> RemoteDirectory:
        made.append(far_directory(account, PurePosixPath(root), threads, **more))
        return made[-1]

    yield far
    for directory in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))


def program_is(tmp_path: Path, name: str, script: str, before: str = "") -> Mapping[str, str]:
    """Return the environment of a stand-in whose program of this name is a script."""
    there = tmp_path / "far"
    there.mkdir()
    (there / name).write_text(f"#!/bin/sh\n{script}\n")
    (there / name).chmod(0o755)
    return without_ssh(tmp_path / "bin", before=f"PATH={there}:$PATH; {before}")


@WAYS
@pytest.mark.parametrize("when", ["looked through", "proven"])
@pytest_twisted.ensureDeferred
async def test_part_that_is_swept_meanwhile(
    opens: Opens, root: Path, tmp_path: Path, long: Path, open_files: Any, when: str
) -> None:
    """A temporary that somebody removes, taking it for a dead one's, is made anew."""
    removed = tmp_path / "removed"
    wanted = '[ "$#" = 0 ]' if when == "looked through" else '[ "$#" != 0 ]'
    env = program_is(
        tmp_path,
        "sha256sum",
        f'{need("sha256sum")} "$@" || exit; {wanted} && [ ! -e {removed} ] || exit 0;'
        f" mv {root / PART} {removed}",
    )
    directory = opens(NOBODY, root, env=env, open_files=open_files)
    await directory.install(long, IMAGE, LONG_SHA256, ignore)
    assert removed.exists()
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == LONG


@WAYS
@pytest_twisted.ensureDeferred
async def test_part_that_is_gone_on_with_is_not_swept(
    opens: Opens, root: Path, tmp_path: Path, long: Path, open_files: Any
) -> None:
    """A part that is old, since the system was away for long, is not taken for a dead one's."""
    directory = opens(NOBODY, root, env=without_ssh(tmp_path / "bin"), open_files=open_files)
    sweeps: list[Deferred[int]] = []

    def report(_: Progress) -> None:
        sweeps.append(Deferred.fromCoroutine(directory.sweep(time.time() + 1000)))

    await directory.install(long, IMAGE, LONG_SHA256, report)
    assert [await one for one in sweeps] == [0] * len(sweeps)
    assert sweeps
    (root / PART).touch()
    assert await directory.sweep(time.time() + 1000) == 1
    assert names(root) == [IMAGE]


@pytest.mark.parametrize("gone", ["part", "stretch"])
@pytest_twisted.ensureDeferred
async def test_part_that_is_swept_during_a_stretch(
    opens: Opens, root: Path, tmp_path: Path, long: Path, gone: str
) -> None:
    """By SCP, a part that is gone when its next stretch has come is made anew, from its start."""
    swept = tmp_path / "swept"
    what = root / PART if gone == "part" else '"$3"'
    sweeps = f"[ -e {swept} ] || {{ touch {swept}; rm {what}; }}"
    env = program_is(tmp_path, "scp", f'{need("scp")} "$@" && {{ {sweeps}; }}')
    directory = opens(NOBODY, root, env=env, open_files=ScpFiles.begin)
    await directory.install(long, IMAGE, LONG_SHA256, ignore)
    assert swept.exists()
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == LONG


@WAYS
@pytest_twisted.ensureDeferred
async def test_two_that_deliver_the_same_file(
    opens: Opens, root: Path, tmp_path: Path, long: Path, open_files: Any
) -> None:
    """A worker that is taken for dead and ends late does not spoil what another one delivers."""
    env = without_ssh(tmp_path / "bin")
    dead, alive = (opens(NOBODY, root, env=env, open_files=open_files) for _ in range(2))
    ends: list[Deferred[Verification]] = []

    def report(progress: Progress) -> None:
        if not ends and progress.done > len(LONG) // 2:
            ends.append(Deferred.fromCoroutine(alive.install(long, IMAGE, LONG_SHA256, ignore)))
            reactor.callLater(0.05, late.cancel)

    (root / PART).unlink()
    late = Deferred.fromCoroutine(dead.install(long, IMAGE, LONG_SHA256, report))
    with suppress(CancelledError):
        await late
    await ends[0]
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == LONG


@pytest.mark.parametrize("damaged", [False, True])
@pytest_twisted.ensureDeferred
async def test_connection_that_breaks_after_the_rename(
    opens: Opens, root: Path, tmp_path: Path, source: Path, damaged: bool
) -> None:
    """A file that is in its place already is not sent once more, if it is the right one."""
    broken = tmp_path / "broken"
    damages = f'printf x >> "{root / IMAGE}"' if damaged else "true"
    # The shell above this program's own would still say how it ended.
    kills = "read -r _ _ _ up _ < /proc/$PPID/stat; kill -9 $SSH $up $PPID"
    breaks = f"[ -e {broken} ] || {{ touch {broken}; {damages}; {kills}; }}"
    env = program_is(tmp_path, "mv", f'{need("mv")} "$@"; {breaks}', before="export SSH=$$;")
    directory = opens(NOBODY, root, env=env, open_files=ScpFiles.begin)
    heard: list[int] = []
    await directory.install(source, IMAGE, SHA256, lambda progress: heard.append(progress.done))
    assert broken.exists()
    assert heard.count(len(CONTENT)) == 1 + damaged
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == CONTENT


@WAYS
@pytest_twisted.ensureDeferred
async def test_file_that_cannot_be_read_there(
    opens: Opens, root: Path, tmp_path: Path, source: Path, open_files: Any
) -> None:
    """A digest that the system fails to make is an error: samples do not stand in for it."""
    says = 'echo "sha256sum: $2: Input/output error" >&2; exit 1'
    env = program_is(tmp_path, "sha256sum", says)
    directory = opens(NOBODY, root, env=env, open_files=open_files)
    with pytest.raises(DeliveryFailed) as caught:
        await directory.install(source, IMAGE, SHA256, ignore)
    assert "Input/output error" in caught.value.detail
    assert names(root) == []
    (root / IMAGE).write_bytes(CONTENT)
    with pytest.raises(DeliveryFailed):
        await directory.digest(IMAGE)


@WAYS
@pytest.mark.parametrize(
    ("prints", "is_clear"),
    [("echo Late", True), (f"echo {SHA256} -", False)],
    ids=["noise", "second digest"],  # the digest is another one in each process of a run
)
@pytest_twisted.ensureDeferred
async def test_digest_among_other_lines(
    opens: Opens,
    root: Path,
    tmp_path: Path,
    source: Path,
    open_files: Any,
    prints: str,
    is_clear: bool,
) -> None:
    """What else is printed meanwhile is no digest; where it looks like one, nothing is believed."""
    env = program_is(tmp_path, "sha256sum", f'{prints}; exec {need("sha256sum")} "$@"')
    directory = opens(NOBODY, root, env=env, open_files=open_files)
    if is_clear:
        verification = await directory.install(source, IMAGE, SHA256, ignore)
        assert verification == Verification("sha256")
        return
    with pytest.raises(DeliveryFailed) as caught:
        await directory.install(source, IMAGE, SHA256, ignore)
    assert "sha256sum says" in caught.value.detail
    assert names(root) == []


@pytest_twisted.ensureDeferred
async def test_digest_that_takes_too_long(root: Path, tmp_path: Path) -> None:
    """A system that cannot read a file within the limit has not proven it, and may have none."""
    (root / IMAGE).write_bytes(CONTENT)
    begun = tmp_path / "begun"
    env = program_is(tmp_path, "sha256sum", f"touch {begun}; exec sleep 1000")
    over, clock = connection(NOBODY, env), Clock()
    path = bytes(root / IMAGE)
    asked = Deferred.fromCoroutine(remote_sha256(over, path, len(CONTENT), clock))
    while not begun.exists():
        await pause(0.01, reactor)
    clock.advance(time_limit(len(CONTENT)))
    with pytest.raises(DeliveryFailed, match="could not be checked") as caught:
        await asked
    assert '"verify": "sample"' in caught.value.remedy
    await over.close()


@WAYS
@pytest_twisted.ensureDeferred
async def test_account_that_may_write_no_more(
    opens: Opens, root: Path, tmp_path: Path, source: Path, open_files: Any
) -> None:
    """A limit of the account alone, as a quota is one, is an error; what was written goes."""
    limited = f"trap '' XFSZ; ulimit -f {len(CONTENT) // 1024}"
    env = without_ssh(tmp_path / "bin", before=limited)
    directory = opens(NOBODY, root, env=env, open_files=open_files)
    await directory.write(b"x", META)
    with pytest.raises(DeliveryFailed) as caught:
        await directory.install(source, IMAGE, SHA256, ignore)
    assert "quota" in caught.value.remedy
    assert str(root) not in str(caught.value)
    assert names(root) == [META]


@pytest.mark.parametrize("words", ["Disk quota exceeded", "No space left on device"])
@pytest_twisted.ensureDeferred
async def test_quota_in_words(
    opens: Opens, root: Path, tmp_path: Path, source: Path, words: str
) -> None:
    """Where the system has words for a full quota or disk, it is called so."""
    swallows = "printf '\\0'; read -r head; printf '\\0'; head -c 10000001 > /dev/null"
    env = program_is(tmp_path, "scp", f"{swallows}; printf '\\1scp: image: {words}\\n'; exit 1")
    directory = opens(NOBODY, root, env=env, open_files=ScpFiles.begin)
    with pytest.raises(NoSpace) as caught:
        await directory.install(source, IMAGE, SHA256, ignore)
    assert words in caught.value.detail
    assert names(root) == []


@pytest.fixture
def owned() -> Iterator[Path]:
    """Give a directory that every user finds, with the image directory in it."""
    need_root()
    with TemporaryDirectory(dir="/run") as directory:
        path = Path(directory)
        path.chmod(0o755)
        (path / "images").mkdir()
        yield path


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o744])
@pytest_twisted.ensureDeferred
async def test_wrong_permissions(opens: Opens, owned: Path, source: Path, mode: int) -> None:
    """An account that has too few rights to the directory is told so, and changes nothing."""
    images = owned / "images"
    (images / IMAGE).write_bytes(CONTENT)
    (images / IMAGE).chmod(0o600)
    images.chmod(mode)
    with Sshd("ForceCommand internal-sftp", f"AuthorizedKeysFile {owned / 'keys'}") as sshd:
        (owned / "keys").write_text(f"{public(sshd.key)}\n")
        (owned / "keys").chmod(0o644)
        directory = opens(account_on(sshd, user="nobody"), images)
        attempts: list[Callable[[], Any]] = [
            lambda: directory.install(source, IMAGE, SHA256, ignore),
            lambda: directory.write(b"x", META),
            lambda: directory.remove(IMAGE),
            lambda: directory.digest(IMAGE),
        ]
        if mode != 0o755:
            attempts.append(lambda: directory.exists(IMAGE))
        for attempt in attempts:
            with pytest.raises(DeliveryFailed, match="may not read or write there") as caught:
                await attempt()
            assert str(images) in caught.value.detail
            assert str(images) not in str(caught.value)
    assert names(images) == [IMAGE]
    assert (images / IMAGE).read_bytes() == CONTENT
