"""One row for each fault of a server of blobs: outcome, words, requests, and bytes sent twice.

In every row the store gets no login, the registry gets the right one, and correct bytes on disk
are not requested again, unless the server cannot send a part.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.errors import (
    BlobCorrupt,
    ImageNotFound,
    PullError,
    RegistryDenied,
    RegistryUnavailable,
    RetryLater,
)
from tests.certificates import Authority
from tests.patience import stretch
from tests.sources.registry.blob_servers import (
    BLOB,
    CONTENT,
    EXPIRED,
    LOGIN,
    PATIENCE,
    BlobServers,
    Step,
    broken_after,
    in_chunks,
    redirect,
    status,
    without_length,
)
from tests.sources.registry.network import REACTOR

SIZE = BLOB.size
DAMAGED_CONTENT = CONTENT[:-1] + b"?"
ONE_DOWNLOAD = ("registry 0", "store 0")
TWO_DOWNLOADS = ("registry 0", "store 0") * 2
THREE_DOWNLOADS = ("registry 0", "store 0") * 3
PAGE = status(200, b"<html><title>Guest network</title>", Content_Type="text/html; charset=utf-8")
SIGNED_URL = "https://store.example:{port}{path}?signature="


def hops(count: int) -> tuple[Step, ...]:
    """Redirect `count` times within the store."""
    return tuple(redirect(f"{SIGNED_URL}{number}") for number in range(count))


@dataclass(frozen=True)
class Row:
    """A fault, the bytes on disk before the download, and the expected result.

    Without an `error` the blob arrives complete. `rest` is the number of bytes on disk after an
    error: the next pull resumes them.
    """

    fault: str
    registry: tuple[Step, ...] = ()
    store: tuple[Step, ...] = ()
    disk: bytes = b""
    requests: tuple[str, ...] = ONE_DOWNLOAD
    repeated_bytes: int = 0
    error: type[PullError] | None = None
    words: str = ""
    rest: int = 0
    idle: float = 20.0


ROWS = [
    Row("none"),
    Row("none, and half of it is there", disk=CONTENT[:9], requests=("registry 9", "store 9")),
    # Signed URLs that expire (kitematic#4713, distribution#4175)
    *(
        Row(f"an expired URL, {code}", store=(status(code, EXPIRED),), requests=TWO_DOWNLOADS)
        for code in (400, 401, 403)
    ),
    Row(
        "a URL that expires in the middle, twice",
        store=(
            broken_after(5000),
            status(403, EXPIRED),
            broken_after(1000),
            status(403, EXPIRED),
        ),
        requests=(
            *("registry 0", "store 0"),
            *("registry 5000", "store 5000") * 2,
            *("registry 6000", "store 6000") * 2,
        ),
    ),
    Row(
        "a store that refuses each URL",
        store=(status(403, EXPIRED),) * 2,
        disk=CONTENT[:700],
        requests=("registry 700", "store 700") * 2,
        error=RegistryUnavailable,
        words=r"'test' sends the gateway to store\.example .* status 403: AccessDenied: Request has"
        r" expired .*a login does not matter",
        rest=700,
    ),
    Row(
        "a registry that refuses the login",
        registry=(status(403, b'{"errors":[{"message":"no pull right"}]}'),),
        requests=("registry 0",),
        error=RegistryDenied,
        words=r"to your login \(no pull right\)",
    ),
    Row(
        "a store that lacks the blob",
        store=(status(404, b"<Error><Code>NoSuchKey</Code></Error>"),),
        error=ImageNotFound,
        words="lacks a part of team/app, .*NoSuchKey",
    ),
    # Statuses of a moment
    *(
        Row(f"{code} once", store=(status(code),), requests=TWO_DOWNLOADS)
        for code in (408, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)
    ),
    *(
        Row(
            f"{code} of a CDN in front of the registry",
            registry=(status(code, b"<html><title>example | sorry</title>"),) * 3,
            requests=("registry 0",) * 3,
            error=RetryLater,
            words=rf"^The CDN in front of the registry 'test' .*it.* \(status {code}\): .*sorry",
        )
        for code in (520, 521, 522, 523, 524)
    ),
    Row(
        "522 of a CDN in front of the store",
        store=(status(522),) * 3,
        requests=THREE_DOWNLOADS,
        error=RetryLater,
        words=r"^The CDN in front of store\.example cannot connect to it in time \(status 522\)\.",
    ),
    Row(
        "Retry-After: 0",
        registry=(status(429, Retry_After="0"),),
        requests=("registry 0", *ONE_DOWNLOAD),
    ),
    Row(
        "Retry-After: 0, again and again",
        registry=(status(429, Retry_After="0"),) * 3,
        requests=("registry 0",) * 3,
        error=RetryLater,
        words="asked to slow down",
    ),
    Row(
        "Retry-After in the past",
        registry=(status(503, Retry_After=formatdate(0, usegmt=True)),) * 3,
        requests=("registry 0",) * 3,
        error=RetryLater,
        words="status 503",
    ),
    # Redirects
    Row("ten redirects", store=hops(9), requests=("registry 0", *("store 0",) * 10)),
    Row(
        "eleven redirects",
        store=hops(10),
        requests=("registry 0", *("store 0",) * 10),
        error=PullError,
        words="redirects more than 10 times",
    ),
    Row("a URL of 20 kB", registry=(redirect(SIGNED_URL + "x" * 20_000),)),
    Row(
        "a URL of 70 kB",
        registry=(redirect(SIGNED_URL + "x" * 70_000),),
        requests=("registry 0",),
        error=RegistryUnavailable,
        words="a response head of more than 65536 bytes",
    ),
    Row("HTTPS in upper case", registry=(redirect("HTTPS://STORE.example:{port}{path}"),)),
    # Ends that HTTP does not vouch for
    Row("no length", store=(without_length(),)),
    Row("no length, HTTP/1.1", store=(without_length(version="1.1"),)),
    Row(
        "no length, and broken off",
        store=(without_length(3000), without_length()),
        requests=(*ONE_DOWNLOAD, "registry 3000", "store 3000"),
    ),
    Row("chunks", store=(in_chunks(),)),
    Row(
        "chunks, and broken off",
        store=(in_chunks(30_000),),
        requests=(*ONE_DOWNLOAD, "registry 30000", "store 30000"),
    ),
    # Broken connections
    Row(
        "a truncated body",
        store=(broken_after(4000),),
        requests=(*ONE_DOWNLOAD, "registry 4000", "store 4000"),
    ),
    Row(
        "a reset",
        store=(broken_after(4000, reset=True),),
        requests=(*ONE_DOWNLOAD, "registry 4000", "store 4000"),
    ),
    Row(
        "a stall",
        store=(broken_after(4000, hang=True),),
        requests=(*ONE_DOWNLOAD, "registry 4000", "store 4000"),
        idle=0.5,
    ),
    Row(
        "a line that breaks each time",
        store=(broken_after(50_000),) * 3,
        requests=(
            *ONE_DOWNLOAD,
            *("registry 50000", "store 50000"),
            *("registry 100000", "store 100000"),
        ),
        error=RetryLater,
        words="broke off",
        rest=150_000,
    ),
    # Parts
    Row(
        "ranges are ignored",
        store=(status(200, CONTENT),),
        disk=CONTENT[:3000],
        requests=("registry 3000", "store 3000"),
        repeated_bytes=3000,
    ),
    Row(
        "ranges are ignored, and the line breaks before anything new",
        store=(broken_after(1000, whole=True),),
        disk=CONTENT[:3000],
        requests=("registry 3000", "store 3000") * 2,
        repeated_bytes=1000,
    ),
    Row(
        "ranges are ignored, and the line breaks each time",
        store=(broken_after(1000, whole=True),) * 3,
        disk=CONTENT[:3000],
        requests=("registry 3000", "store 3000") * 3,
        repeated_bytes=3000,
        error=RetryLater,
        words="broke off",
        rest=3000,
    ),
    Row(
        "ranges are ignored, and the line breaks behind what is there",
        store=(broken_after(5000, whole=True),),
        disk=CONTENT[:3000],
        requests=("registry 3000", "store 3000", "registry 5000", "store 5000"),
        repeated_bytes=3000,
    ),
    Row(
        "ranges are ignored, and the bytes of an earlier download are wrong",
        store=(status(200, CONTENT),),
        disk=CONTENT[:2000] + b"?" * 1000,
        requests=("registry 3000", "store 3000"),
    ),
    Row(
        "another part, once",
        store=(status(206, CONTENT[:9], Content_Range=f"bytes 0-8/{SIZE}"),),
        disk=CONTENT[:3000],
        requests=("registry 3000", "store 3000") * 2,
    ),
    Row(
        "another part each time",
        store=(status(206, CONTENT[:9], Content_Range=f"bytes 0-8/{SIZE}"),) * 2,
        disk=CONTENT[:3000],
        requests=(*("registry 3000", "store 3000") * 2, *ONE_DOWNLOAD),
        repeated_bytes=3000,
    ),
    Row(
        "a part of a blob of another size",
        store=(status(206, CONTENT[3000:], Content_Range=f"bytes 3000-{SIZE - 1}/{SIZE + 1}"),),
        disk=CONTENT[:3000],
        requests=("registry 3000", "store 3000") * 2,
    ),
    Row(
        "416",
        store=(status(416, Content_Range="bytes */5"),),
        disk=CONTENT[:3000],
        requests=("registry 3000", "store 3000", *ONE_DOWNLOAD),
        repeated_bytes=3000,
    ),
    Row(
        "a log-in page, once",
        store=(PAGE,),
        disk=CONTENT[:3000],
        requests=("registry 3000", "store 3000") * 2,
    ),
    Row(
        "a log-in page each time",
        store=(PAGE,) * 3,
        disk=CONTENT[:3000],
        requests=("registry 3000", "store 3000") * 3,
        error=RegistryUnavailable,
        words="'test' sent a web page instead of a layer: Guest network .*log-in page",
        rest=3000,
    ),
    # Wrong bytes
    Row(
        "too much",
        store=(status(200, CONTENT + b"x"),),
        error=BlobCorrupt,
        words="more than the manifest says",
    ),
    Row(
        "a wrong digest, once",
        store=(status(200, DAMAGED_CONTENT),),
        requests=TWO_DOWNLOADS,
        repeated_bytes=SIZE - 1,
    ),
    Row(
        "a wrong digest each time",
        store=(status(200, DAMAGED_CONTENT),) * 2,
        requests=TWO_DOWNLOADS,
        repeated_bytes=SIZE - 1,
        error=BlobCorrupt,
        words="other bytes than its digest says: its registry, a proxy on the way, or the file",
    ),
    Row(
        "wrong bytes of an earlier download",
        disk=b"?" * 3000,
        requests=("registry 3000", "store 3000", *ONE_DOWNLOAD),
        repeated_bytes=SIZE - 3000,
    ),
    Row(
        "too few bytes",
        store=(
            status(200, CONTENT[:-1]),
            status(416, Content_Range=f"bytes */{SIZE - 1}"),
        ),
        requests=(*ONE_DOWNLOAD, f"registry {SIZE - 1}", f"store {SIZE - 1}", *ONE_DOWNLOAD),
        repeated_bytes=SIZE - 1,
    ),
]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority that the clients of these tests trust."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.fault)
@pytest_twisted.ensureDeferred
async def test_a_fault(row: Row, authority: Authority, tmp_path: Path) -> None:
    """The fault has the outcome of its row."""
    servers = BlobServers(row.registry, row.store)
    partial = tmp_path / "sha256" / f"{BLOB.digest.hex}.partial"
    if row.disk:
        partial.parent.mkdir()
        partial.write_bytes(row.disk)
        servers.count(0, len(row.disk) if CONTENT.startswith(row.disk) else 0)
    async with servers.running(authority, tmp_path, stretch(row.idle)):
        if row.error is None:
            assert await servers.fetch() == CONTENT
        else:
            with pytest.raises(row.error) as caught:
                await servers.fetch()
            assert re.search(row.words, str(caught.value))
            rest = partial.read_bytes() if partial.exists() else b""
            assert rest == CONTENT[: row.rest]
    assert tuple(servers.requests) == row.requests
    assert servers.repeated_bytes == row.repeated_bytes
    pair = base64.b64encode(f"{LOGIN.user}:{LOGIN.password}".encode()).decode()
    first_login, *later_logins = [ask.header("Authorization") for ask in servers.registry.requests]
    assert first_login is None
    assert set(later_logins) == {f"Basic {pair}"}
    assert {ask.header("Authorization") for ask in servers.store.requests} <= {None}


@pytest_twisted.ensureDeferred
async def test_the_next_pull_fetches_only_missing_bytes(
    authority: Authority, tmp_path: Path
) -> None:
    """All bytes of a failed download are used: of 205 kB, 150 kB arrived in three tries."""
    servers = BlobServers((), (broken_after(50_000),) * 3)
    async with servers.running(authority, tmp_path):
        with pytest.raises(RetryLater):
            await servers.fetch()
        assert await servers.fetch() == CONTENT
    assert servers.requests[-2:] == ["registry 150000", "store 150000"]
    assert servers.repeated_bytes == 0


@pytest.mark.parametrize("value", ["0", formatdate(0, usegmt=True), "nonsense"])
@pytest_twisted.ensureDeferred
async def test_the_least_wait_is_our_own(value: str, authority: Authority, tmp_path: Path) -> None:
    """If a registry names no wait, or a wait in the past, the next request is still delayed."""
    servers = BlobServers((status(503, Retry_After=value),) * 3, ())
    async with servers.running(authority, tmp_path):
        begin = REACTOR.seconds()
        with pytest.raises(RetryLater) as caught:
            await servers.fetch()
    quick_waits = PATIENCE.backoff(1, 0.5) + PATIENCE.backoff(2, 0.5)
    assert caught.value.at - begin >= quick_waits + PATIENCE.backoff(3, 0.5)
    assert caught.value.registry == ""


@pytest_twisted.ensureDeferred
async def test_a_new_url_is_requested_past_caches(authority: Authority, tmp_path: Path) -> None:
    """A cache in front of the registry must not repeat the URL that has expired."""
    servers = BlobServers((), (status(403, EXPIRED),))
    async with servers.running(authority, tmp_path):
        await servers.fetch()
    fields = [ask.header("Cache-Control") for ask in servers.registry.requests]
    assert fields == [None, None, "no-cache"]
