"""Files of users: from the spool or from a gateway, verified by their digest, then read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.cache.upload_spool import UploadFiles
from shiftergw.cache.upload_states import data_path
from shiftergw.errors import (
    BlobCorrupt,
    ImageNotFound,
    NoSpace,
    NotAuthenticated,
    PullError,
    RetryLater,
    TimedOut,
)
from shiftergw.model.images import Platform
from shiftergw.model.records import ImageRecord, Progress
from shiftergw.model.references import ImageReference
from shiftergw.model.uploads import ImageFile, UploadDeclaration
from shiftergw.plumbing import disk_errors
from shiftergw.plumbing.backoff import Backoff
from shiftergw.plumbing.seal import CREDENTIAL_SECONDS, Seal
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.service.worker_downloads import PIECE_LIMIT, WorkerDownloads
from shiftergw.sources.user_files import spool_client
from shiftergw.sources.user_files.files import FilePlaces, UserFiles
from shiftergw.sources.user_files.spool_client import PIECE, SpoolClient
from tests.job.workbench import Source
from tests.web.fakes import FakeGateway, listening, site_of

ALICE = 2001
CONTENT = os.urandom(100_000)


class FileBench:
    """A spool of the gateway, and a worker; `paths` are the files that were opened as sources."""

    def __init__(self, root: Path, threads: Threads) -> None:
        """Start with an empty spool."""
        self.root, self.threads = root, threads
        self.spool = UploadFiles(root / "spool", threads, reactor)
        self.seal = Seal(b"k" * 32)
        self.paths: list[Path] = []
        self.places: list[Path] = []
        self.contents: list[bytes] = []
        self.messages: list[str] = []
        self.progress: list[Progress] = []
        self.imports: list[tuple[str, int]] = []
        self.gate: Deferred[None] | None = None

    async def add(self, content: bytes = CONTENT, sha256: str = "") -> ImageFile:
        """Put a complete upload into the spool; return it as the file of a record."""
        sha256 = sha256 or hashlib.sha256(content).hexdigest()
        declaration = UploadDeclaration("mycluster", ALICE, len(content), sha256, "sif")
        upload = await self.spool.add(declaration, 1.0)
        writer = await self.spool.open(upload.id)
        assert writer is not None
        await writer.write(content)
        await writer.commit(2.0)
        await writer.close()
        return ImageFile(upload.id, "sif", len(content), sha256)

    def files(
        self, spool: str = "spool", gateway: SpoolClient | None = None, seconds: float = 600
    ) -> UserFiles:
        """Return the files of a worker, with this directory for the spool."""

        async def open_local(
            file: Any, path: Path, place: Path, notify: Any, report: Any
        ) -> Source:
            self._note(path, place)
            if self.gate is not None:
                await self.gate
            return Source()

        async def read_import(file: ImageFile, uid: int, copy: Path, report: Any) -> None:
            self._note_import(file.path, uid, copy)

        places = FilePlaces(self.root / spool, self.root / "scratch")
        return UserFiles(places, gateway, open_local, read_import, self.threads, reactor, seconds)

    def _note(self, path: Path, place: Path) -> None:
        self.places.append(place)
        (place / "archive.tar").open("x").close()
        self.paths.append(path)
        self.contents.append(path.read_bytes())

    def _note_import(self, path: str, uid: int, copy: Path) -> None:
        self.imports.append((path, uid))
        copy.write_bytes(CONTENT)

    async def read(self, files: UserFiles, file: ImageFile) -> tuple[Any, Any]:
        """Open the file of a record and return what it resolves to."""
        record = ImageRecord("k" * 24, "mycluster", "custom", upload=file, requested_by=ALICE)
        async with files.open(record, self.messages.append, self.progress.append) as source:
            reference = ImageReference.parse("app:1")
            assert await source.head(reference, None, self.messages.append) is None
            return await source.resolve(reference, Platform(), None, self.messages.append)

    @property
    def leftovers(self) -> list[str]:
        """Return the names of the files in the scratch space."""
        return sorted(path.name for path in (self.root / "scratch").iterdir())

    def client(self, port: int, seal: Seal | None = None) -> SpoolClient:
        """Return a client of the gateway at this port."""
        key = seal or self.seal
        return SpoolClient(f"http://127.0.0.1:{port}", lambda: key, self.threads, reactor)

    def gateway(self) -> FakeGateway:
        """Return a gateway that gives the spool to workers."""
        downloads = WorkerDownloads(self.spool, lambda: self.seal, reactor)
        return FakeGateway(downloads=downloads)


@pytest_twisted.async_yield_fixture()
async def bench(tmp_path: Path, threads: Threads) -> AsyncIterator[FileBench]:
    """Yield a worker and a gateway."""
    parts = FileBench(tmp_path, threads)
    await parts.spool.startService()
    yield parts


@pytest_twisted.ensureDeferred
async def test_an_upload_on_this_machine_is_read_where_it_is(bench: FileBench) -> None:
    """The upload is hashed first, and its image is private to the user, apart from all others."""
    file = await bench.add()
    image, _ = await bench.read(bench.files(), file)
    assert bench.paths == [data_path(bench.root / "spool", file.id)]
    assert (image.private, image.location, image.repository) == (True, "", "uploads/2001")
    assert bench.progress[-1].done == len(CONTENT)
    assert bench.leftovers == []
    image, _ = await bench.read(bench.files(), replace(file, public=True))
    assert not image.private


@pytest_twisted.ensureDeferred
async def test_an_upload_with_a_wrong_digest(bench: FileBench) -> None:
    """The upload is not parsed; the error goes to the user, and the upload is removed."""
    file = await bench.add(sha256="ab" * 32)
    with pytest.raises(BlobCorrupt, match="Upload the file again"):
        await bench.read(bench.files(), file)
    assert bench.paths == []
    assert list((bench.root / "spool").iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_a_worker_without_the_upload(bench: FileBench) -> None:
    """Without `GatewayURL` the error names the key."""
    file = await bench.add()
    with pytest.raises(ImageNotFound, match="GatewayURL"):
        await bench.read(bench.files("elsewhere"), file)


@pytest_twisted.ensureDeferred
async def test_an_upload_that_was_removed_while_its_pull_waited(bench: FileBench) -> None:
    """On the gateway's machine the user is told so; its configuration lacks nothing."""
    file = await bench.add()
    await bench.spool.remove(file.id)
    with pytest.raises(ImageNotFound, match="removed") as caught:
        await bench.read(bench.files(), file)
    assert "GatewayURL" not in caught.value.remedy


@pytest_twisted.ensureDeferred
async def test_an_upload_that_would_fill_the_disk(
    bench: FileBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload is not fetched: other jobs of the machine need room as well."""
    file = await bench.add()
    monkeypatch.setattr(disk_errors, "free_space", lambda _: 1 << 30)
    async with listening(site_of(bench.gateway())) as port:
        with pytest.raises(NoSpace, match="disk for uploads"):
            await bench.read(bench.files("absent", bench.client(port)), file)
    assert bench.paths == []


@pytest_twisted.ensureDeferred
async def test_an_upload_is_fetched(bench: FileBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine fetches the upload in pieces, and removes its copy afterwards."""
    monkeypatch.setattr(spool_client, "PIECE", 30_000)
    file = await bench.add()
    async with listening(site_of(bench.gateway(), reactor)) as port:
        client = bench.client(port)
        await bench.read(bench.files("elsewhere", client), file)
        await client.close()
    assert bench.contents == [CONTENT]
    assert bench.leftovers == []
    assert "Fetching the upload" in bench.messages


@pytest_twisted.ensureDeferred
async def test_a_fetch_is_resumed(bench: FileBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a cancellation only the missing bytes are fetched."""
    monkeypatch.setattr(spool_client, "PIECE", 10_000)
    file = await bench.add()
    offsets: list[int] = []
    gateway = bench.gateway()
    read: Callable[[str, int, int], Awaitable[bytes]] = gateway.downloads.read

    async def counting_read(upload_id: str, offset: int, size: int) -> bytes:
        offsets.append(offset)
        if len(offsets) == 4:
            working.cancel()
        return await read(upload_id, offset, size)

    monkeypatch.setattr(gateway.downloads, "read", counting_read)
    async with listening(site_of(gateway, reactor)) as port:
        client = bench.client(port)
        files = bench.files("elsewhere", client)
        working = Deferred.fromCoroutine(bench.read(files, file))
        with pytest.raises(CancelledError):
            await working
        assert file.id in bench.leftovers
        await bench.read(files, file)
        await client.close()
    assert offsets == [0, 10_000, 20_000, 30_000, *range(30_000, 100_000, 10_000)]
    assert bench.contents == [CONTENT]
    assert bench.leftovers == []


@pytest_twisted.ensureDeferred
async def test_a_later_attempt_finds_nothing_unpacked(bench: FileBench) -> None:
    """Unpacked files of a cancelled or killed attempt do not disturb the next attempt."""
    file = await bench.add()
    bench.gate = Deferred()
    working = Deferred.fromCoroutine(bench.read(bench.files(), file))
    while not bench.places:
        await pause(0.01, reactor)
    working.cancel()
    with pytest.raises(CancelledError):
        await working
    place = bench.places[0]
    assert not (place / "archive.tar").exists()
    place.mkdir(parents=True, exist_ok=True)
    (place / "archive.tar").write_bytes(b"half of it")
    bench.gate = None
    await bench.read(bench.files(), file)
    assert len(bench.places) == 2
    assert bench.leftovers == []


@pytest_twisted.ensureDeferred
async def test_a_damaged_copy_is_fetched_again(bench: FileBench) -> None:
    """Bytes that a crash of the worker's machine has damaged do not count as the user's fault."""
    file = await bench.add()
    copy = bench.root / "scratch" / file.id / "file"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(bytes(50_000))
    async with listening(site_of(bench.gateway(), reactor)) as port:
        client = bench.client(port)
        await bench.read(bench.files("elsewhere", client), file)
        await client.close()
    assert bench.contents == [CONTENT]
    assert await bench.spool.get(file.id) is not None


@pytest_twisted.ensureDeferred
async def test_a_worker_elsewhere_reports_a_wrong_digest(bench: FileBench) -> None:
    """The gateway removes the upload."""
    file = await bench.add(sha256="ab" * 32)
    async with listening(site_of(bench.gateway(), reactor)) as port:
        client = bench.client(port)
        with pytest.raises(BlobCorrupt):
            await bench.read(bench.files("elsewhere", client), file)
        await client.close()
    assert await bench.spool.list() == []


@pytest_twisted.ensureDeferred
async def test_another_key_is_refused(bench: FileBench) -> None:
    """A worker without the site's key gets no data, and the error names the key file."""
    file = await bench.add()
    async with listening(site_of(bench.gateway(), reactor)) as port:
        client = bench.client(port, Seal(b"x" * 32))
        with pytest.raises(PullError, match="SecretKeyFile"):
            await bench.read(bench.files("elsewhere", client), file)
        await client.close()
    assert bench.contents == []


@pytest_twisted.ensureDeferred
async def test_a_gateway_that_does_not_answer(
    bench: FileBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker turns to other work, and the pull continues later."""
    monkeypatch.setattr(spool_client, "TRIES", 2)
    monkeypatch.setattr(spool_client, "PAUSES", Backoff(0.01))
    file = await bench.add()
    async with listening(site_of(bench.gateway(), reactor)) as port:
        pass
    client = bench.client(port)
    with pytest.raises(RetryLater) as caught:
        await bench.read(bench.files("elsewhere", client), file)
    assert caught.value.limit == spool_client.WAIT_SECONDS
    await client.close()


@pytest_twisted.ensureDeferred
async def test_a_fetch_has_a_time_limit(bench: FileBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch from a slow gateway ends after a time limit; the error names its key."""
    file = await bench.add()
    gateway = bench.gateway()

    async def hang(*_: object) -> bytes:
        return await Deferred[bytes]()

    monkeypatch.setattr(gateway.downloads, "read", hang)
    async with listening(site_of(gateway, reactor)) as port:
        client = bench.client(port)
        with pytest.raises(TimedOut, match=r"StageLimits\.fetch"):
            await bench.read(bench.files("elsewhere", client, 0.2), file)
        await client.close()


@pytest_twisted.ensureDeferred
async def test_an_upload_that_is_gone(bench: FileBench) -> None:
    """The remedy is to upload the file again."""
    file = replace(await bench.add(), id="0" * 32)
    async with listening(site_of(bench.gateway(), reactor)) as port:
        client = bench.client(port)
        with pytest.raises(ImageNotFound, match="Upload the file again"):
            await bench.read(bench.files("elsewhere", client), file)
        await client.close()


@pytest.mark.parametrize(
    ("method", "target", "now"),
    [
        ("DELETE", "/api/spool/mycluster/x?offset=0&size=1", 1000),
        ("GET", "/api/spool/mycluster/y?offset=0&size=1", 1000),
        ("GET", "/api/spool/mycluster/x?offset=0&size=2", 1000),
        ("GET", "/api/spool/mycluster/x?offset=0&size=1", 1000 + CREDENTIAL_SECONDS + 1),
        ("GET", "/api/spool/mycluster/x?offset=0&size=1", 1000 - CREDENTIAL_SECONDS - 1),
    ],
)
def test_a_signature_is_for_one_request(
    bench: FileBench, method: str, target: str, now: float
) -> None:
    """Method, path, range and time are signed together."""
    clock = Clock()
    clock.advance(now)
    downloads = WorkerDownloads(bench.spool, lambda: bench.seal, clock)
    request = "GET", "/api/spool/mycluster/x?offset=0&size=1"
    credential = bench.seal.sign_request(*request, 1000)
    assert bench.seal.check_request(credential, *request, 1000 + CREDENTIAL_SECONDS)
    for word in (credential, "", "good:ann", credential + " ", credential[:-1]):
        with pytest.raises(NotAuthenticated):
            downloads.check(word, method, target)


@pytest_twisted.ensureDeferred
async def test_pieces_have_a_limit(bench: FileBench) -> None:
    """Neither an incomplete upload nor a piece outside of it is sent."""
    file = await bench.add()
    assert PIECE <= PIECE_LIMIT
    gateway = bench.gateway()
    async with listening(site_of(gateway, reactor)) as port:
        client = bench.client(port)
        queries = ("offset=0&size=0", "offset=99999&size=2", "offset=0", "offset=0&size=9999999")
        for query in queries:
            with pytest.raises(spool_client._RequestInterruptedError, match="400"):
                await client._request(b"GET", f"/api/spool/mycluster/{file.id}?{query}", None)
        await client.close()
    declaration = UploadDeclaration("mycluster", ALICE, 9, "ab" * 32)
    upload = await bench.spool.add(declaration, 1.0)
    with pytest.raises(Exception, match="no such complete upload"):
        await gateway.downloads.read(upload.id, 0, 1)


@pytest_twisted.ensureDeferred
async def test_an_import_is_read_as_its_user(bench: FileBench) -> None:
    """The file of an import is copied first, so that its bytes cannot change later."""
    file = ImageFile(kind="squashfs", path="/data/x.squashfs", user="alice")
    await bench.read(bench.files(), file)
    assert bench.imports == [("/data/x.squashfs", ALICE)]
    assert bench.contents == [CONTENT]
    assert bench.leftovers == []


@pytest_twisted.ensureDeferred
async def test_two_jobs_on_one_file(bench: FileBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose file an earlier attempt still reads releases its slot after a while."""
    monkeypatch.setattr("shiftergw.sources.user_files.files.LOCK_SECONDS", 0.05)
    file = await bench.add()
    bench.gate = Deferred()
    first = Deferred.fromCoroutine(bench.read(bench.files(), file))
    while not bench.paths:
        await pause(0.01, reactor)
    with pytest.raises(RetryLater):
        await bench.read(bench.files(), file)
    bench.gate.callback(None)
    await first


@pytest_twisted.ensureDeferred
async def test_sweep(bench: FileBench) -> None:
    """Files of killed jobs are removed once they are old."""
    scratch = bench.root / "scratch"
    old, new = scratch / ("1" * 32), scratch / ("2" * 32)
    for place in (old, new):
        place.mkdir(parents=True)
        (place / "file").write_bytes(b"x")
        os.utime(place, (100, 100))
    os.utime(old / "file", (100, 100))
    assert await bench.files().sweep(200) == 1
    assert bench.leftovers == [new.name]
