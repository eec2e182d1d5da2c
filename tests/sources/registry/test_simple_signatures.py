"""Simple signatures come from a lookaside storage or from the registry, whole and bounded."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.config.registries_directory import read_signature_storage
from shiftergw.errors import GatewayError, RegistryUnavailable, RetryLater
from shiftergw.model.docker_references import DockerReference
from shiftergw.model.images import Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.model.signatures import SIGNATURE_SIZE_LIMIT, SIGNATURES_LIMIT, SignatureKind
from shiftergw.plumbing.threads import Threads
from shiftergw.sources.registry.options import RegistryOptions
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.signatures import Lookasides, RegistrySignatures
from tests.images import make_image, make_index, tar_of
from tests.registries import USER, Ask, FakeRegistry
from tests.sources.registry.network import HASTY, REACTOR, SHORT, open_client, quiet

IMAGE = make_image([tar_of({"a": b"a"})])
REFERENCE = DockerReference.parse("reg.example.org/team/app:1")
FOLDER = f"/store/team/app@sha256={IMAGE.digest.hex}"
SIMPLE: frozenset[SignatureKind] = frozenset({"simple"})


class Storage:
    """A registry that is also a lookaside storage, with the `files` of a test."""

    def __init__(self) -> None:
        """Start without signatures; `statuses` are answers in place of files."""
        self.files: dict[str, bytes] = {}
        self.statuses: dict[str, int] = {}
        self.headers: dict[str, str] = {}
        self.requires_login = False
        self.registry = FakeRegistry(IMAGE, misbehave=self._answer)

    def _answer(self, ask: Ask) -> bool | None:
        is_anonymous = ask.header("Authorization") is None
        if self.requires_login and not ask.path.startswith("/store/") and is_anonymous:
            challenge = {"WWW-Authenticate": 'Basic realm="x"', **self.headers}
            return ask.answer(401, b"", **challenge)
        if ask.path in self.statuses:
            return ask.answer(self.statuses[ask.path])
        if ask.path in self.files:
            return ask.answer(200, self.files[ask.path])
        return ask.answer(200, b"{}", **self.headers) if ask.path == "/v2/" else None

    def paths(self) -> list[str]:
        """Return the paths of the requests for signatures."""
        return [
            ask.path
            for ask in self.registry.requests
            if ask.path.startswith(("/store/", "/extensions/"))
        ]


@asynccontextmanager
async def fetching(
    storage: Storage, root: Path, lookaside: str = "http://{host}/store"
) -> AsyncIterator[Any]:
    """Yield a function that fetches the signatures of `IMAGE`; registries.d names `lookaside`."""
    await storage.registry.start()
    url = lookaside.format(host=storage.registry.host)
    section = f"default-docker:\n  lookaside: {url}\n" if url else "docker:\n"
    (root / "a.yaml").write_text(section)
    threads = Threads(REACTOR, 2, "test")
    threads.startService()
    lookasides = Lookasides(REACTOR, Proxies({}), RegistryOptions(SHORT, HASTY))
    try:
        async with open_client(f"http://{storage.registry.host}") as client:
            read_storage = partial(read_signature_storage, root)
            source = RegistrySignatures(client, lookasides, read_storage, threads)

            async def fetch(
                image: ResolvedImage | None = None, login: RegistryLogin | None = None
            ) -> list[bytes]:
                if image is None:
                    reference = ImageReference.parse("team/app")
                    image, _ = await client.resolve(reference, Platform(), login, quiet)
                blobs = await source.signatures(image, REFERENCE, SIMPLE, login, quiet)
                assert {blob.kind for blob in blobs} <= SIMPLE
                return [blob.signature for blob in blobs]

            yield fetch
    finally:
        await lookasides.close()
        await threads.stopService()
        await storage.registry.stop()


@pytest_twisted.ensureDeferred
async def test_a_storage_over_http(tmp_path: Path) -> None:
    """Signatures are read from the first to the last that exists."""
    storage = Storage()
    storage.files = {f"{FOLDER}/signature-{n}": b"%d" % n for n in (1, 2, 4)}
    async with fetching(storage, tmp_path) as fetch:
        assert await fetch() == [b"1", b"2"]
    assert storage.paths() == [f"{FOLDER}/signature-{n}" for n in (1, 2, 3)]


@pytest_twisted.ensureDeferred
async def test_a_storage_on_this_machine(tmp_path: Path) -> None:
    """A `file:` URL is read without the network; its blanks are escaped."""
    storage = Storage()
    folder = tmp_path / "a b" / f"team/app@sha256={IMAGE.digest.hex}"
    folder.mkdir(parents=True)
    for number in (1, 2, 4):
        (folder / f"signature-{number}").write_bytes(b"%d" % number)
    async with fetching(storage, tmp_path, f"file://{tmp_path}/a%20b") as fetch:
        assert await fetch() == [b"1", b"2"]
        (folder / "signature-3").symlink_to("/dev/zero")
        with pytest.raises(RegistryUnavailable, match="cannot be read"):
            await fetch()
        (folder / "signature-3").unlink()
        (folder / "signature-3").write_bytes(bytes(SIGNATURE_SIZE_LIMIT + 1))
        with pytest.raises(RegistryUnavailable, match="cannot be read"):
            await fetch()


@pytest_twisted.ensureDeferred
async def test_no_signatures(tmp_path: Path) -> None:
    """An image without signatures has an empty list, with a storage and without one."""
    async with fetching(Storage(), tmp_path) as fetch:
        assert await fetch() == []
    absent = f"file://{tmp_path}/absent"
    for lookaside in ("", absent):
        async with fetching(Storage(), tmp_path, lookaside) as fetch:
            assert await fetch() == []


@pytest_twisted.ensureDeferred
async def test_signatures_of_the_index(tmp_path: Path) -> None:
    """The signatures of the index that led to the manifest count, too."""
    storage = Storage()
    index = make_index([IMAGE])
    digest = storage.registry.add(index, "application/vnd.oci.image.index.v1+json", "latest")
    storage.files = {
        f"{FOLDER}/signature-1": b"manifest",
        f"/store/team/app@sha256={digest.hex}/signature-1": b"index",
    }
    async with fetching(storage, tmp_path) as fetch:
        assert await fetch() == [b"manifest", b"index"]


@pytest_twisted.ensureDeferred
async def test_limits(tmp_path: Path) -> None:
    """The number of signatures that are read is limited; a too large one is not used."""
    storage = Storage()
    storage.files = {f"{FOLDER}/signature-{n}": b"%d" % n for n in range(1, SIGNATURES_LIMIT + 5)}
    storage.files[f"{FOLDER}/signature-1"] = bytes(SIGNATURE_SIZE_LIMIT + 1)
    async with fetching(storage, tmp_path) as fetch:
        signatures = await fetch()
    assert len(storage.paths()) == SIGNATURES_LIMIT
    assert len(signatures) == SIGNATURES_LIMIT - 1


@pytest.mark.parametrize(
    ("status", "kind"), [(403, RegistryUnavailable), (500, RetryLater), (429, RetryLater)]
)
@pytest_twisted.ensureDeferred
async def test_a_storage_that_fails(tmp_path: Path, status: int, kind: type[GatewayError]) -> None:
    """A failing storage is an error: it must not count as one without signatures."""
    storage = Storage()
    storage.files = {f"{FOLDER}/signature-1": b"1"}
    storage.statuses = {f"{FOLDER}/signature-2": status}
    async with fetching(storage, tmp_path) as fetch:
        with pytest.raises(kind) as caught:
            await fetch()
    assert storage.registry.host in str(caught.value)


def extension_list(*entries: Any) -> bytes:
    """Return the answer of a registry with the signature extension."""
    return json.dumps({"signatures": list(entries)}).encode()


def extension_entry(content: bytes, **changes: Any) -> dict[str, Any]:
    """Return a signature of such an answer."""
    text = base64.b64encode(content).decode()
    return {"version": 2, "type": "atomic", "name": "x@y", "content": text, **changes}


EXTENSION = f"/extensions/v2/team/app/signatures/{IMAGE.digest}"


@pytest.mark.parametrize("requires_login", [False, True])
@pytest_twisted.ensureDeferred
async def test_the_extension_of_a_registry(tmp_path: Path, *, requires_login: bool) -> None:
    """Signatures in a registry are read with the user's login, instead of those in the storage."""
    storage = Storage()
    storage.requires_login = requires_login
    storage.headers = {"X-Registry-Supports-Signatures": "1"}
    storage.files = {
        f"{FOLDER}/signature-1": b"in the storage",
        EXTENSION: extension_list(
            extension_entry(b"1"),
            extension_entry(b"2", type="other"),
            extension_entry(b"3", version=1),
            extension_entry(b"4"),
        ),
    }
    async with fetching(storage, tmp_path) as fetch:
        assert await fetch(login=USER) == [b"1", b"4"]
    assert set(storage.paths()) == {EXTENSION}


@pytest_twisted.ensureDeferred
async def test_an_extension_without_signatures(tmp_path: Path) -> None:
    """A 404 or an empty list means that an image has no signatures."""
    storage = Storage()
    storage.headers = {"X-Registry-Supports-Signatures": "1"}
    async with fetching(storage, tmp_path) as fetch:
        assert await fetch() == []
        for content in (b'{"signatures": []}', b'{"signatures": null}'):
            storage.files = {EXTENSION: content}
            assert await fetch() == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"signatures": [1]}',
        b'{"signatures": [{"version": 2, "type": "atomic"}]}',
        b'{"signatures": [{"version": 2, "type": "atomic", "content": "!"}]}',
        b"[" * 100_000,
        b"<html>",
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_unreadable_list(tmp_path: Path, content: bytes) -> None:
    """A list that cannot be read is an error, not an empty one."""
    storage = Storage()
    storage.headers = {"X-Registry-Supports-Signatures": "1"}
    storage.files = {EXTENSION: content}
    async with fetching(storage, tmp_path) as fetch:
        with pytest.raises(RegistryUnavailable, match="unreadable list of signatures"):
            await fetch()
