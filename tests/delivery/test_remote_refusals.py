"""Deliveries that the system refuses, or whose files another program changes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.delivery.proof import remote_sha256, time_limit
from shiftergw.delivery.scp_files import ScpFiles
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.errors import DeliveryFailed, NoSpace
from shiftergw.model.records import Progress
from shiftergw.plumbing.timing import pause
from shiftergw.ports import Verification
from shiftergw.sftp import packets
from shiftergw.sftp.outgoing_file import REACH
from shiftergw.sftp.packets import SftpRefused
from tests.delivery.contract import CONTENT, IMAGE, META, SHA256, ignore, names
from tests.delivery.far import (
    UNUSED_ACCOUNT,
    Opens,
    account_on,
    connection,
    program_is,
    without_ssh,
)
from tests.installed_reactor import reactor
from tests.parts import need, need_root
from tests.sshd import Sshd, public

LONG = CONTENT * 3
LONG_SHA256 = hashlib.sha256(LONG).hexdigest()
PART = f"{IMAGE}.partial.{LONG_SHA256[:16]}"
assert len(LONG) > REACH
WAYS = pytest.mark.parametrize("open_files", [SftpFiles.begin, ScpFiles.begin], ids=["sftp", "scp"])


@pytest.fixture
def long(tmp_path: Path, root: Path) -> Path:
    """Give a converted file; a part without its last byte is in the image directory."""
    (root / PART).write_bytes(LONG[:-1])
    path = tmp_path / "long"
    path.write_bytes(LONG)
    return path


@WAYS
@pytest.mark.parametrize("when", ["looked through", "proven"])
@pytest_twisted.ensureDeferred
async def test_part_that_is_removed_during_the_delivery(
    opens: Opens, root: Path, tmp_path: Path, long: Path, open_files: Any, when: str
) -> None:
    """A temporary that another program removes is created again."""
    removed_part = tmp_path / "removed"
    condition = '[ "$#" = 0 ]' if when == "looked through" else '[ "$#" != 0 ]'
    env = program_is(
        tmp_path,
        "sha256sum",
        f'{need("sha256sum")} "$@" || exit; {condition} && [ ! -e {removed_part} ] || exit 0;'
        f" mv {root / PART} {removed_part}",
    )
    directory = opens(UNUSED_ACCOUNT, root, env=env, open_files=open_files)
    await directory.install(long, IMAGE, LONG_SHA256, ignore)
    assert removed_part.exists()
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == LONG


@WAYS
@pytest_twisted.ensureDeferred
async def test_part_that_is_being_resumed_is_not_swept(
    opens: Opens, root: Path, tmp_path: Path, long: Path, open_files: Any
) -> None:
    """An old part that is being resumed is not removed by a sweep."""
    directory = opens(
        UNUSED_ACCOUNT, root, env=without_ssh(tmp_path / "bin"), open_files=open_files
    )
    sweeps: list[Deferred[int]] = []

    def report(_: Progress) -> None:
        sweeps.append(Deferred.fromCoroutine(directory.sweep(time.time() + 1000)))

    await directory.install(long, IMAGE, LONG_SHA256, report)
    assert [await sweep for sweep in sweeps] == [0] * len(sweeps)
    assert sweeps
    (root / PART).touch()
    assert await directory.sweep(time.time() + 1000) == 1
    assert names(root) == [IMAGE]


@pytest.mark.parametrize("victim", ["part", "stretch"])
@pytest_twisted.ensureDeferred
async def test_part_that_is_removed_during_a_stretch(
    opens: Opens, root: Path, tmp_path: Path, long: Path, victim: str
) -> None:
    """With SCP, a part that was removed when its next stretch arrives is sent from its start."""
    sweep_marker = tmp_path / "swept"
    victim_path = root / PART if victim == "part" else '"$3"'
    sweeps = f"[ -e {sweep_marker} ] || {{ touch {sweep_marker}; rm {victim_path}; }}"
    env = program_is(tmp_path, "scp", f'{need("scp")} "$@" && {{ {sweeps}; }}')
    directory = opens(UNUSED_ACCOUNT, root, env=env, open_files=ScpFiles.begin)
    await directory.install(long, IMAGE, LONG_SHA256, ignore)
    assert sweep_marker.exists()
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == LONG


@WAYS
@pytest_twisted.ensureDeferred
async def test_two_deliveries_of_the_same_file(
    opens: Opens, root: Path, tmp_path: Path, long: Path, open_files: Any
) -> None:
    """A worker that counts as dead and ends late does not damage another worker's delivery."""
    env = without_ssh(tmp_path / "bin")
    dead, alive = (opens(UNUSED_ACCOUNT, root, env=env, open_files=open_files) for _ in range(2))
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


@pytest.mark.parametrize("is_damaged", [False, True])
@pytest_twisted.ensureDeferred
async def test_connection_that_breaks_after_the_rename(
    opens: Opens, root: Path, tmp_path: Path, source: Path, is_damaged: bool
) -> None:
    """A file that was renamed before the break is not sent again, unless it is damaged."""
    marker = tmp_path / "broken"
    damages = f'printf x >> "{root / IMAGE}"' if is_damaged else "true"
    # The parent shell would still report the exit status, so it is killed as well.
    kills = "read -r _ _ _ up _ < /proc/$PPID/stat; kill -9 $SSH $up $PPID"
    breaks = f"[ -e {marker} ] || {{ touch {marker}; {damages}; {kills}; }}"
    env = program_is(tmp_path, "mv", f'{need("mv")} "$@"; {breaks}', before="export SSH=$$;")
    directory = opens(UNUSED_ACCOUNT, root, env=env, open_files=ScpFiles.begin)
    reports: list[Progress] = []
    await directory.install(source, IMAGE, SHA256, reports.append)
    assert marker.exists()
    whole = Progress("deliver", len(CONTENT), len(CONTENT))
    assert reports.count(whole) == 1 + is_damaged
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == CONTENT


@WAYS
@pytest_twisted.ensureDeferred
async def test_file_that_the_system_cannot_read(
    opens: Opens, root: Path, tmp_path: Path, source: Path, open_files: Any
) -> None:
    """A digest that fails on the system is an error: samples do not replace it."""
    says = 'echo "sha256sum: $2: Input/output error" >&2; exit 1'
    env = program_is(tmp_path, "sha256sum", says)
    directory = opens(UNUSED_ACCOUNT, root, env=env, open_files=open_files)
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
    ids=["noise", "second digest"],  # the digest differs in each process of a run
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
    """Other output is ignored; if it looks like a digest, the delivery fails."""
    env = program_is(tmp_path, "sha256sum", f'{prints}; exec {need("sha256sum")} "$@"')
    directory = opens(UNUSED_ACCOUNT, root, env=env, open_files=open_files)
    if is_clear:
        verification = await directory.install(source, IMAGE, SHA256, ignore)
        assert verification == Verification("sha256")
        return
    with pytest.raises(DeliveryFailed) as caught:
        await directory.install(source, IMAGE, SHA256, ignore)
    assert "digest program says" in caught.value.detail
    assert names(root) == []


@pytest.mark.parametrize(
    ("script", "is_used"),
    [
        ('echo "$*" >> {log}; exec {openssl} "$@"', True),
        ("echo unknown option >&2; exit 1", False),
        (f"echo {SHA256} -", False),
    ],
    ids=["works", "fails", "is wrong"],
)
@pytest_twisted.ensureDeferred
async def test_openssl(root: Path, tmp_path: Path, script: str, is_used: bool) -> None:
    """`openssl` computes digests if it can; otherwise `sha256sum` does."""
    (root / IMAGE).write_bytes(CONTENT)
    log = tmp_path / "openssl.log"
    log.touch()
    env = program_is(tmp_path, "openssl", script.format(log=log, openssl=need("openssl")))
    link, path, length = connection(UNUSED_ACCOUNT, env), bytes(root / IMAGE), 1_000_000
    assert await remote_sha256(link, path, len(CONTENT), reactor) == SHA256
    prefix = await remote_sha256(link, path, length, reactor, prefix=True)
    assert prefix == hashlib.sha256(CONTENT[:length]).hexdigest()
    with pytest.raises(SftpRefused) as caught:
        await remote_sha256(link, bytes(root / META), 1, reactor)
    assert caught.value.status == packets.NO_SUCH_FILE
    await link.close()
    # Each digest is preceded by a test of the program.
    assert log.read_text().splitlines() == ["dgst -sha256 -r"] * (5 if is_used else 0)


@pytest_twisted.ensureDeferred
async def test_digest_that_takes_too_long(root: Path, tmp_path: Path) -> None:
    """A digest that exceeds its time limit is an error."""
    (root / IMAGE).write_bytes(CONTENT)
    start_marker = tmp_path / "begun"
    env = program_is(tmp_path, "sha256sum", f"touch {start_marker}; exec sleep 1000")
    link, clock = connection(UNUSED_ACCOUNT, env), Clock()
    path = bytes(root / IMAGE)
    digest = Deferred.fromCoroutine(remote_sha256(link, path, len(CONTENT), clock))
    while not start_marker.exists():
        await pause(0.01, reactor)
    clock.advance(time_limit(len(CONTENT)))
    with pytest.raises(DeliveryFailed, match="could not be checked") as caught:
        await digest
    assert '"verify": "sample"' in caught.value.remedy
    await link.close()


@WAYS
@pytest_twisted.ensureDeferred
async def test_account_with_a_file_size_limit(
    opens: Opens, root: Path, tmp_path: Path, source: Path, open_files: Any
) -> None:
    """A limit of the account, such as a quota, is an error; the partial file is removed."""
    file_size_limit = f"trap '' XFSZ; ulimit -f {len(CONTENT) // 1024}"
    env = without_ssh(tmp_path / "bin", before=file_size_limit)
    directory = opens(UNUSED_ACCOUNT, root, env=env, open_files=open_files)
    await directory.write(b"x", META)
    with pytest.raises(DeliveryFailed) as caught:
        await directory.install(source, IMAGE, SHA256, ignore)
    assert "quota" in caught.value.remedy
    assert str(root) not in str(caught.value)
    assert names(root) == [META]


@pytest.mark.parametrize("words", ["Disk quota exceeded", "No space left on device"])
@pytest_twisted.ensureDeferred
async def test_message_about_a_quota(
    opens: Opens, root: Path, tmp_path: Path, source: Path, words: str
) -> None:
    """A message about a full quota or disk raises `NoSpace`."""
    swallows = "printf '\\0'; read -r head; printf '\\0'; head -c 10000001 > /dev/null"
    env = program_is(tmp_path, "scp", f"{swallows}; printf '\\1scp: image: {words}\\n'; exit 1")
    directory = opens(UNUSED_ACCOUNT, root, env=env, open_files=ScpFiles.begin)
    with pytest.raises(NoSpace) as caught:
        await directory.install(source, IMAGE, SHA256, ignore)
    assert words in caught.value.detail
    assert names(root) == []


@pytest.fixture
def parent() -> Iterator[Path]:
    """Give a directory that every user can enter, with an image directory in it."""
    need_root()
    with TemporaryDirectory(dir="/run") as directory:
        path = Path(directory)
        path.chmod(0o755)
        (path / "images").mkdir()
        yield path


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o744])
@pytest_twisted.ensureDeferred
async def test_wrong_permissions(opens: Opens, parent: Path, source: Path, mode: int) -> None:
    """An account without the needed permissions gets an error, and nothing is changed."""
    images = parent / "images"
    (images / IMAGE).write_bytes(CONTENT)
    (images / IMAGE).chmod(0o600)
    images.chmod(mode)
    with Sshd("ForceCommand internal-sftp", f"AuthorizedKeysFile {parent / 'keys'}") as sshd:
        (parent / "keys").write_text(f"{public(sshd.key)}\n")
        (parent / "keys").chmod(0o644)
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
