"""The routes of uploads: declare one, send its chunks, show it, remove it, list all."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from twisted.internet.defer import CancelledError

from shiftergw.errors import BadRequest, printable
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.model.uploads import (
    CHUNK_LIMIT,
    SELECTOR_LIMIT,
    SHA256,
    UPLOAD_ID,
    UPLOAD_KINDS,
    ImageFile,
    UploadChoice,
    UploadDeclaration,
    UserUpload,
)
from shiftergw.service.gateway import Gateway
from shiftergw.service.imports import ImportChoice
from shiftergw.service.upload_chunks import Chunk
from shiftergw.web import parameters, render
from shiftergw.web.render import Answer

if TYPE_CHECKING:
    from shiftergw.web.routes import RoutedRequest

FILENAME_LIMIT = 255
"""Characters of the name of a file that are stored; it is used in messages only."""

LARGEST_SIZE = 1 << 60
"""Bytes that a declaration may name; the limits of the site are lower."""

_NUMBER = re.compile("[0-9]{1,18}", re.ASCII)


async def declare(gateway: Gateway, request: RoutedRequest) -> Answer:
    """Answer with the upload that the body declares.

    If the body also has a name and a selector, and a READY image of this name is made of the same
    file with the same access, its record is the answer and nothing is declared. An earlier version
    of the client sends no selector here.

    A body with a name and without a digest declares nothing: the answer says whether an image of
    this name may be made of an upload, and one of this size, before its client reads the file, and
    how large an upload may be.
    """
    members = parameters.members(request.body)
    session, uploads = request.session, gateway.files.uploads
    if "name" in members and "sha256" not in members:
        if "size" in members:
            uploads.check_size(_size(members))
        await gateway.check_new_image(session, _text(members, "name", ""))
        document = {"status": True, "limit": uploads.largest_size}
        return replace(render.answer(document), word="name checked")
    declaration = _declaration(session, members)
    if "name" in members and "selector" in members:
        record = await _ready_image(gateway, session, members, declaration)
        if record is not None:
            answer = render.answer(render.pull_answer(record, labels=gateway.shows_labels))
            return replace(answer, word="READY, nothing to upload")
    elif "name" in members:
        await gateway.check_new_image(session, _text(members, "name", ""))
    return _answer(gateway, await uploads.declare(session, declaration))


async def _ready_image(
    gateway: Gateway,
    session: Session,
    members: dict[str, Any],
    declaration: UploadDeclaration,
) -> ImageRecord | None:
    selector, public = _selector(members), _public(members)
    kind, size, sha256 = declaration.kind, declaration.size, declaration.sha256
    return await gateway.find_image_of_content(
        session,
        _text(members, "name", ""),
        *parameters.access_lists(members),
        ImageFile("", kind, size, sha256, selector, public),
    )


def _declaration(session: Session, members: Mapping[str, Any]) -> UploadDeclaration:
    kind = _text(members, "kind", "")
    if kind not in UPLOAD_KINDS:
        kinds = ", ".join(sorted(UPLOAD_KINDS - {""}))
        raise BadRequest(
            f"{printable(kind, 40)!r} is not a kind of upload.",
            remedy=f'The kinds are {kinds}, and "" if the content shall show it.',
        )
    size = _size(members)
    sha256 = _text(members, "sha256", "")
    if SHA256.fullmatch(sha256) is None:
        raise BadRequest(
            "`sha256` is not a SHA-256 digest.",
            remedy="Write the 64 hexadecimal digits of the whole file, in lower case.",
        )
    filename = printable(_text(members, "filename", ""), FILENAME_LIMIT)
    return UploadDeclaration(session.system, session.uid, size, sha256, kind, filename)


def _size(members: Mapping[str, Any]) -> int:
    size = members.get("size")
    if type(size) is not int or not 1 <= size <= LARGEST_SIZE:
        raise BadRequest("`size` is not a number of bytes.", remedy="An upload has at least one.")
    return size


async def list_own(gateway: Gateway, request: RoutedRequest) -> Answer:
    """Answer with the uploads of the user, the last changed one first."""
    uploads = gateway.files.uploads
    return render.listing(
        {
            "upload": upload.id,
            "filename": upload.declaration.filename,
            "kind": upload.declaration.kind,
            "size": upload.declaration.size,
            "offset": upload.offset,
            "expires": float(uploads.expiration(upload)),
            "images": list(images),
        }
        for upload, images in await uploads.list_own(request.session)
    )


async def show(gateway: Gateway, request: RoutedRequest) -> Answer:
    """Answer with the state of an upload."""
    return _answer(gateway, await gateway.files.uploads.get(request.session, _id(request)))


async def remove(gateway: Gateway, request: RoutedRequest) -> Answer:
    """Remove an upload."""
    await gateway.files.uploads.remove(request.session, _id(request))
    return render.answer({"status": True})


async def refuse_short(_: Gateway, __: RoutedRequest) -> Answer:
    """Refuse a chunk without a body; the others are received by `open_chunk`."""
    raise BadRequest("A chunk of an upload needs a Content-Length, and at least one byte.")


async def read_piece(gateway: Gateway, request: RoutedRequest) -> Answer:
    """Answer a worker with a piece of an upload."""
    offset, size = _number(request.query, "offset"), _number(request.query, "size")
    content = await gateway.files.downloads.read(_id(request), offset, size)
    return Answer(HTTPStatus.OK, content, b"application/octet-stream")


async def discard(gateway: Gateway, request: RoutedRequest) -> Answer:
    """Remove an upload that a worker has found damaged."""
    await gateway.files.downloads.remove(_id(request))
    return render.answer({"status": True})


async def open_chunk(gateway: Gateway, request: RoutedRequest, size: int) -> Chunk:
    """Open an upload for the chunk of `size` bytes that is the body of a request."""
    offset = _number(request.query, "offset")
    return await gateway.files.uploads.receive(request.session, _id(request), offset, size)


class ChunkReceiver:
    """Receives the body of a request as a chunk of an upload; implements `BodyReceiver`."""

    def __init__(
        self,
        chunk: Chunk,
        gateway: Gateway,
        refuse: Callable[[Exception], Answer],
        end: Callable[[Answer | None], Answer],
    ) -> None:
        """Write to `chunk`; `refuse` and `end` return the last answer, and log the request."""
        self._chunk = chunk
        self._gateway = gateway
        self._refuse = refuse
        self._end = end
        self._is_answered = False

    async def write(self, data: bytes) -> Answer | None:
        """Write bytes to the chunk; return a refusal if that fails."""
        try:
            await self._chunk.write(data)
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the client must get an answer also after a bug
            self._is_answered = True
            return self._refuse(error)
        return None

    async def finish(self) -> Answer:
        """Make the chunk durable, and answer with the new offset."""
        self._is_answered = True
        try:
            upload = await self._chunk.finish()
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            return self._refuse(error)
        return self._end(_answer(self._gateway, upload, quiet=True))

    async def abort(self) -> None:
        """Keep what has arrived, and log that the client hung up unless it has an answer."""
        await self._chunk.abort()
        if not self._is_answered:
            self._is_answered = True
            self._end(None)


def choice(members: Mapping[str, Any]) -> UploadChoice | None:
    """Return the upload that a pull names in its body, or None if it names none."""
    upload_id = members.get("upload")
    if upload_id is None:
        if members.get("public", False) or members.get("selector"):
            raise BadRequest("`selector` and `public` need an `upload`.")
        return None
    if not isinstance(upload_id, str) or UPLOAD_ID.fullmatch(upload_id) is None:
        raise BadRequest("`upload` is not the id of an upload.")
    public = _public(members)
    return UploadChoice(upload_id, _selector(members), public)


def import_choice(members: Mapping[str, Any]) -> ImportChoice:
    """Return what the body of a request imports; `filepath` and `format` are required."""
    path, file_format = _text(members, "filepath", ""), _text(members, "format", "")
    if not path or not file_format:
        raise BadRequest("An import needs `filepath` and `format`.")
    return ImportChoice(path, file_format, _public(members))


def _public(members: Mapping[str, Any]) -> bool:
    public = members.get("public", False)
    if type(public) is not bool:
        raise BadRequest("`public` is neither true nor false.")
    return public


def _selector(members: Mapping[str, Any]) -> str:
    selector = _text(members, "selector", "")
    if len(selector) > SELECTOR_LIMIT or not selector.isprintable():
        raise BadRequest(f"`selector` is not one line of at most {SELECTOR_LIMIT} characters.")
    return selector


def _number(query: bytes, name: str) -> int:
    """Return the number of bytes that a query has under a name."""
    try:
        values = parse_qs(query.decode("ascii", "replace"), max_num_fields=20).get(name, [])
    except ValueError:
        values = []
    if len(values) != 1 or _NUMBER.fullmatch(values[0]) is None:
        raise BadRequest(f"`{name}` is not a number of bytes.", remedy=f"Write `?{name}=1`.")
    return int(values[0])


def _text(members: Mapping[str, Any], name: str, default: str) -> str:
    value = members.get(name, default)
    if not isinstance(value, str):
        raise BadRequest(f"`{name}` is not text.")
    return value


def _id(request: RoutedRequest) -> str:
    return request.image


def _answer(gateway: Gateway, upload: UserUpload, *, quiet: bool = False) -> Answer:
    document = {
        "upload": upload.id,
        "offset": upload.offset,
        "size": upload.declaration.size,
        "chunk": CHUNK_LIMIT,
        "expires": float(gateway.files.uploads.expiration(upload)),
    }
    answer = render.answer(document)
    return Answer(answer.status, answer.body, quiet=quiet, word=f"offset {upload.offset}")
