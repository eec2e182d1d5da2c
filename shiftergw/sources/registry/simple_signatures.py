"""Fetch simple signatures of images: from a lookaside storage, or from the registry itself.

A lookaside storage has files `NAMESPACES/NAME@sha256=HEX/signature-N`, with N from 1 on, over HTTP
or on this machine. A registry that answers `/v2/` with `X-Registry-Supports-Signatures: 1` has the
signatures below `/extensions/v2/`, and no lookaside storage is read then (containers/image,
docs/signature-protocols.md). Nothing is verified here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from shiftergw.errors import ImageNotFound, RegistryUnavailable, printable
from shiftergw.model.images import Digest
from shiftergw.model.signatures import SIGNATURE_SIZE_LIMIT, SIGNATURES_LIMIT, SignatureBlob
from shiftergw.plumbing.files import read_whole
from shiftergw.plumbing.timing import within
from shiftergw.sources.registry.reader import is_json
from shiftergw.sources.registry.transport import field

if TYPE_CHECKING:
    from shiftergw.sources.registry.repository import Repository
    from shiftergw.sources.registry.retry import RegistryRetries
    from shiftergw.sources.registry.transport import Transport

_LIST_LIMIT = 8 << 20
"""Bytes of a registry's list of signatures."""

_SUPPORT_HEADER = "X-Registry-Supports-Signatures"
_VERSION, _TYPE = 2, "atomic"
_ABSENT = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})


def read_lookaside_files(url: str, path: str, digests: Iterable[Digest]) -> list[SignatureBlob]:
    """Return the signatures for these manifests in a storage on this machine. Blocks.

    `url` is the `file:` URL of the storage, `path` the repository without its host. Raises
    `RegistryUnavailable` if the storage cannot be read.
    """
    directory = Path(unquote(urlsplit(url).path))
    signatures: list[SignatureBlob] = []
    for digest in digests:
        folder = directory / f"{path}@{digest.algorithm}={digest.hex}"
        signatures += _read_folder(folder, SIGNATURES_LIMIT - len(signatures))
    return signatures


def _read_folder(folder: Path, limit: int) -> list[SignatureBlob]:
    signatures = []
    for number in range(1, limit + 1):
        file = folder / f"signature-{number}"
        try:
            content, _ = read_whole(file, SIGNATURE_SIZE_LIMIT)
        except (FileNotFoundError, NotADirectoryError):
            break
        except OSError as error:
            raise RegistryUnavailable(
                "The storage of the image's signatures cannot be read.",
                remedy="Tell the site's support; the gateway's log says more.",
                detail=f"{file}: {error.strerror}",
            ) from error
        signatures.append(SignatureBlob("simple", signature=content, place=str(file)))
    return signatures


class LookasideStorage:
    """A storage of signatures that is reached over HTTP."""

    def __init__(self, url: str, transport: Transport, retries: RegistryRetries) -> None:
        """Read below `url`."""
        self._url = url
        self._transport = transport
        self._retries = retries

    async def fetch(self, path: str, digests: Iterable[Digest]) -> list[SignatureBlob]:
        """Return the signatures for these manifests; `path` is the repository without its host."""
        transport = self._transport
        work = self._fetch(path, tuple(digests))
        return await within(
            transport.limits.documents, transport.clock, work, partial(_too_long, transport)
        )

    async def _fetch(self, path: str, digests: tuple[Digest, ...]) -> list[SignatureBlob]:
        signatures: list[SignatureBlob] = []
        for digest in digests:
            folder = f"{self._url}/{path}@{digest.algorithm}={digest.hex}"
            for number in range(1, SIGNATURES_LIMIT - len(signatures) + 1):
                url = f"{folder}/signature-{number}"
                content = await self._retries.run(partial(self._read, url))
                if content is None:
                    break
                signatures.append(SignatureBlob("simple", signature=content, place=url))
        return signatures

    async def _read(self, url: str) -> bytes | None:
        """Return a signature; None if there is none of this number."""
        response = await self._transport.request("GET", url, {"Accept": "*/*"})
        if response.code in _ABSENT:
            self._transport.discard(response)
            return None
        if response.code != HTTPStatus.OK:
            reason = await self._transport.explanation(response)
            raise RegistryUnavailable(
                f"{self._transport.subject} of signatures answered with status {response.code}"
                f"{f': {reason}' if reason else '.'}"
            )
        return await self._transport.read(response, SIGNATURE_SIZE_LIMIT)


class SignatureExtension:
    """The signatures that a registry keeps itself, in its extension of the distribution API.

    `repository` sends its requests below `/extensions/v2/`.
    """

    def __init__(
        self, transport: Transport, base: str, repository: Repository, retries: RegistryRetries
    ) -> None:
        """Ask the registry at `base`."""
        self._transport = transport
        self._base = base
        self._repository = repository
        self._retries = retries

    async def is_supported(self) -> bool:
        """Return whether the registry has the extension, by its answer to `/v2/`."""

        async def attempt() -> bool:
            response = await self._transport.request("GET", f"{self._base}/v2/", {})
            self._transport.discard(response)
            return field(response, _SUPPORT_HEADER) == "1"

        return await self._retries.run(attempt)

    async def fetch(self, digests: Iterable[Digest]) -> list[SignatureBlob]:
        """Return the signatures for these manifests."""
        signatures: list[SignatureBlob] = []
        for digest in digests:
            try:
                content = await self._retries.run(partial(self._read, digest))
            except ImageNotFound:
                continue
            signatures += self._parse(content, f"{self._repository.name}@{digest}")
        return signatures[:SIGNATURES_LIMIT]

    async def _read(self, digest: Digest) -> bytes:
        path = f"signatures/{digest}"
        response = await self._repository.ask("GET", path, {"Accept": "application/json"})
        return await self._transport.read(response, _LIST_LIMIT, is_json)

    def _parse(self, content: bytes, place: str) -> list[SignatureBlob]:
        """Return the signatures of a list; those of other types and versions do not count."""
        try:
            document: Any = json.loads(content)
            entries = document["signatures"] or []
            texts = [
                entry["content"]
                for entry in entries
                if entry.get("version", entry.get("schemaVersion")) == _VERSION
                and entry.get("type") == _TYPE
            ]
            messages = [base64.b64decode(text, validate=True) for text in texts]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RegistryUnavailable(
                f"{self._transport.subject} sent an unreadable list of signatures.",
                detail=printable(content[:200]),
            ) from error
        return [SignatureBlob("simple", signature=message, place=place) for message in messages]


def _too_long(transport: Transport) -> RegistryUnavailable:
    return RegistryUnavailable(
        f"{transport.subject} took more than {transport.limits.documents:.0f} s for the signatures"
        " of one image."
    )
