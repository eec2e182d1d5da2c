"""The routes of uploads: declare one, send its chunks, show it, remove it, list all."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from twisted.internet.defer import CancelledError

from shiftergw.errors import BadRequest, printable
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.model.uploads import CHUNK_LIMIT, ImageFile, UploadDeclaration, UserUpload
from shiftergw.service.gateway import Gateway
from shiftergw.service.upload_chunks import Chunk
from shiftergw.web import parameters, render
from shiftergw.web.render import Answer
from shiftergw.web.request_bodies import DeclarationBody, NameBody

if TYPE_CHECKING:
    from shiftergw.web.routes import RoutedRequest

FILENAME_LIMIT = 255
"""Characters of the name of a file that are stored; it is used in messages only."""

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
        question = NameBody.parse(members)
        if question.size is not None:
            uploads.check_size(question.size)
        await gateway.check_new_image(session, question.name)
        document = {"status": True, "limit": uploads.largest_size}
        return replace(render.answer(document), word="name checked")
    body = DeclarationBody.parse(members)
    if "name" in members and "selector" in members:
        record = await _ready_image(gateway, session, body)
        if record is not None:
            answer = render.answer(render.pull_answer(record, labels=gateway.shows_labels))
            return replace(answer, word="READY, nothing to upload")
    elif "name" in members:
        await gateway.check_new_image(session, body.name)
    filename = printable(body.filename, FILENAME_LIMIT)
    declaration = UploadDeclaration(
        session.system, session.uid, body.size, body.sha256, body.kind, filename
    )
    return _answer(gateway, await uploads.declare(session, declaration))


async def _ready_image(
    gateway: Gateway, session: Session, body: DeclarationBody
) -> ImageRecord | None:
    return await gateway.find_image_of_content(
        session,
        body.name,
        body.allowed_uids,
        body.allowed_gids,
        ImageFile("", body.kind, body.size, body.sha256, body.selector, body.public),
    )


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


def _number(query: bytes, name: str) -> int:
    """Return the number of bytes that a query has under a name."""
    try:
        values = parse_qs(query.decode("ascii", "replace"), max_num_fields=20).get(name, [])
    except ValueError:
        values = []
    if len(values) != 1 or _NUMBER.fullmatch(values[0]) is None:
        raise BadRequest(f"`{name}` is not a number of bytes.", remedy=f"Write `?{name}=1`.")
    return int(values[0])


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
